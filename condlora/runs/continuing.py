"""Whether an unfinished run can be continued, and where its folder goes if not.

The decision rests on what a run's numbers depend on: recipe, random streams, data, weights, versions of the libraries,
kind of device, and the code of this package (its statements; see `condlora.runs.environment.source_sha256`). It does not
rest on git: a commit, an untracked file or a changed comment alters no number.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path

from condlora.errors import RunFolderError, UnreadableRun
from condlora.files import json_sha256
from condlora.runs.record import read_cell_record

FIELDS = ("recipe_hash", "streams", "data", "backbone", "environment")
# Recorded, and free to differ. Another processor or number of threads changes sums by rounding alone, and a grid must be
# able to move between machines.
FREE_TO_DIFFER = ("commit", "dirty", "platform", "processor", "threads")
SHOWN = 3  # differences that a message names


def continued_by(record: dict) -> dict:
    """The part of a record that must be equal for a checkpoint to be continued, as it reads back from JSON."""
    same = {key: record.get(key) for key in FIELDS}
    # A model folder that was renamed holds the same weights, whose SHA-256 is compared.
    same["backbone"] = {k: v for k, v in (record.get("backbone") or {}).items() if k != "name"}
    environment = {k: v for k, v in record["environment"].items() if k not in FREE_TO_DIFFER}
    environment["device"] = re.sub(r"^cpu \(.*", "cpu", environment["device"])
    return json.loads(json.dumps(same | {"environment": environment}))


def make_room(folder: Path, record: dict) -> str | None:
    """Rename a run folder whose content the run of `record` does not continue; nothing is deleted that took training.

    A finished run of another recipe becomes `seed-0.stale-<hash>`, an unfinished one that cannot be continued
    `seed-0.unfinished-<hash>`, a damaged one `seed-0.damaged-<time>`. Returns a sentence for the user if there is
    something to say.

    Raises:
        UnreadableRun: the folder's files cannot be read, so it stays where it is.
    """
    if not folder.exists():
        return None
    try:
        old = read_cell_record(folder)
    except UnreadableRun:
        raise
    except RunFolderError:
        stamp = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}"
        target = _rename(folder, f"damaged-{stamp}")
        return f"{folder} is damaged: it is kept as {target.name}, and training starts from step 0"
    if old["status"] == "done":
        target = _rename(folder, f"stale-{old['recipe_hash'][:8]}")
        return f"{folder} holds a finished run of another recipe: it is kept as {target.name}"
    before, now = continued_by(old), continued_by(record)
    if before == now:
        return _rounding(old["environment"], record["environment"])
    if not _took_training(folder):
        shutil.rmtree(folder)
        return None
    target = _rename(folder, f"unfinished-{json_sha256(before)[:8]}")
    return (
        f"the unfinished run in {folder} cannot be continued ({_differences(old, record)}): it is kept as {target.name}, "
        "and training starts from step 0"
    )


def _rename(folder: Path, suffix: str) -> Path:
    target, number = folder.with_name(f"{folder.name}.{suffix}"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.{suffix}-{number}")
    return folder.rename(target)


def _took_training(folder: Path) -> bool:
    """Whether a run has left more than its record and its settings."""
    return any((folder / name).exists() for name in ("checkpoints", "adapter", "curve.csv"))


def _rounding(before: dict, now: dict) -> str | None:
    if before.get("threads") == now.get("threads"):
        return None
    return (
        f"continuing with {now['threads']} threads a run begun with {before.get('threads')}: its numbers can differ by "
        "rounding from those of an uninterrupted run"
    )


def _differences(before: dict, now: dict) -> str:
    """What keeps a run from being continued, in words."""
    if before["recipe_hash"] != now["recipe_hash"]:
        a, b = (_flat(record.get("recipe", {})) for record in (before, now))
    else:
        a, b = (_flat(continued_by(record)) for record in (before, now))
    found = []
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) == b.get(name):
            continue
        is_code = name == "environment.source_sha256"
        found.append(
            "the code in condlora/ differs"
            if is_code
            else f"{name} was {a.get(name)} and is {b.get(name)}"
        )
    more = f" and {len(found) - SHOWN} more differences" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _flat(nested: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
