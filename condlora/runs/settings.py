"""The values that the settings of a run may have, checked before anything is loaded.

Hydra refuses names that do not exist; here are values that a library would refuse hours later, in its own words, or
never. What depends on the data, the backbone or the machine is checked where these are known.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import model_validator

from condlora import settings
from condlora.labels import label_name
from condlora.paths import CONFIGS
from condlora.settings import Settings, choice, items, matching, number, whole

COMMIT = matching(
    "^[0-9a-f]{40}$", "the 40 digits of a commit, as a branch or a tag moves", null=True
)


class NamedSettings(Settings):
    name: matching(".", "a text")


class PinnedSettings(Settings):
    revision: COMMIT = None


class DataSettings(PinnedSettings):
    source: Any = ""
    train_rows: whole(1) = None
    test_rows: whole(1) = None

    @model_validator(mode="after")
    def _rows_are_of_generated_text(self) -> DataSettings:
        if self.source != "synthetic" and (self.train_rows or self.test_rows):
            raise ValueError(
                "data.train_rows and data.test_rows apply only to data=synthetic: leave them out."
            )
        return self


class AdapterDefaults(Settings):
    r: whole(1)
    lora_dropout: number(0, 1)


class ProtocolSettings(Settings):
    adapter: AdapterDefaults
    learning_rate: number(0)
    epochs: whole(1, null=True)
    max_steps: whole(1, null=True)
    batch_size: whole(1)
    max_length: whole(4)
    weight_decay: number(0)
    warmup_ratio: number(0, 1)
    max_grad_norm: number(0, above=True)
    precision: choice("auto", "no", "bf16", "fp16")
    regression_targets: choice("raw", "standardised")
    validation: choice("tenth_of_train", "test")
    validation_limit: whole(1, null=True) = None
    evaluate_every: whole(1, null=True)
    select: choice("best", "last")
    early_stopping_patience: whole(1, null=True)

    @model_validator(mode="after")
    def _has_an_end(self) -> ProtocolSettings:
        if self.max_steps is None and self.epochs is None:
            raise ValueError(
                "protocol.epochs and protocol.max_steps are both null: set one, or training has no end."
            )
        return self


class RuntimeSettings(Settings):
    device: choice("auto", "cpu", "cuda")
    threads: whole(1, null=True)
    padding: choice("auto", "packed", "longest", "max_length")
    evaluation_batch_size: whole(1, auto=True)
    keep_adapters_at: items(whole(0), "a list of steps, as in [0,100]") = []
    fleet: whole(1, auto=True)
    deterministic: choice(True, False)
    checkpoint_minutes: number(0, above=True, null=True)
    checkpoint_steps: whole(1, null=True)
    progress: choice("auto", "bars", "plain")


class SeedSettings(Settings):
    seed: whole(0)


class RunSettings(SeedSettings):
    """What is checked of the config of a run; a part with an interpolation that cannot be resolved is left out."""

    task: NamedSettings
    backbone: PinnedSettings
    data: DataSettings
    protocol: ProtocolSettings
    runtime: RuntimeSettings


def check_settings(cfg: DictConfig) -> None:
    """Raise a ConfigError that names all settings of a run that are not set or invalid."""
    settings.refuse(run_faults(cfg))


def run_faults(cfg: DictConfig) -> list[str]:
    """A sentence for each setting of a run that is not set or invalid."""
    found = settings.unset(cfg) + settings.faults(RunSettings, _known(RunSettings, cfg))
    if not found and cfg.task.official_rows is None:
        found += own_task_faults(OmegaConf.to_container(cfg.task, resolve=True))
    return found


def _known(schema: type[Settings], cfg: DictConfig) -> dict:
    """The values of a schema's fields, resolved; without those that `condlora.runs.recipe` reports with the reason."""
    plain = {}
    for name, field in schema.model_fields.items():
        if OmegaConf.is_missing(cfg, name) or name not in cfg:
            continue
        try:
            value = cfg[name]
        except (
            OmegaConfBaseException
        ):  # a reference to what does not exist, such as a table's entry
            continue
        if value is None and name == "learning_rate":
            continue
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
        if nested:
            plain[name] = _known(field.annotation, value)
        else:
            plain[name] = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    return plain


METRICS_OF_LABELS = ("accuracy", "f1", "matthews_correlation")
METRICS_OF_NUMBERS = ("pearson", "spearman")


def own_task_faults(task: dict) -> list[str]:
    """What is wrong with a user's task, a sentence each."""
    fields, labels, metrics = task["fields"], task["labels"], task["metrics"]
    found = []
    # "average" is a row of the tables.
    if task["name"].lower() in {path.stem for path in (CONFIGS / "task").glob("*.yaml")} | {
        "average"
    }:
        found.append(
            f"task.name={task['name']} is taken, and its scores would pass for that task's: choose another name."
        )
    if not _is_list_of_names(fields) or len(fields) > 2:
        found.append(
            f"Invalid value task.fields={fields!r}; expected one or two columns, as in task.fields=[text]."
        )
    elif len({*fields, "label", task["label"]}) != len(fields) + len({"label", task["label"]}):
        found.append(
            f"task.fields={fields!r} holds a column twice, or the label's, or one named label: rename it in the data."
        )
    names = [label_name(label) for label in labels] if isinstance(labels, list) else []
    if labels is not None and (len(set(names)) < 2 or len(set(names)) != len(names)):
        found.append(
            f"Invalid value task.labels={labels!r}; expected two or more different labels, as in "
            "task.labels=[bad,good], or null for numbers."
        )
    elif labels is not None and (None in labels or "" in names):
        found.append(
            f"task.labels={labels!r} has an empty label, which in the data is a missing one: give it a name."
        )
    choices = METRICS_OF_NUMBERS if labels is None else METRICS_OF_LABELS
    if not _is_list_of_names(metrics) or not set(metrics) <= set(choices):
        found.append(
            f"task.metrics={metrics!r} does not fit task.labels={labels!r}: choose of {', '.join(choices)}."
        )
    elif "f1" in metrics and len(names) != 2:
        found.append("task.metrics has f1, which needs two labels: leave it out.")
    if _is_list_of_names(metrics) and task["headline"] not in metrics:
        found.append(f"task.headline={task['headline']} is none of task.metrics: add it there.")
    return found


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
