"""pytest plugin: keeps the tests that are parametrised by LoRA, VeRA or CondLoRA, and writes their outcomes as JSON lines.

CONDLORA_OUTCOMES names the file; several workers append to it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.peft_suite.rows import CONTROLS, CondLoraConfig

CLASSES = (*CONTROLS, CondLoraConfig)
# In test_config.py: these read the files of an adapter of LoRA's on the hub, whatever the class.


FROM_THE_HUB = (
    "test_from_pretrained",
    "test_from_pretrained_cache_dir",
    "test_save_pretrained_with_runtime_config",
)


def _class_of(item) -> type | None:
    params = getattr(item, "callspec", None)
    found = [value for value in (params.params.values() if params else ()) if value in CLASSES]
    return found[0] if found else None


def pytest_collection_modifyitems(config, items):
    kept, left = [], []
    for item in items:
        from_hub = item.path.name == "test_config.py" and item.originalname in FROM_THE_HUB
        (left if _class_of(item) is None or from_hub else kept).append(item)
    config.hook.pytest_deselected(items=left)
    for item in kept:
        item.user_properties.append(("method", _class_of(item).__name__.removesuffix("Config")))
    items[:] = kept


def pytest_runtest_logreport(report):
    if report.when != "call" and report.outcome == "passed":
        return
    if "PYTEST_XDIST_WORKER" in os.environ:  # the main process sees the reports of all workers
        return
    reason = str(report.longrepr.reprcrash.message)[:300] if report.failed else ""
    line = {
        "suite": report.location[0],
        "test": report.location[2],
        "method": dict(report.user_properties)["method"],
        "outcome": report.outcome,
        "reason": reason,
    }
    with Path(os.environ["CONDLORA_OUTCOMES"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
