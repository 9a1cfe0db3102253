"""Turn a checkpoint of the authors' code or of loralib into a PEFT adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

from condlora.commands.arguments import Parser

EXAMPLES = """
Examples:
    python scripts/import_adapter.py authors/rte/checkpoint-900 my-adapter --base roberta-base
    python scripts/import_adapter.py roberta_base_lora_mnli.bin my-lora --base roberta-base --lora-alpha 16
"""


def main() -> None:
    parser = Parser(__doc__ + EXAMPLES)
    parser.add_argument(
        "source", type=Path, help="folder of the authors' code, or .bin file of loralib"
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--base", help="folder or hub id of the base model")
    parser.add_argument("--lora-alpha", type=int, help="loralib only, whose file does not hold it")
    parser.run(convert)


def convert(args: argparse.Namespace) -> None:
    # Imported here: torch takes seconds, and --help needs none of it.
    from condlora.tuner.io.checkpoint_import import import_adapter

    config = import_adapter(args.source, args.out, base=args.base, lora_alpha=args.lora_alpha)
    print(f"{args.out}: {config.peft_type.value}, r {config.r}, alpha {config.lora_alpha}")
