"""Download a pretrained model that is not on the hub into the cache folder.

Examples:
    python scripts/fetch.py mpnet

The folder is $CONDLORA_CACHE, or "condlora" in the user's cache folder. An interrupted download resumes.
"""

from __future__ import annotations

import argparse

from condlora.commands.arguments import Parser
from condlora.models.fetch import ARCHIVES, fetch


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("model", help=f"one of {', '.join(ARCHIVES)}")
    parser.run(download)


def download(args: argparse.Namespace) -> None:
    print(f"{args.model} is in {fetch(args.model)}")
