"""What values the settings of a run may have, checked before anything is loaded.

Names that are not there are Hydra's to refuse; here are values that a library would refuse hours later, in its own
words, or never. What depends on the data, the backbone or the machine is checked where these are known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from condlora.errors import ConfigError
from condlora.glue.tasks import label_name
from condlora.paths import CONFIGS

Rule = tuple[str, Callable[[object], bool]]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(least: int) -> Rule:
    return (
        f"a whole number from {least} on",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least,
    )


def above(least: float) -> Rule:
    return f"a number above {least:g}", lambda v: _is_number(v) and v > least


def between(least: float, most: float) -> Rule:
    return f"a number from {least:g} to {most:g}", lambda v: _is_number(v) and least <= v <= most


def one_of(*names: str | bool) -> Rule:
    return f"one of {', '.join(map(str, names))}", lambda v: v in names


def or_null(rule: Rule) -> Rule:
    says, holds = rule
    return f"{says}, or null", lambda v: v is None or holds(v)


def auto_or(rule: Rule) -> Rule:
    says, holds = rule
    return f"{says}, or auto", lambda v: v == "auto" or holds(v)


def commit() -> Rule:
    return (
        "the 40 digits of a commit, as a branch or a tag moves",
        lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{40}", v) is not None,
    )


RULES: dict[str, Rule] = {
    "seed": whole(0),
    "backbone.revision": or_null(commit()),
    "data.revision": or_null(commit()),
    "protocol.adapter.r": whole(1),
    "protocol.adapter.lora_dropout": between(0, 1),
    "protocol.learning_rate": between(0, 1e30),
    "protocol.epochs": or_null(whole(1)),
    "protocol.max_steps": or_null(whole(1)),
    "protocol.batch_size": whole(1),
    "protocol.max_length": whole(4),
    "protocol.weight_decay": between(0, 1e30),
    "protocol.warmup_ratio": between(0, 1),
    "protocol.max_grad_norm": above(0),
    "protocol.precision": one_of("auto", "no", "bf16", "fp16"),
    "protocol.regression_targets": one_of("raw", "standardised"),
    "protocol.evaluate_every": or_null(whole(1)),
    "protocol.evaluations": or_null(whole(1)),
    "protocol.select": one_of("best", "last"),
    "protocol.early_stopping_patience": or_null(whole(1)),
    "protocol.test_rows_from_train": or_null(whole(1)),
    "protocol.undefined_score": or_null(between(-1, 1)),
    "runtime.device": one_of("auto", "cpu", "cuda"),
    "runtime.threads": or_null(whole(1)),
    "runtime.padding": one_of("auto", "packed", "longest", "max_length"),
    "runtime.evaluation_batch_size": auto_or(whole(1)),
    "runtime.fleet": auto_or(whole(1)),
    "runtime.deterministic": one_of(True, False),
    "runtime.checkpoint_minutes": or_null(above(0)),
    "runtime.checkpoint_steps": or_null(whole(1)),
    "runtime.progress": one_of("auto", "bars", "plain"),
}


def check_settings(cfg: DictConfig) -> None:
    """Raise a ConfigError for the first setting of a run that is not set or has no meaning."""
    for name in sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{name} is not set: add {name}=... to the command.")
    for name, (says, holds) in RULES.items():
        value = OmegaConf.select(cfg, name)
        if not holds(value):
            raise ConfigError(f"{name}={value!r} has no meaning: it must be {says}.")
    if cfg.protocol.max_steps is None and cfg.protocol.epochs is None:
        raise ConfigError(
            "protocol.epochs and protocol.max_steps are both null: set one, or training has no end."
        )
    if cfg.task.official_rows is None:
        check_own_task(cfg.task)


METRICS_OF_LABELS = ("accuracy", "f1", "matthews_correlation")
METRICS_OF_NUMBERS = ("pearson", "spearman")


def check_own_task(task: DictConfig) -> None:
    """Raise a ConfigError if a user's task has no meaning."""
    # "average" is a row of the tables.
    if (CONFIGS / "task" / f"{task.name}.yaml").exists() or task.name == "average":
        raise ConfigError(
            f"task.name={task.name} is taken, and its scores would pass for that task's: choose another name."
        )
    plain = OmegaConf.to_container(task, resolve=True)
    fields, labels, metrics = plain["fields"], plain["labels"], plain["metrics"]
    if not _is_list_of_names(fields) or len(fields) > 2:
        raise ConfigError(
            f"task.fields={fields!r} has no meaning: name one or two columns, as in task.fields=[text]."
        )
    if len({*fields, "label", plain["label"]}) != len(fields) + len({"label", plain["label"]}):
        raise ConfigError(
            f"task.fields={fields!r} holds a column twice, or the label's, or one named label: rename it in the data."
        )
    if labels is not None:
        names = [label_name(label) for label in labels] if isinstance(labels, list) else []
        if len(set(names)) < 2 or len(set(names)) != len(names):
            raise ConfigError(
                f"task.labels={labels!r} has no meaning: name two or more different labels, as in "
                "task.labels=[bad,good], or null for numbers."
            )
    choices = METRICS_OF_NUMBERS if labels is None else METRICS_OF_LABELS
    if not _is_list_of_names(metrics) or not set(metrics) <= set(choices):
        raise ConfigError(
            f"task.metrics={metrics!r} does not fit task.labels={labels!r}: choose of {', '.join(choices)}."
        )
    if "f1" in metrics and len(labels) != 2:
        raise ConfigError("task.metrics has f1, which is of two labels: leave it out.")
    if plain["headline"] not in metrics:
        raise ConfigError(
            f"task.headline={plain['headline']} is none of task.metrics: add it there."
        )


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
