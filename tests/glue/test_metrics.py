"""The metrics against values worked out by hand; what has no value is an error."""

import math

import numpy as np
import pytest

from condlora.errors import UndefinedScore
from condlora.glue.metrics import GlueMetric
from tests.tasks import GLUE_TASKS, load_task

# TP 2, TN 1, FP 1, FN 1
PREDICTIONS, REFERENCES = [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]


def compute(task, predictions, references):
    return GlueMetric(load_task(task)).compute(predictions=predictions, references=references)


def test_accuracy_and_f1():
    assert compute("mrpc", PREDICTIONS, REFERENCES) == pytest.approx(
        {"accuracy": 3 / 5, "f1": 2 * 2 / (2 * 2 + 1 + 1)}
    )


def test_matthews_correlation():
    value = (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)
    assert compute("cola", PREDICTIONS, REFERENCES)["matthews_correlation"] == pytest.approx(value)


def test_pearson_and_spearman():
    scores = compute("stsb", [1.0, 2.0, 4.0], [0.0, 1.0, 5.0])
    x, y = np.array([-4, -1, 5]) / 3, np.array([-2, -1, 3])
    pearson = (x @ y) / math.sqrt((x @ x) * (y @ y))
    assert scores == pytest.approx({"pearson": pearson, "spearman": 1.0})


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_perfect_predictions_score_one_in_every_task(task):
    references = [0.0, 2.5, 5.0] if task == "stsb" else [0, 1, 0, 1]
    scores = compute(task, references, references)
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))


@pytest.mark.parametrize(
    ("task", "predictions", "references", "message"),
    [
        ("cola", [1, 1, 1], [1, 0, 1], "Matthews correlation is undefined: all 3 predictions"),
        ("cola", [1, 0, 1], [1, 1, 1], "Matthews correlation is undefined: all 3 references"),
        ("stsb", [2.0, 2.0], [1.0, 3.0], "Pearson correlation is undefined"),
        ("mrpc", [0, 0], [0, 0], "F1 is undefined"),
    ],
)
def test_undefined_values_are_errors_and_never_zero(task, predictions, references, message):
    with pytest.raises(UndefinedScore, match=message):
        compute(task, predictions, references)


def test_no_predicted_positive_is_a_defined_f1_of_zero():
    assert compute("mrpc", [0, 0], [0, 1])["f1"] == 0.0
