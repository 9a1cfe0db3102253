"""The facts of a GLUE task, from `configs/task/<name>.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Task:
    """A task of GLUE (Wang et al. 2019).

    fields: the one or two text columns, in the order the model reads them. labels: class names in label
    order, or None for a score from 0 to 5 (STS-B). metrics: what is recorded; headline: the one that
    picks the checkpoint. test_splits: GLUE splits that make up the test set.
    """

    name: str
    title: str
    fields: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    headline: str
    test_splits: tuple[str, ...]
    official_rows: dict

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
