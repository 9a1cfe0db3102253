"""The GLUE download folder of data=directory; imports nothing heavy, so that a missing folder is reported at once."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from condlora.errors import DataError


def data_folder(data: DictConfig) -> Path:
    """The folder that data=directory reads.

    Raises:
        DataError: it is not set or not there.
    """
    if not data.root:
        raise DataError(
            "data.root is not set: add data.root=... to the command or set GLUE_DATA=..., a GLUE download folder."
        )
    if not Path(data.root).is_dir():
        raise DataError(
            f"The data folder {data.root} does not exist: set data.root to a GLUE download folder."
        )
    return Path(data.root)
