"""Turn a checkpoint of the authors' code or of loralib into a PEFT adapter: `python scripts/import_adapter.py --help`."""

from condlora.commands.import_adapter import main

if __name__ == "__main__":
    main()
