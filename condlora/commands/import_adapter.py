"""Turn a checkpoint of the authors' code or of loralib into a PEFT adapter: `python scripts/import_adapter.py --help`."""

import argparse
from pathlib import Path

from condlora.commands.cli import explain
from condlora.errors import UserError
from condlora.tuner.io.checkpoint_import import import_adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(": `")[0] + ".")
    parser.add_argument(
        "source", type=Path, help="folder of the authors' code, or .bin file of loralib"
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--base", help="folder or hub id of the base model")
    parser.add_argument("--lora-alpha", type=int, help="loralib only, whose file does not say it")
    args = parser.parse_args()
    try:
        config = import_adapter(args.source, args.out, base=args.base, lora_alpha=args.lora_alpha)
    except Exception as error:
        if (message := explain(error)) is None:
            raise
        parser.exit(getattr(error, "exit_status", UserError.exit_status), f"error: {message}\n")
    print(f"{args.out}: {config.peft_type.value}, r {config.r}, alpha {config.lora_alpha}")
