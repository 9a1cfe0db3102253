"""GLUE's metrics as an `evaluate.Metric` of ours: scikit-learn and scipy, no network.

`evaluate.load("glue")` needs the hub. A value that does not exist (the correlation with a constant, say) is
an error here, never a zero: a table must not hold numbers nobody measured.
"""

from __future__ import annotations

import warnings

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from condlora.errors import UndefinedScore
from condlora.glue.tasks import Task


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal labels."""
    return float(accuracy_score(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1; undefined where no example is or is called positive."""
    if not (predictions == 1).any() and not (references == 1).any():
        raise UndefinedScore("F1 is undefined: no example is positive and none is predicted to be.")
    return float(f1_score(references, predictions, zero_division=0.0))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews correlation; undefined where predictions or references are constant."""
    _refuse_constant("Matthews correlation", predictions, references)
    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson correlation; undefined where predictions or references are constant."""
    _refuse_constant("Pearson correlation", predictions, references)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: scipy warns, the value stands
        return float(pearsonr(predictions, references).statistic)


def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman rank correlation; undefined where predictions or references are constant."""
    _refuse_constant("Spearman correlation", predictions, references)
    return float(spearmanr(predictions, references).statistic)


METRICS = {m.__name__: m for m in (accuracy, f1, matthews_correlation, pearson, spearman)}


def _refuse_constant(name: str, predictions: np.ndarray, references: np.ndarray) -> None:
    for what, values in (("predictions", predictions), ("references", references)):
        if len(np.unique(values)) < 2:
            raise UndefinedScore(
                f"{name} is undefined: all {len(values)} {what} are equal to {values[0]:g}."
            )


class GlueMetric(evaluate.Metric):
    """All metrics of one task: `GlueMetric(task).compute(predictions=..., references=...)`.

    predictions, references: (n,) class labels, or scores for STS-B. Returns {metric name: fraction}.

    undefined: the value of a metric that has none for these predictions, as where all are equal.

    Raises:
        UndefinedScore: a metric has no value for these predictions, and `undefined` is None.
    """

    def __init__(self, task: Task, undefined: float | None = None):
        self.task, self.undefined = task, undefined
        super().__init__(config_name=task.name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64" if self.task.is_regression else "int64")
        return evaluate.MetricInfo(
            description=f"GLUE's metrics for {self.task.title}: {', '.join(self.task.metrics)}",
            citation="Wang et al. 2019, GLUE",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {name: self._value(name, predictions, references) for name in self.task.metrics}

    def _value(self, name: str, predictions: np.ndarray, references: np.ndarray) -> float:
        try:
            return METRICS[name](predictions, references)
        except UndefinedScore:
            if self.undefined is None:
                raise
            return self.undefined
