"""Data that would be read, trained on or averaged as something else than it is: refused, or read as what it says."""

import datasets
import pytest
from omegaconf import OmegaConf

from condlora.errors import DataError
from condlora.glue import custom
from condlora.glue.sources import load_text
from condlora.glue.splits import make_splits
from condlora.glue.tasks import Task
from tests.tasks import load_task

OWN = Task("own", "own", ("text",), ("bad", "good"), ("accuracy",), "accuracy", ("test",), None)


def saved(folder, task, labels, feature):
    """A folder that save_to_disk wrote, with these labels in both splits."""
    columns = {field: [f"{field} {i}" for i in range(len(labels))] for field in task.fields}
    features = {field: datasets.Value("string") for field in task.fields} | {"label": feature}
    split = datasets.Dataset.from_dict(columns | {"label": labels}, datasets.Features(features))
    sets = datasets.DatasetDict({"train": split, **dict.fromkeys(task.test_splits, split)})
    sets.save_to_disk(str(folder / task.name))
    return OmegaConf.create({"source": "directory", "root": str(folder)})


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("mrpc", ["equivalent", "not_equivalent"]),
        ("rte", ["not_entailment", "entailment"]),
        ("mnli", ["contradiction", "entailment", "neutral"]),
        ("sst2", ["positive", "negative"]),
    ],
)
def test_classes_of_a_saved_set_are_matched_by_name(tmp_path, name, names):
    task = load_task(name)
    data = saved(tmp_path, task, list(range(len(names))), datasets.ClassLabel(names=names))
    loaded = load_text(data, task)["train"]
    assert [task.labels[label] for label in loaded["label"]] == names


def test_words_as_labels_of_a_saved_set_are_read_by_name(tmp_path):
    task = load_task("rte")
    words = ["not_entailment", "entailment"]
    loaded = load_text(saved(tmp_path, task, words, datasets.Value("string")), task)["train"]
    assert [task.labels[label] for label in loaded["label"]] == words


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0, 1], datasets.ClassLabel(names=["no", "yes"])),
        (["entailment", "neither"], datasets.Value("string")),
    ],
)
def test_a_class_that_the_task_does_not_have_is_refused_with_its_row(tmp_path, labels, feature):
    task = load_task("rte")
    with pytest.raises(DataError, match=r"split train, row [12]: the label is '\w+', and RTE has"):
        load_text(saved(tmp_path, task, labels, feature), task)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("MRPC", "1\t2\t3\tOne\tsentence.\tTwo."),
        ("RTE", "0\tOne.\tTwo.\tentailment\textra"),
        ("CoLA", "gj04\t1\t\tA\tsentence."),
        ("SST-2", "a\tfilm\t1"),
    ],
)
def test_too_many_cells_in_a_row_of_a_glue_file_are_refused(tmp_path, name, row):
    headers = {
        "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
        "RTE": "index\tsentence1\tsentence2\tlabel\n",
        "CoLA": "",
        "SST-2": "sentence\tlabel\n",
    }
    task = next(t for t in map(load_task, ("mrpc", "rte", "cola", "sst2")) if t.title == name)
    folder = tmp_path / name
    folder.mkdir()
    for stem in ("train", "dev"):
        (folder / f"{stem}.tsv").write_text(headers[name] + row + "\n")
    line = 2 if headers[name] else 1
    with pytest.raises(DataError, match=rf"train.tsv, line {line} has \d cells for \d columns"):
        load_text(OmegaConf.create({"source": "directory", "root": str(tmp_path)}), task)


def rows_of(path, quoting="standard"):
    return [row["text"] for _, row in custom.read_rows(path, OWN, quoting)]


@pytest.mark.parametrize(("name", "tab"), [("own.tsv", "\t"), ("own.csv", ",")])
def test_a_quotation_mark_that_swallows_rows_is_refused(tmp_path, name, tab):
    rows = [f"text {i}{tab}good" for i in range(8)]
    rows[2], rows[5] = f'"begins{tab}good', f'ends"{tab}good'
    path = tmp_path / name
    path.write_text("\n".join([f"text{tab}label", *rows, ""]))
    with pytest.raises(
        DataError, match=r"line 4: a cell in quotation marks spans 4 lines that are rows"
    ):
        rows_of(path)
    assert len(rows_of(path, "none")) == 8
    assert rows_of(path, "none")[2] == '"begins'


def test_a_quoted_text_of_several_lines_is_read(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text('text,label\n"One, two,\nthree, four",good\n"a ""word""",bad\n')
    assert rows_of(path) == ["One, two,\nthree, four", 'a "word"']


@pytest.mark.parametrize(
    "content", ['{"text": "a", "label": null}\n', '{"text": "a", "label": ""}\n']
)
def test_a_missing_label_is_no_class_even_if_a_class_is_called_none(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    task = Task(
        "own", "own", ("text",), ("None", "some"), ("accuracy",), "accuracy", ("test",), None
    )
    data = OmegaConf.create({"train": str(path), "validation": None, "test": str(path)})
    with pytest.raises(DataError, match=r"line 1: 'label' is"):
        custom.from_files(data, task)


def test_a_header_with_an_invisible_character_is_shown(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text ,label\u00a0\na,good\n")
    with pytest.raises(DataError, match=r"no column 'text' but 'text ', 'label\\xa0'"):
        rows_of(path)


@pytest.mark.parametrize("headline", ["matthews_correlation", "f1", "pearson"])
def test_a_validation_split_on_which_the_headline_metric_has_no_value_is_refused(headline):
    labels = None if headline == "pearson" else ("bad", "good")
    task = Task("own", "own", ("text",), labels, (headline,), headline, ("test",), None)
    values = [0.0, 1.0] if labels is None else [0, 1]
    text = {"text": [str(i) for i in range(10)], "label": values * 5}
    split = datasets.Dataset.from_dict(text)
    with pytest.raises(
        DataError, match="The validation split of own has 1 rows and a single label"
    ):
        make_splits(datasets.DatasetDict(train=split, test=split), task, "tenth_of_train")
