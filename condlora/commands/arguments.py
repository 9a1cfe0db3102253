"""Commands with plain arguments instead of Hydra's settings; their errors and help read the same."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from condlora.commands.usage import about, program
from condlora.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose help begins with the command's docstring."""

    def __init__(self, doc: str):
        super().__init__(
            prog=program(),
            usage=argparse.SUPPRESS,
            description=about(doc),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def run(self, function: Callable[[argparse.Namespace], None]) -> None:
        """Call a function with the arguments; an error that a user can cause is one sentence and an exit status."""
        args = self.parse_args()
        try:
            function(args)
        except Exception as error:
            from condlora.commands.explain import explain

            message = explain(error)
            if message is None:
                raise
            status = getattr(error, "exit_status", UserError.exit_status)
            self.exit(status, f"error: {message}\n")
