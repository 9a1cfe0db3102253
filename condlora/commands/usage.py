"""`--help` of a command: what it does, examples, its settings; and `--groups`: the choices of each config group.

The text is the docstring of the command's module and the comments of its config file, so neither Hydra nor any library
is imported for it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from condlora.paths import CONFIGS

# A line of a config file: a setting at the top, or a choice in the defaults; its value; its comment.
LINE = re.compile(
    r"^(?:  - (?!override|_self_|optional)|(?! ))(\w+):(?: +([^#]*?))?(?:\s+# ?(.*))?$",
    re.MULTILINE,
)


def program() -> str:
    """The command as the user called it: `condlora-train` or `python scripts/train.py`."""
    called = Path(sys.argv[0])
    if called.suffix != ".py":
        return called.name
    return f"python {called.parent.name}/{called.name}"


def about(doc: str) -> str:
    """What a command does and its examples, from its module's docstring, under the name that it was called by."""
    name = program()
    return f"{name}: " + re.sub(r"\bpython (?:scripts|analysis)/\w+\.py", name, doc.strip())


def help_text(doc: str, config: str) -> str:
    """The help of the command with this module docstring and config file (a path below configs/, without .yaml)."""
    name = program()
    settings = _settings((CONFIGS / f"{config}.yaml").read_text())
    wide = max(len(setting) for setting, _ in settings)
    lines = [f"  {setting:<{wide}}  {comment}".rstrip() for setting, comment in settings]
    more = [
        "Settings are written name=value; a value with blanks or brackets needs quotes: 'runs=\"my runs\"'.",
        f"All of them, with their sources: configs/{config}.yaml; choices of each group: {name} --groups.",
        "--debug shows tracebacks; --cfg job prints the composed settings; --hydra-help explains Hydra's own flags.",
    ]
    return "\n".join([about(doc), "", "Settings:", *lines, "", *more])


def _settings(text: str) -> list[tuple[str, str]]:
    """Each setting of a config file with its default, and its comment; groups of the defaults among them."""
    found = []
    for name, value, comment in LINE.findall(text):
        if name in ("defaults", "hydra"):
            continue
        found.append((f"{name}={value}" if value else f"{name}.*", comment))
    return found


def groups_text() -> str:
    """The choices of each config group."""
    shown = []
    for folder in sorted(path for path in CONFIGS.iterdir() if path.is_dir()):
        if folder.name not in ("analysis", "search"):  # the settings of commands
            choices = sorted(path.stem for path in folder.glob("*.yaml"))
            if choices:
                shown.append(f"{folder.name}={', '.join(choices)}")
    return "\n".join(shown)
