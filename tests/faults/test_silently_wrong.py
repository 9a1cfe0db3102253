"""Data that would be read, trained on or averaged as something else than it is: refused, or read as what it says.

Of the same kind: variables of the environment in tests/training/test_finetune.py, copied folders in
tests/grid/test_places.py.
"""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from condlora.errors import DataError
from condlora.glue import custom
from condlora.glue.sources import load_text
from condlora.glue.splits import make_splits
from condlora.glue.tasks import Task
from condlora.runs.settings import own_task_faults
from tests.tasks import load_task

OWN = Task("own", "own", ("text",), ("bad", "good"), ("accuracy",), "accuracy", ("test",), None)


def saved(folder, task, labels, feature, texts=None):
    """A folder that save_to_disk wrote, with these labels in both splits."""
    columns = {
        field: texts or [f"{field} {i}" for i in range(len(labels))] for field in task.fields
    }
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


VALUE = datasets.Value


@pytest.mark.parametrize(
    ("name", "labels", "feature", "texts", "says"),
    [
        ("rte", [0, 1, None], VALUE("int64"), None, r"row 3: 'label' is missing"),
        ("rte", [0, None], datasets.ClassLabel(2), None, r"row 2: 'label' is missing"),
        ("rte", [0, 2], VALUE("int64"), None, r"Row 2 of rte's split 'train' has the label 2"),
        ("rte", [0.0, 0.5], VALUE("float64"), None, r"Row 2 of rte's split 'train' has the label 0.5"),
        ("stsb", ["1.5", "2"], VALUE("string"), None, "the labels are text and not numbers"),
        ("stsb", [1.0, 70.0], VALUE("float64"), None, r"row 2: 70.0 is not a score from 0 to 5"),
        ("stsb", [1.0, None], VALUE("float64"), None, r"row 2: 'label' is missing"),
        ("rte", [0, 1], VALUE("int64"), ["a", None], r"row 2: 'sentence1' is missing"),
    ],
)  # fmt: skip
def test_values_of_a_saved_set_that_are_none_of_the_task_are_refused(
    tmp_path, name, labels, feature, texts, says
):
    task = load_task(name)
    data = saved(tmp_path, task, labels, feature, texts)
    with pytest.raises(DataError, match=says):
        make_splits(load_text(data, task), task, "tenth_of_train")


def test_texts_of_a_saved_set_that_are_numbers_are_refused(tmp_path):
    task = load_task("sst2")
    split = datasets.Dataset.from_dict({"sentence": [1, 2], "label": [0, 1]})
    sets = datasets.DatasetDict(train=split, validation=split)
    sets.save_to_disk(str(tmp_path / "sst2"))
    with pytest.raises(DataError, match="split train: the column 'sentence' is not text"):
        load_text(OmegaConf.create({"source": "directory", "root": str(tmp_path)}), task)


def test_a_damaged_saved_set_is_one_sentence(tmp_path):
    task = load_task("rte")
    data = saved(tmp_path, task, [0, 1], VALUE("int64"))
    (arrow,) = (tmp_path / "rte/train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(DataError, match="rte cannot be read .*: save the set again"):
        load_text(data, task)


def rows_of(path, quoting="checked"):
    return [row["text"] for _, row in custom.read_rows(path, OWN, quoting)]


@pytest.mark.parametrize(("name", "tab"), [("own.tsv", "\t"), ("own.csv", ",")])
def test_a_quotation_mark_that_swallows_rows_is_refused(tmp_path, name, tab):
    rows = [f"text {i}{tab}good" for i in range(8)]
    rows[2], rows[5] = f'"begins{tab}good', f'ends"{tab}good'
    path = tmp_path / name
    path.write_text("\n".join([f"text{tab}label", *rows, ""]))
    with pytest.raises(
        DataError,
        match=r"line 4: a cell in quotation marks spans 4 lines, and 4 of them are rows by themselves",
    ):
        rows_of(path)
    assert len(rows_of(path, "none")) == 8
    assert rows_of(path, "none")[2] == '"begins'


@pytest.mark.parametrize("odd", ["", "one cell", "a,b,good", "text,unknown"])
def test_rows_are_swallowed_even_if_one_of_them_is_blank_or_odd(tmp_path, odd):
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["text,label", '"begins,good', "text,bad", odd, 'ends",good', ""]))
    with pytest.raises(DataError, match=r"line 2: .* spans 4 lines, and 3 of them are rows"):
        rows_of(path)


def test_a_quoted_text_that_holds_a_table_is_read_if_asked_for(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text('text,label\n"salt,good\npepper,bad\nsugar",good\n')
    with pytest.raises(DataError, match=r"if it is one text, add \+data.quoting=standard"):
        rows_of(path)
    assert rows_of(path, "standard") == ["salt,good\npepper,bad\nsugar"]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"text": "a", "text": "b", "label": "good"}', "a.jsonl, line 1"),
        ("a.jsonl", '{"text": "a", "label": "bad", "label": "good"}', "a.jsonl, line 1"),
        ("a.json", '[{"text": "a", "label": "bad", "label": "good"}]', "a.json, row 1"),
    ],
)
def test_a_key_that_stands_twice_in_an_object_is_refused(tmp_path, name, content, place):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{place} has the key '\w+' twice"):
        rows_of(path)


def test_a_column_that_stands_twice_in_a_parquet_file_is_refused(tmp_path):
    columns = [pyarrow.array(["a"]), pyarrow.array(["good"]), pyarrow.array(["bad"])]
    table = pyarrow.Table.from_arrays(columns, names=["text", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="names a column twice"):
        rows_of(tmp_path / "a.parquet")


def test_a_quoted_text_of_several_lines_is_read(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text('text,label\n"One, two,\nthree, four",good\n"a ""word""",bad\n')
    assert rows_of(path) == ["One, two,\nthree, four", 'a "word"']


NAMED = Task("own", "own", ("text",), ("None", "nan", "-1"), ("accuracy",), "accuracy", ("test",), None)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("train.jsonl", "null"),
        ("train.jsonl", '""'),
        ("train.jsonl", "NaN"),
        ("train.json", "null"),
        ("train.json", "NaN"),
        ("train.csv", ""),
        ("train.tsv", " "),
        ("train.parquet", None),
        ("train.parquet", float("nan")),
    ],
)
def test_a_missing_label_is_no_class_whatever_the_classes_are_called(tmp_path, name, label):
    path = tmp_path / name
    row = f'{{"text": "a", "label": {label}}}'
    if path.suffix == ".parquet":
        columns = {"text": ["a", "b"], "label": pyarrow.array([label, label], pyarrow.float64())}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        texts = {".jsonl": row, ".json": f"[{row}]", ".csv": f"text,label\na,{label}\n",
                 ".tsv": f"text\tlabel\na\t{label}\n"}  # fmt: skip
        path.write_text(texts[path.suffix])
    data = OmegaConf.create({"train": str(path), "validation": None, "test": str(path)})
    with pytest.raises(DataError, match=r"(line|row) [12]: 'label' is (missing|' ?')"):
        custom.from_files(data, NAMED)


@pytest.mark.parametrize("label", [-1, None])
def test_a_hidden_label_of_a_set_is_no_class_even_if_a_class_is_called_so(tmp_path, label):
    features = datasets.Features(text=VALUE("string"), label=datasets.ClassLabel(names=["-1"]))
    columns = {"text": ["a", "b"], "label": [0, label]}
    split = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict(train=split, test=split).save_to_disk(str(tmp_path / "set"))
    data = {"dataset": str(tmp_path / "set"), "train": "train", "validation": None, "test": "test"}
    with pytest.raises(DataError, match=r"split train, row 2: 'label' is (-1|missing)"):
        custom.from_dataset(OmegaConf.create(data), NAMED)


@pytest.mark.parametrize("labels", [[None, "good"], ["", "good"], ["good", " "]])
def test_classes_without_a_name_are_refused(labels):
    facts = {"name": "own", "fields": ["text"], "label": "label", "labels": labels,
             "metrics": ["accuracy"], "headline": "accuracy"}  # fmt: skip
    (said,) = own_task_faults(facts)
    assert "has an empty label, which in the data is a missing one" in said


NUMBERS = Task("own", "own", ("text",), None, ("pearson",), "pearson", ("test",), None)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1e39, "line 2: 'label' is 1e\\+39, and squares of such numbers overflow"),
        (-1e16, "line 2: 'label' is -1e\\+16, and squares"),
        (10**400, "line 2: 'label' is 1000000000.*, which is not a number"),
        ("1e999", "line 2: 'label' is '1e999', which is not a number"),
    ],
)
def test_numbers_beyond_float32_are_refused(tmp_path, value, says):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "a", "label": {json.dumps(v)}}}\n' for v in (1, value)))
    data = OmegaConf.create({"train": str(path), "validation": None, "test": str(path)})
    with pytest.raises(DataError, match=says) as raised:
        custom.from_files(data, NUMBERS)
    assert len(str(raised.value)) < 250


def test_a_header_with_an_invisible_character_is_shown(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text ,label\u00a0\na,good\n")
    with pytest.raises(DataError, match=r"no column 'text'; the columns are 'text ', 'label\\xa0'"):
        rows_of(path)
