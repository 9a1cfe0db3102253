"""Bad inputs and what each gets: the tables of docs/bad_input.md, made by trying them.

`python -m tests.faults.bad_inputs` writes them there; tests/faults/test_bad_input_table.py compares.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
from omegaconf import OmegaConf

from condlora.commands.explain import explain
from condlora.glue.sources import load_text
from condlora.glue.splits import make_splits
from condlora.glue.tasks import Task
from condlora.grid.preflight import preflight
from condlora.runs.record import SCHEMA_VERSION, read_cell_record, write_record
from tests.tasks import ROOT, load_task

PAGE = ROOT / "docs" / "bad_input.md"
Attempt = Callable[[Path], object]  # in an empty folder; ends with an error that a user can cause
ROWS = [("a", "good"), ("b", "bad"), ("c", "good"), ("d", "bad")] * 5


def own(labels: tuple[str, ...] | None = ("bad", "good")) -> Task:
    metric = "accuracy" if labels else "pearson"
    return Task("reviews", "reviews", ("text",), labels, (metric,), metric, ("test",), None)


def file(name: str, content: str | bytes, task: Task | None = None) -> Attempt:
    """A user's file as the training and the test set."""

    def attempt(place: Path) -> object:
        path = place / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        chosen = task or own()
        data = {"source": "files", "train": str(path), "test": str(path), "validation": None}
        return make_splits(load_text(OmegaConf.create(data), chosen), chosen, "tenth_of_train")

    return attempt


def csv(*lines: str) -> str:
    return "\n".join(["text,label", *lines, ""])


def jsonl(*labels: object) -> str:
    return "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels)


def parquet(place: Path) -> object:
    table = pyarrow.table({"text": ["a"], "label": [float("nan")]})
    pyarrow.parquet.write_table(table, place / "train.parquet")
    content = (place / "train.parquet").read_bytes()
    return file("train.parquet", content, own(("nan", "good")))(place)


def saved(name: str, columns: dict, feature: object = None) -> Attempt:
    """A GLUE task in a folder that save_to_disk wrote."""

    def attempt(place: Path) -> object:
        task, split = load_task(name), datasets.Dataset.from_dict(columns)
        split = split.cast_column("label", feature) if feature else split
        sets = datasets.DatasetDict({"train": split, **dict.fromkeys(task.test_splits, split)})
        sets.save_to_disk(str(place / name))
        data = OmegaConf.create({"source": "directory", "root": str(place)})
        return make_splits(load_text(data, task), task, "tenth_of_train")

    return attempt


def glue(folder: str, row: str) -> Attempt:
    def attempt(place: Path) -> object:
        (place / folder).mkdir()
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        (place / folder / "train.tsv").write_text(f"{header}\n{row}\n")
        data = OmegaConf.create({"source": "directory", "root": str(place)})
        return load_text(data, load_task("mrpc"))

    return attempt


def copied(place: Path) -> object:
    cell = {"profile": "adhoc", "task": "rte", "adapter": "lora", "seed": 0}
    first = place / "runs/adhoc/rte/lora/seed-0"
    first.mkdir(parents=True)
    record = {"schema_version": SCHEMA_VERSION, "status": "running", "recipe_hash": "0"}
    write_record(first, record | cell)
    shutil.copytree(first, first.with_name("seed-7"))
    return read_cell_record(first.with_name("seed-7"))


def words(*overrides: str) -> Attempt:
    """The words of a training command; FOLDER in them is the empty folder."""

    def attempt(place: Path) -> object:
        (place / "runs-file").write_text("")
        chosen = {o.split("=")[0] for o in overrides}
        fixed = ("backbone=tiny", "data=synthetic", "protocol=embedded", "task=rte", "adapter=lora")
        given = [o.replace("FOLDER", str(place)) for o in overrides]
        return preflight([*(o for o in fixed if o.split("=")[0] not in chosen), *given])

    return attempt


def denied(place: Path) -> object:
    (place / "train.csv").write_text("")
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place / "train.csv"))


def full(place: Path) -> object:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


OWN = ("task=custom", "task.name=reviews", "task.fields=[text]", "task.labels=[bad,good]",
       "data=files", "protocol.learning_rate=1e-3", "protocol.max_steps=10")  # fmt: skip
PAIR = {"sentence1": ["a", "b"], "sentence2": ["c", "d"]}

TABLES: dict[str, dict[str, Attempt]] = {
    "Would be read as something else": {
        "train.tsv: a text begins with a quotation mark, one of a later row ends with one": file("train.tsv", 'text\tlabel\n"a\tgood\nb\tbad\n\nc"\tgood\n'),
        "train.csv: a quotation mark that is not closed": file("train.csv", csv('"a,good', "b,bad")),
        "train.csv: a comma in a text without quotation marks": file("train.csv", csv("a,b,good")),
        "train.csv: a row without its label": file("train.csv", csv("a,good", "b")),
        "train.csv: an empty label": file("train.csv", csv("a,good", "b,")),
        "train.csv: an empty text": file("train.csv", csv(" ,good")),
        "train.csv: a label that is not in task.labels": file("train.csv", csv("a,fine")),
        "train.csv: two columns of one name": file("train.csv", "text,label,label\na,good,bad\n"),
        "train.csv: a no-break space in the header": file("train.csv", "text,label\u00a0\na,good\n"),
        "train.csv in Latin-1": file("train.csv", csv("a,good", "café,bad").encode("latin-1")),
        "train.jsonl: a label that is null, with a class None": file("train.jsonl", jsonl(None), own(("None", "good"))),
        "train.jsonl: one key twice": file("train.jsonl", '{"text": "a", "label": "good", "label": "bad"}\n'),
        "train.parquet: a label that is NaN, with a class nan": parquet,
        "a number of 1e39 to predict": file("train.jsonl", jsonl(1.0, 1e39), own(None)),
        "a number that is not one": file("train.jsonl", jsonl(1.0, "high"), own(None)),
        "MRPC/train.tsv: a tab inside a sentence": glue("MRPC", "1\t2\t3\tOne\tsentence.\tTwo."),
        "a saved RTE whose classes are called no and yes": saved("rte", PAIR | {"label": [0, 1]}, datasets.ClassLabel(names=["no", "yes"])),
        "a saved RTE with a label 2": saved("rte", PAIR | {"label": [0, 2]}),
        "a saved RTE with a row without a label": saved("rte", PAIR | {"label": [0, None]}),
        "a saved STS-B with scores up to 100": saved("stsb", PAIR | {"label": [1.0, 70.0]}),
        "cp -r seed-0 seed-7 among the runs": copied,
    },
    "Would be found after training, or never": {
        "a validation split of one row": file("train.csv", csv(*map(",".join, ROWS[:10]))),
        "a training set of one class": file("train.csv", csv(*["a,good"] * 10)),
        "a number to predict that is constant": file("train.jsonl", jsonl(*[2.5] * 10), own(None)),
        "numbers that differ in the tenth digit": file("train.jsonl", jsonl(*[1e9, 1e9 + 1] * 5), own(None)),
        "fewer than five rows": file("train.csv", csv("a,good", "b,bad")),
        "data.train is not there": words(*OWN, "data.train=FOLDER/none.csv", "data.test=FOLDER/none.csv"),
        "train.csv may not be read": denied,
        "task.name=5": words(*OWN, "task.name=5", "data.train=FOLDER/runs-file", "data.test=FOLDER/runs-file"),
        "task.name=RTE for a task of your own": words(*OWN, "task.name=RTE", "data.train=FOLDER/runs-file", "data.test=FOLDER/runs-file"),
        "task.labels=[null,good]": words(*OWN, "task.labels=[null,good]", "data.train=FOLDER/runs-file", "data.test=FOLDER/runs-file"),
        "protocol.batch_size=0": words("protocol.batch_size=0"),
        "an unknown setting": words("protocol.rate=1"),
        "runs is a file": words("runs=FOLDER/runs-file"),
        "runs=a (1), without quotes": words("runs=a (1)"),
        "runs=${DATA}/runs, in single quotes": words("runs=${DATA}/runs"),
    },
}  # fmt: skip


def message(attempt: Attempt) -> str:
    """The message that a user gets, without the folder in which the input was tried."""
    with tempfile.TemporaryDirectory() as place:
        try:
            attempt(Path(place).resolve())
        except Exception as error:
            said = explain(error)
            assert said is not None, f"a traceback: {type(error).__name__}: {error}"
            return said.replace(f"{Path(place).resolve()}/", "")
    raise AssertionError("nothing was refused")


def table(attempts: dict[str, Attempt]) -> str:
    """The rows of a table: input and message."""
    lines = ["| input | message |", "| --- | --- |"]
    for name, attempt in attempts.items():
        text = re.sub(r"\s+", " ", message(attempt)).replace("|", "\\|")
        lines.append(f"| {name} | `` {text} `` |" if "`" in text else f"| {name} | `{text}` |")
    return "\n".join(lines)


def updated(page: str) -> str:
    """The page with its tables made again."""
    for title, attempts in TABLES.items():
        start = page.index("| input | message |", page.index(f"## {title}\n"))
        end = start + len(re.match(r"(?:\|.*\n)+", page[start:])[0])
        page = page[:start] + table(attempts) + "\n" + page[end:]
    return page


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
