"""Write a CondLoRA adapter as a plain LoRA adapter: `python scripts/export_lora.py my-adapter my-lora`."""

import argparse
from pathlib import Path

from condlora.commands.cli import explain
from condlora.errors import RunFolderError, UserError
from condlora.models.adapters import load_run
from condlora.runs.record import read_record
from condlora.tuner.io.adapter_folder import check_free, load_adapted
from condlora.tuner.io.lora_export import export_lora


def adapted_model(folder: Path, base: str | None):
    """The model of a finished run, or of a folder that save_pretrained wrote."""
    if not (folder / "record.json").exists():
        return load_adapted(folder, base)
    status = read_record(folder)["status"]
    if status != "done":
        raise RunFolderError(f"{folder} is {status}: finish the run, then export it.")
    return load_run(folder)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder of an adapter, or of a finished run")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--base", help="folder or hub id of the base model, if not the one recorded"
    )
    parser.add_argument(
        "--rank", type=int, help="of an adapter of method dylora: the leading ranks to keep"
    )
    args = parser.parse_args()
    try:
        check_free(args.out)
        config = export_lora(adapted_model(args.source, args.base), args.out, rank=args.rank)
    except Exception as error:
        if (message := explain(error)) is None:
            raise
        parser.exit(getattr(error, "exit_status", UserError.exit_status), f"error: {message}\n")
    print(f"{args.out}: LoRA, r {config.r}, alpha {config.lora_alpha:g}")
