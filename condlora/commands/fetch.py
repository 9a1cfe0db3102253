"""Download a pretrained model that is not on the hub into the cache folder.

    python scripts/fetch.py mpnet

The folder is $CONDLORA_CACHE, or "condlora" in the user's cache folder. An interrupted download resumes.
"""

import argparse

from condlora.commands.cli import explain
from condlora.errors import UserError
from condlora.models.fetch import ARCHIVES, fetch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=f"one of {', '.join(ARCHIVES)}")
    args = parser.parse_args()
    try:
        folder = fetch(args.model)
    except Exception as error:
        if (message := explain(error)) is None:
            raise
        parser.exit(getattr(error, "exit_status", UserError.exit_status), f"error: {message}\n")
    print(f"{args.model} is in {folder}")
