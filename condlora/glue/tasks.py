"""The facts of a task, from `configs/task/<name>.yaml`: GLUE's, or a user's own (custom.yaml)."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Task:
    """A task of GLUE (Wang et al. 2019), or of a user.

    fields: the one or two text columns, in the order the model reads them. labels: class names in label
    order, or None for a number to predict, STS-B's from 0 to 5. metrics: what is recorded; headline: the one that
    picks the checkpoint. test_splits: splits that make up the test set. official_rows: GLUE's counts, None for
    another's task. label: the column of a user's data that is predicted.
    """

    name: str
    title: str
    fields: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    headline: str
    test_splits: tuple[str, ...]
    official_rows: dict | None
    label: str = "label"

    @property
    def is_regression(self) -> bool:
        return self.labels is None

    @property
    def num_labels(self) -> int:
        """Outputs of the head: one for regression, else one a class."""
        return 1 if self.labels is None else len(self.labels)


def task_from_config(cfg: DictConfig) -> Task:
    """Make a Task of the `task` group of a config."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    return Task(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})
