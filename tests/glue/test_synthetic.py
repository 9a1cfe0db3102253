"""The synthetic tasks: same rows for the same seed, GLUE's columns, no leak, words held out."""

from __future__ import annotations

import random
import re
from functools import cache

import datasets
import pytest

from condlora.glue.synthetic import TASKS, generate
from condlora.glue.synthetic.lexicon import BAD, GOOD, NAMES

COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
}
# In the order of the label's number, as `nyu-mll/glue` has them.
LABELS = {
    "cola": ["unacceptable", "acceptable"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "rte": ["entailment", "not_entailment"],
    "sst2": ["negative", "positive"],
}
COMMONEST = {"cola": 0.65, "mrpc": 0.60, "qqp": 0.60, "sst2": 0.53, "mnli": 1 / 3}  # else a half

task_made = pytest.fixture(params=sorted(COLUMNS), name="task")(lambda request: request.param)


@cache
def made(task: str) -> datasets.DatasetDict:
    return generate(task)


def texts(task: str, split: datasets.Dataset) -> list[tuple[str, ...]]:
    return list(zip(*(split[column] for column in COLUMNS[task]), strict=True))


def words(rows: list[tuple[str, ...]]) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", " ".join(text for row in rows for text in row).lower()))


def share_of_rows_with_unseen_word(rows: list[tuple[str, ...]], known: set[str]) -> float:
    return sum(bool(words([row]) - known) for row in rows) / len(rows)


def test_tasks_are_the_eight():
    assert sorted(TASKS) == sorted(COLUMNS)


def test_unknown_task_names_the_eight():
    with pytest.raises(ValueError, match="wnli") as raised:
        generate("wnli")
    assert all(task in str(raised.value) for task in COLUMNS)


def test_same_seed_same_rows_other_seed_other_rows(task: str):
    first, again, other = (generate(task, seed, 60, 30) for seed in (3, 3, 4))
    for split in first:
        assert first[split].to_list() == again[split].to_list()
        shared = set(texts(task, first[split])) & set(texts(task, other[split]))
        assert len(shared) < len(first[split]) / 5


def test_rows_do_not_depend_on_the_process_or_the_platform():
    row = generate("cola", 0, 1, 1)["train"][0]
    assert row == {"sentence": "The sled was wanted by the painter.", "label": 1, "idx": 0}


def test_columns_labels_splits_and_sizes(task: str):
    tests = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(made(task)) == ["train", *tests]
    assert [len(made(task)[split]) for split in made(task)] == [2000] + [500] * len(tests)
    for split in made(task).values():
        assert split.column_names == [*COLUMNS[task], "label", "idx"]
        assert split["idx"][:] == list(range(len(split)))
        label = split.features["label"]
        if task == "stsb":
            assert label == datasets.Value("float32")
        else:
            assert label.names == LABELS[task]
        assert all(text.strip() for row in texts(task, split) for text in row)


def test_sizes_can_be_chosen(task: str):
    assert [len(split) for split in generate(task, 0, 40, 20).values()][:2] == [40, 20]


def test_no_text_occurs_twice(task: str):
    rows = [row for split in made(task).values() for row in texts(task, split)]
    assert len(set(rows)) == len(rows)
    # Nor one that differs in letter case alone, which an uncased model could not tell apart.
    assert len({" | ".join(row).lower() for row in rows}) == len(rows)


def test_labels_are_near_balance(task: str):
    for split in made(task).values():
        labels = split["label"][:]
        if task == "stsb":
            assert 0 <= min(labels) < 0.5 and 4.5 < max(labels) <= 5
            thirds = [sum(lo <= y < lo + 5.1 / 3 for y in labels) for lo in (0, 1.7, 3.4)]
            assert min(thirds) > len(labels) / 5
        else:
            counts = [labels.count(y) for y in range(len(LABELS[task]))]
            assert sum(counts) == len(labels)
            assert max(counts) / len(labels) == pytest.approx(COMMONEST.get(task, 0.5), abs=0.07)


def test_validation_rows_hold_words_unseen_in_train(task: str):
    known = words(texts(task, made(task)["train"]))
    for name, split in made(task).items():
        if name != "train":
            assert share_of_rows_with_unseen_word(texts(task, split), known) > 0.4


def test_every_fifth_entry_of_a_list_is_met_in_validation_only():
    reserved = {word.lower() for table in (GOOD, BAD, NAMES) for word in table[4::5]}
    assert not reserved & words(texts("sst2", made("sst2")["train"]))
    assert len(reserved & words(texts("sst2", made("sst2")["validation"]))) > 40


def test_a_random_tenth_of_train_holds_words_unseen_in_the_rest(task: str):
    rows = texts(task, made(task)["train"])
    random.Random(1).shuffle(rows)
    tenth, rest = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    assert share_of_rows_with_unseen_word(tenth, words(rest)) >= 0.01


def test_rows_are_short(task: str):
    rows = texts(task, made(task)["train"])
    length = sum(len(text.split()) for row in rows for text in row) / len(rows)
    assert length <= (8 if len(COLUMNS[task]) == 1 else 15)
