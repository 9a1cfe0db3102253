"""What may not be read is called so, by the file or folder that it is, and is neither repeated nor renamed.

Each case is tried in a process without root's rights, which these tests may have.
"""

import errno
import os
import tempfile
from pathlib import Path

import datasets
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from condlora.commands.explain import explain
from condlora.errors import UnreadableRun
from condlora.glue.sources import load_text
from condlora.glue.tasks import Task
from condlora.grid import listing
from condlora.models.backbones import load_backbone
from condlora.runs.continuing import make_room
from condlora.runs.lease import Claim
from condlora.runs.record import (
    REQUIRED_FILES,
    SCHEMA_VERSION,
    finished_record,
    read_cell_record,
    write_record,
)
from condlora.tuner.io.adapter_folder import load_adapted
from tests.faults.harness import said_without_root
from tests.tasks import load_task

OWN = Task("own", "own", ("text",), ("bad", "good"), ("accuracy",), "accuracy", ("test",), None)


@pytest.fixture
def place():
    """A folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def own_files(place, name):
    (place / name).write_text("text,label\na,good\n")
    data = {"source": "files", "train": place / name, "test": place / name, "validation": None}
    return lambda: load_text(OmegaConf.create({k: v and str(v) for k, v in data.items()}), OWN)


def glue_file(place):
    (place / "RTE").mkdir()
    (place / "RTE/train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n")
    data = OmegaConf.create({"source": "directory", "root": str(place)})
    return lambda: load_text(data, load_task("rte"))


def saved_set(place, source):
    texts = {"sentence1": ["a"], "sentence2": ["b"], "text": ["a"], "label": [0]}
    split = datasets.Dataset.from_dict(texts)
    datasets.DatasetDict(train=split, test=split, validation=split).save_to_disk(str(place / "rte"))
    names = {"train": "train", "test": "test", "validation": None}
    data = {"source": source, "root": str(place), "dataset": str(place / "rte")} | names
    task = OWN if source == "dataset" else load_task("rte")
    return lambda: load_text(OmegaConf.create(data), task)


def backbone(place):
    (place / "m").mkdir()
    for name in ("config.json", "model.safetensors"):
        (place / "m" / name).write_text("{}")
    cfg = OmegaConf.create({"name": "m", "source": "folder", "path": str(place / "m")})
    return lambda: load_backbone(cfg, num_labels=2)


def adapter(place):
    (place / "a").mkdir()
    (place / "a/adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"x": torch.ones(1)}, place / "a/adapter_model.safetensors")
    return lambda: load_adapted(place / "a")


def run(place):
    folder = place / "runs/adhoc/rte/lora/seed-0"
    (folder / "adapter").mkdir(parents=True)
    for name in REQUIRED_FILES:
        (folder / name).write_text(name)
    record = {"schema_version": SCHEMA_VERSION, "status": "done", "recipe_hash": "another"}
    cell = {"profile": "adhoc", "task": "rte", "adapter": "lora", "seed": 0}
    write_record(folder, record | cell)
    return folder


READING = {
    "train.csv": (lambda p: own_files(p, "train.csv"), "train.csv"),
    "train.tsv": (lambda p: own_files(p, "train.tsv"), "train.tsv"),
    "train.json": (lambda p: own_files(p, "train.json"), "train.json"),
    "train.jsonl": (lambda p: own_files(p, "train.jsonl"), "train.jsonl"),
    "train.parquet": (lambda p: own_files(p, "train.parquet"), "train.parquet"),
    "a file of GLUE": (glue_file, "RTE/train.tsv"),
    "a saved set of GLUE": (lambda p: saved_set(p, "directory"), "rte/dataset_dict.json"),
    "a saved set": (lambda p: saved_set(p, "dataset"), "rte/dataset_dict.json"),
    "the config of a model": (backbone, "m/config.json"),
    "the weights of a model": (backbone, "m/model.safetensors"),
    "the config of an adapter": (adapter, "a/adapter_config.json"),
}


@pytest.mark.parametrize("name", READING)
def test_a_file_that_may_not_be_read_is_called_so(place, name):
    make, file = READING[name]
    work = make(place)
    os.chmod(place / file, 0)
    assert said_without_root(work) == (
        f"No permission to read {place / file}: change its permissions, or choose another file or folder."
    )


def test_the_weights_of_an_adapter_that_may_not_be_read_are_called_so(place):
    work = adapter(place)
    os.chmod(place / "a/adapter_model.safetensors", 0)
    assert said_without_root(work).startswith("No permission to read")


@pytest.mark.parametrize("folder", ["RTE", "m", "runs", "runs/adhoc/rte"])
def test_a_folder_that_may_not_be_entered_is_called_so(place, folder):
    work = {"RTE": glue_file, "m": backbone}.get(folder, lambda p: None)(place)
    if work is None:
        run(place)

        def work():
            return listing.survey("adhoc", place / "runs")

    os.chmod(place / folder, 0)
    said = said_without_root(work)
    os.chmod(place / folder, 0o755)
    assert said.startswith("No permission to ") and f"folder {place / folder}:" in said


@pytest.mark.parametrize("file", ["record.json", "adapter/adapter_model.safetensors"])
def test_a_run_that_may_not_be_read_is_neither_damaged_nor_done_again(place, file):
    folder = run(place)
    os.chmod(folder / file, 0)
    for work in (
        lambda: read_cell_record(folder),
        lambda: finished_record(folder, "another"),
        lambda: make_room(folder, {}),
    ):
        assert said_without_root(work) == (
            f"{folder / file} cannot be read (Permission denied): change its permissions or check the disk."
        )
    assert [path.name for path in folder.parent.iterdir()] == ["seed-0"]


def test_a_disk_that_fails_while_a_record_is_read_renames_nothing(place, monkeypatch):
    folder = run(place)

    def failing(path, *_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_text", failing)
    with pytest.raises(UnreadableRun, match=r"record.json cannot be read \(Input/output error\)"):
        make_room(folder, {})
    assert folder.is_dir()


def test_a_folder_that_may_not_be_written_is_called_so(place):
    (place / "runs").mkdir()

    def work():
        with Claim(place / "runs/adhoc/rte/lora/seed-0"):
            pass

    assert said_without_root(work).startswith(f"No permission to write {place / 'runs/adhoc'}")


@pytest.mark.parametrize(
    ("make", "number", "says"),
    [
        (lambda p: p.write_text(""), errno.EACCES, "No permission to read {}:"),
        (lambda p: p.write_text(""), errno.EPERM, "No permission to read {}:"),
        (lambda p: None, errno.EACCES, "No permission to write {}:"),
        (lambda p: p.write_text(""), errno.EROFS, "No permission to write {},"),
    ],
)
def test_what_is_denied_follows_from_the_place(tmp_path, make, number, says):
    path = tmp_path / "train.csv"
    make(path)
    error = OSError(number, os.strerror(number), str(path))
    assert explain(error).startswith(says.format(path))


def test_a_denied_file_without_a_name_is_still_one_sentence():
    said = explain(OSError(errno.EACCES, "Permission denied"))
    assert said.startswith("No permission to read or write ([Errno 13] Permission denied): change")
