"""How a class label is written: one spelling for what settings and data files say."""

from __future__ import annotations

import re


def label_name(value: object) -> str:
    """A label's name, in whatever type it was read: 1, 1.0 and "1.0" are "1", True and "TRUE" are "true"."""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)
