"""A user's own data: every kind of file gives the same rows, and what is wrong with one is said where it stands."""

import json
import re
import shutil

import datasets
import pandas as pd
import pytest
from omegaconf import OmegaConf

from condlora.commands.explain import explain
from condlora.errors import ConfigError, DataError, NetworkError, UserError
from condlora.glue.sources import load_text
from condlora.glue.tasks import Task
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import run_folder
from condlora.training import run as finetune
from condlora.training.data import prepare

STARS = ["bad", "good"]
ROWS = [
    {"title": f'Book "{i}"', "body": f"It was, I\nthink, {STARS[i % 2]}é.", "stars": STARS[i % 2]}
    for i in range(40)
]


def write(path, rows):
    """Rows to a file of the kind its name says."""
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        table.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.to_parquet(path)
    return path


def make_task(labels=STARS, **changes):
    facts = {
        "name": "mine", "title": "mine", "fields": ("title", "body"), "labels": labels and tuple(labels),
        "metrics": ("accuracy",), "headline": "accuracy", "test_splits": ("test",), "official_rows": None,
        "label": "stars",
    }  # fmt: skip
    return Task(**(facts | changes))


def files(train, test, validation=None):
    named = {"train": str(train), "test": str(test), "validation": validation and str(validation)}
    return OmegaConf.create({"source": "files"} | named)


def as_set(rows, features=None):
    part = datasets.Dataset.from_list(rows, features=features)
    return datasets.DatasetDict(train=part, test=part.select(range(10)))


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    path = write(tmp_path / f"all.{kind}", ROWS)
    text = load_text(files(path, path, path), make_task())
    assert set(text) == {"train", "validation", "test"}
    expected = {
        "title": [row["title"] for row in ROWS],
        "body": [row["body"] for row in ROWS],
        "label": [i % 2 for i in range(40)],
    }
    assert text["train"].to_dict() == text["test"].to_dict() == expected


def test_byte_order_mark_windows_line_ends_and_empty_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftitle,body,stars\r\na,b,good\r\n\r\nc,d,bad\r\n")
    text = load_text(files(path, path), make_task())
    assert text["train"].to_dict() == {"title": ["a", "c"], "body": ["b", "d"], "label": [1, 0]}


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ([0, 1], [0, 1]),
        ([0, 1], ["0", "1"]),
        ([0, 1], [0.0, 1.0]),
        (["no", "yes"], ["no", "yes "]),
        ([False, True], [False, True]),
        ([1, 5, 3], [1, 5]),
    ],
)
def test_labels_are_words_or_numbers_whatever_the_file_makes_of_them(tmp_path, labels, values):
    rows = [{"title": "a", "body": "b", "stars": value} for value in values]
    for kind in ("csv", "jsonl", "parquet"):
        path = write(tmp_path / f"a.{kind}", rows)
        assert load_text(files(path, path), make_task(labels))["train"]["label"][:] == [0, 1]


def test_regression_takes_numbers(tmp_path):
    rows = [{"title": "a", "body": "b", "stars": value} for value in (-1.5, 2, 1e3)]
    path = write(tmp_path / "a.csv", rows)
    text = load_text(files(path, path), make_task(None))
    assert text["train"]["label"][:] == [-1.5, 2.0, 1000.0]


GOOD = "title,body,stars\na,b,good\n"
WRONG = {
    "missing column": ("a.csv", "title,stars\na,good\n", r"a.csv, line 1: there is no column 'body'; the columns are title, stars"),
    "missing key": ("a.jsonl", '{"title": "a", "body": "b", "stars": "bad"}\n{"title": "a"}', r"a.jsonl, line 2: there is no column 'body'"),
    "unknown label": ("a.csv", GOOD + "c,d,fine\n", r"a.csv, line 3: 'stars' is 'fine', which is not one of task.labels \(bad, good\)"),
    "line after a line break in a cell": ("a.csv", GOOD + '"c\nc",d,good\nc,d,fine\n', r"a.csv, line 5: 'stars' is 'fine'"),
    "label that is not there": ("a.json", '[{"title": "a", "body": "b", "stars": null}]', r"a.json, row 1: 'stars' is missing"),
    "empty text": ("a.csv", GOOD + "c, ,bad\n", r"a.csv, line 3: 'body' is empty"),
    "text that is none": ("a.jsonl", '{"title": 3, "body": "b", "stars": "bad"}', r"a.jsonl, line 1: 'title' is 3, which is not text"),
    "not UTF-8": ("a.csv", b"title,body,stars\na,b,good\ncaf\xe9,d,bad\n", r"a.csv, line 3 is not UTF-8"),
    "empty file": ("a.csv", "", r"a.csv is empty"),
    "header alone": ("a.csv", "title,body,stars\n", r"a.csv has no rows"),
    "column twice": ("a.csv", "title,body,stars,stars\na,b,good,bad\n", r"a.csv, line 1 names a column twice"),
    "too few cells": ("a.csv", GOOD + "c,d\n", r"a.csv, line 3 has 2 cells for 3 columns"),
    "open quotation mark": ("a.csv", GOOD + 'c,"d,bad\ne,f,bad\n', r"a.csv, line 3 cannot be read"),
    "unknown kind": ("a.xlsx", "x", r"a.xlsx is of an unknown kind: use .csv, .tsv, .json, .jsonl, .parquet"),
    "no JSON": ("a.jsonl", '{"title": "a", "body": "b", "stars": "bad"}\n{"title":', r"a.jsonl, line 2 is not valid JSON"),
    "no JSON either": ("a.json", '[{"title": "a",\n"body" "b"}]', r"a.json, line 2 is not valid JSON"),
    "no list": ("a.json", '{"title": "a"}', r"a.json is not a list of objects"),
    "no object": ("a.json", "[3]", r"a.json, row 1 is not an object"),
    "byte order mark alone": ("a.csv", b"\xef\xbb\xbf", r"a.csv is empty"),
    "half a character": ("a.jsonl", '{"title": "\\ud800", "body": "b", "stars": "bad"}', r"a.jsonl, line 1: 'title' holds half a character"),
    "too deep": ("a.json", "[" * 100_000, r"a.json, line 1 is not valid JSON"),
    "no parquet": ("a.parquet", "PAR1 and more", r"a.parquet cannot be read as parquet"),
}  # fmt: skip


def test_a_long_text_is_read_whole(tmp_path):
    path = write(tmp_path / "a.csv", [row | {"body": "x" * 200_000} for row in ROWS[:2]])
    assert len(load_text(files(path, path), make_task())["train"][0]["body"]) == 200_000


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_where_it_stands(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as raised:
        load_text(files(path, path), make_task())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", ["high", "nan", "inf", "", True, None])
def test_regression_on_what_is_no_number_is_refused(tmp_path, value):
    rows = [{"title": "a", "body": "b", "stars": v} for v in (1.0, value)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"a.jsonl, line 2: 'stars' is .*, which is not a number"):
        load_text(files(path, path), make_task(None))


def test_folder_in_place_of_a_file_is_said(tmp_path):
    with pytest.raises(DataError, match="is a folder: .* use data=dataset"):
        load_text(files(tmp_path, tmp_path), make_task())


def saved_set(folder, **settings):
    defaults = {
        "config": None,
        "revision": None,
        "train": "train",
        "validation": None,
        "test": "test",
    }
    return OmegaConf.create({"source": "dataset", "dataset": str(folder)} | defaults | settings)


def test_a_saved_set_goes_by_the_names_of_its_classes(tmp_path):
    kinds = datasets.Features(
        title=datasets.Value("string"), body=datasets.Value("string"),
        stars=datasets.ClassLabel(names=["good", "bad"]),
    )  # fmt: skip
    as_set(ROWS, kinds).save_to_disk(tmp_path / "mine")
    text = load_text(saved_set(tmp_path / "mine"), make_task())
    assert text["train"]["label"][:] == [i % 2 for i in range(40)]
    assert len(text["test"]) == 10
    with pytest.raises(
        DataError, match=r"has no split 'dev' but train, test: set data.validation="
    ):
        load_text(saved_set(tmp_path / "mine", validation="dev"), make_task())


def test_a_saved_set_that_is_none_or_one_split_or_lacks_a_column_is_said(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="is no folder that save_to_disk wrote"):
        load_text(saved_set(tmp_path / "none"), make_task())
    as_set(ROWS)["train"].save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="is one split"):
        load_text(saved_set(tmp_path / "one"), make_task())
    as_set(ROWS).remove_columns("body").save_to_disk(tmp_path / "less")
    with pytest.raises(DataError, match=r"split train: there is no column 'body'"):
        load_text(saved_set(tmp_path / "less"), make_task())


def test_a_set_of_the_hub_is_asked_for_at_a_commit(monkeypatch):
    asked = []

    def stand_in(*names, revision):
        asked.append((*names, revision))
        if len(asked) == 2:
            raise ConnectionError("no route to host")
        return as_set(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    with pytest.raises(DataError, match=r"a commit is needed: set data.revision="):
        load_text(saved_set("me/mine", revision="main"), make_task())
    assert not asked
    hub = saved_set("me/mine", revision="0" * 40, config="en")
    assert len(load_text(hub, make_task())["train"]) == 40
    assert asked == [("me/mine", "en", "0" * 40)]
    with pytest.raises(NetworkError, match="go online once, or use data=files"):
        load_text(hub, make_task())


OWN = (
    "task=custom", "task.name=mine", "task.fields=[title,body]", "task.label=stars", "task.labels=[bad,good]",
    "data=files", "protocol.learning_rate=1e-2", "adapter=lora",
)  # fmt: skip


@pytest.fixture
def own(tmp_path, tiny_cells):
    """A function (*overrides) -> the config of a run on files of the user's."""
    for name in ("train.csv", "test.csv"):
        write(tmp_path / name, ROWS if name == "train.csv" else ROWS[:20])
    places = (f"data.train={tmp_path}/train.csv", f"data.test={tmp_path}/test.csv")

    def compose(*overrides, without=()):
        chosen = {*without, *(o.split("=")[0] for o in overrides)}
        words = [o for o in (*OWN, *places) if o.split("=")[0] not in chosen]
        return tiny_cells(*words, *overrides)[0]

    return compose


def test_a_run_on_own_files_is_scored_and_says_what_it_read(own):
    cfg = own("task.metrics=[accuracy,f1]")
    record = finetune.run(cfg)
    assert run_folder(cfg).parts[-3] == "mine"
    assert set(record["test"]) == {"accuracy", "f1"}
    assert record["data"]["counts"] == {"train": 36, "validation": 4, "test": 20}
    assert record["data"]["labels"] == STARS
    assert record["data"]["official_counts"] is False
    assert set(record["data"]["split_sha256"]) == {"train", "validation", "test"}
    predicted = pd.read_parquet(run_folder(cfg) / "predictions_test.parquet")
    assert record["test"]["accuracy"] == (predicted.label == predicted.prediction).mean()


def test_a_regression_on_own_files(own, tmp_path):
    rows = [row | {"stars": i / 7} for i, row in enumerate(ROWS)]
    for name in ("train.csv", "test.csv"):
        write(tmp_path / name, rows)
    record = finetune.run(
        own("task.labels=null", "task.metrics=[pearson,spearman]", "protocol.precision=no")
    )
    assert set(record["test"]) == {"pearson", "spearman"}


def test_a_validation_file_takes_the_place_of_the_held_out_tenth(own, tmp_path):
    path = write(tmp_path / "dev.jsonl", ROWS[:7])
    counts = {
        limit: prepare(own(f"data.validation={path}", f"+protocol.validation_limit={limit}")).description
        for limit in ("null", 5)
    }  # fmt: skip
    assert counts["null"]["counts"] == {"train": 40, "validation": 7, "test": 20}
    assert counts[5]["counts"] == {"train": 40, "validation": 5, "test": 20}
    with pytest.raises(ConfigError, match="leave one of them out"):
        prepare(own(f"data.validation={path}", "protocol.validation=test"))


def test_too_few_rows_to_hold_a_tenth_out_are_said(own, tmp_path):
    write(tmp_path / "train.csv", ROWS[:4])
    with pytest.raises(DataError, match="A tenth of the 4 rows .* give more rows"):
        prepare(own())


def test_recipe_follows_the_content_of_files_and_not_their_place(own, tmp_path):
    before = recipe_hash(recipe(own()))
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("moved"))
    moved = own(f"data.train={tmp_path}/moved/train.csv", f"data.test={tmp_path}/moved/test.csv")
    assert recipe_hash(recipe(moved)) == before
    first = prepare(own()).description["split_sha256"]
    write(tmp_path / "train.csv", ROWS[::-1])
    assert recipe_hash(recipe(own())) != before
    assert prepare(own()).description["split_sha256"]["train"] != first["train"]


def test_recipe_follows_the_content_of_a_saved_set(own, tmp_path):
    as_set(ROWS).save_to_disk(tmp_path / "set")
    words = ("data=dataset", f"data.dataset={tmp_path}/set", "data.train=train", "data.test=test")

    def digest():
        cfg = own(*words)
        return recipe(cfg)["data"]["dataset"]

    before = digest()
    assert re.fullmatch("[0-9a-f]{64}", before)
    shutil.rmtree(tmp_path / "set")
    as_set(ROWS[1:]).save_to_disk(tmp_path / "set")
    assert digest() != before


SENTENCES = [
    (("task.name=rte",), "task.name=rte is taken"),
    (("task.fields=title",), "Invalid value task.fields='title'; expected one or two columns"),
    (("task.fields=[a,b,c]",), "expected one or two columns"),
    (("task.fields=[title,title]",), "holds a column twice"),
    (("task.fields=[stars]",), "holds a column twice, or the label's"),
    (("task.fields=[label]",), "or one named label"),
    (("task.labels=[bad]",), "expected two or more different labels"),
    (("task.labels=[1,1.0]",), "expected two or more different labels"),
    (("task.labels=bad",), "expected two or more different labels"),
    (("task.labels=null",), "task.metrics=['accuracy'] does not fit task.labels=None: choose of pearson, spearman"),
    (("task.metrics=[pearson]",), "choose of accuracy, f1, matthews_correlation"),
    (("task.metrics=[f1]", "task.labels=[a,b,c]"), "task.metrics has f1, which needs two labels"),
    (("task.headline=f1",), "task.headline=f1 is none of task.metrics"),
    (("protocol=authors", "~protocol.learning_rate"),
     "has no learning_rate, epochs, early_stopping_patience for adapter 'lora' on task 'mine': set "
     "protocol.learning_rate=... protocol.epochs=... protocol.early_stopping_patience=... or choose"),
    (("data.test=nowhere.csv",), "data.test=nowhere.csv does not exist"),
    (("~data.test",), "data.test is not set: add data.test=... to the command"),
    (("~task.name",), "task.name is not set: add task.name=... to the command"),
    (("data=synthetic", "~data.train", "~data.test"), "data=synthetic has no text of the task 'mine': choose data=files|dataset"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), SENTENCES, ids=[str(o[0]) for o, _ in SENTENCES])
def test_a_task_without_meaning_is_one_sentence(own, overrides, message):
    without = [o.lstrip("~") for o in overrides if o.startswith("~")]
    chosen = [o for o in overrides if not o.startswith("~")]
    try:
        cfg = own(*chosen, without=without)
        recipe(cfg)
        finetune.run(cfg)
        said = None
    except Exception as error:
        said = explain(error)
    assert said is not None and message in said, said


def test_a_task_of_glue_has_no_use_for_own_files(tiny_cells, tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    (cfg,) = tiny_cells("task=rte", "data=files", f"data.train={path}", f"data.test={path}")
    with pytest.raises(UserError, match=r"choose data=hub\|directory\|synthetic or task=custom"):
        prepare(cfg)
