"""Write a CondLoRA adapter as a plain LoRA adapter, which PEFT loads without condlora."""

from __future__ import annotations

import argparse
from pathlib import Path

from condlora.commands.arguments import Parser
from condlora.errors import RunFolderError

EXAMPLES = """
Examples:
    python scripts/export_lora.py my-adapter my-lora
    python scripts/export_lora.py runs/paper/rte/condlora/seed-0 my-lora --base roberta-base
"""


def main() -> None:
    parser = Parser(__doc__ + EXAMPLES)
    parser.add_argument("source", type=Path, help="folder of an adapter, or of a finished run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--base", help="folder or hub id of the base model, if not the one recorded"
    )
    parser.add_argument(
        "--rank",
        type=int,
        help="of an adapter of method dylora or cond_dylora: the leading ranks to keep",
    )
    parser.run(export)


def export(args: argparse.Namespace) -> None:
    # Imported here: torch takes seconds, and --help needs none of it.
    from condlora.tuner.io.adapter_folder import check_free
    from condlora.tuner.io.lora_export import export_lora

    check_free(args.out)
    config = export_lora(adapted_model(args.source, args.base), args.out, rank=args.rank)
    print(f"{args.out}: LoRA, r {config.r}, alpha {config.lora_alpha:g}")


def adapted_model(folder: Path, base: str | None):
    """The model of a finished run, or of a folder that save_pretrained wrote."""
    from condlora.models.adapters import load_run
    from condlora.runs.record import read_record
    from condlora.tuner.io.adapter_folder import load_adapted

    if not (folder / "record.json").exists():
        return load_adapted(folder, base)
    status = read_record(folder)["status"]
    if status != "done":
        raise RunFolderError(f"{folder} is {status}: finish the run, then export it.")
    return load_run(folder)[0]
