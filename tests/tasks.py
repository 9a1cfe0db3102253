"""What several test modules need: the checkout, the shipped tasks, and the mark for slow parameters."""

import copy
import functools
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from condlora.glue.tasks import Task, task_from_config
from condlora.grid.cells import compose_cells

ROOT = Path(__file__).resolve().parents[1]
GLUE_TASKS = sorted(
    path.stem for path in (ROOT / "configs" / "task").glob("*.yaml") if path.stem != "custom"
)


def slow(*values: object) -> list:
    """These values of a parametrised test run in `make test-all` alone."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def compose_tiny(*overrides: str) -> list[DictConfig]:
    """Configs of the shipped train.yaml with a toy backbone and a few steps; name `runs=`."""
    shrunk = (
        "backbone=tiny",
        "data=synthetic",
        "protocol=embedded",
        "protocol.max_steps=6",
        "protocol.evaluate_every=3",
        "runtime.threads=1",
    )
    chosen = {o.split("=")[0] for o in overrides}
    words = (*(o for o in shrunk if o.split("=")[0] not in chosen), *overrides)
    return compose_once(words)


def compose_once(words: tuple[str, ...]) -> list[DictConfig]:
    """What `compose_cells` returns; commands that differ in plain values alone are composed once per process."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    cells = copy.deepcopy(_composed(tuple(o.input_line for o in parsed if not sets_a_value(o))))
    try:
        for cfg in cells:
            for override in filter(sets_a_value, parsed):
                OmegaConf.update(cfg, override.key_or_group, override.value())
    except OmegaConfBaseException:  # Hydra says what is wrong
        return list(compose_cells(words))
    return list(cells)


_composed = functools.lru_cache(maxsize=None)(compose_cells)


def sets_a_value(override: Override) -> bool:
    """Whether it gives a setting one value and chooses, adds and sweeps nothing: `protocol.max_steps=6`."""
    is_setting = "." in override.key_or_group or override.key_or_group in ("seed", "runs")
    is_one = not override.is_sweep_override() and not isinstance(override.value(), dict | list)
    return (
        override.type is OverrideType.CHANGE and override.package is None and is_setting and is_one
    )


def load_task(name: str) -> Task:
    return task_from_config(OmegaConf.load(ROOT / "configs" / "task" / f"{name}.yaml"))
