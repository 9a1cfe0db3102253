"""An interrupted run continues whenever nothing that its numbers depend on has changed; else its work is kept and named.

Of the same kind: full disks in tests/faults/test_resume.py, names with the time and model folders under several names in
tests/grid/test_places.py, unreadable runs in tests/faults/test_permissions.py.
"""

import shutil

import pytest

from condlora.runs.continuing import continued_by
from condlora.runs.environment import environment, source_sha256
from condlora.runs.record import read_record, run_folder
from condlora.training import run as finetune
from tests.faults.harness import Stop, fault, stop
from tests.tasks import slow

SETTINGS = ("task=rte", "protocol.precision=no", "runtime.checkpoint_steps=2")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The runs folder of a run that was killed in step 4 and has a checkpoint of step 2."""
    return tmp_path_factory.mktemp("interrupted")


@pytest.fixture
def resume(interrupted, tiny_cells, tmp_path, monkeypatch):
    """A function (environment of the second start, *overrides) -> the record of the run started a second time."""

    def work(changes, *overrides):
        if not any(interrupted.iterdir()):
            (cfg,) = tiny_cells(*SETTINGS, f"runs={interrupted}/runs")
            with pytest.raises(Stop), fault(stop, 4, [(finetune.Run, "finish_step")]):
                finetune.run(cfg)
        shutil.copytree(interrupted / "runs", tmp_path / "runs", dirs_exist_ok=True)
        described = finetune.described_environment
        monkeypatch.setattr(finetune, "described_environment", lambda a: described(a) | changes)
        (cfg,) = tiny_cells(*SETTINGS, *overrides)
        return finetune.run(cfg), run_folder(cfg)

    return work


HARMLESS = {
    "another commit, such as of a document": ({"commit": "0" * 40}, ()),
    "a checkout with an untracked file": ({"dirty": True}, ()),
    "no git at all": ({"commit": None, "dirty": None}, ()),
    "another processor": ({"processor": "another", "device": "cpu (another)"}, ()),
    "another number of threads": ({"threads": 2}, ()),
    "another batch size of evaluations": ({}, ("runtime.evaluation_batch_size=16",)),
    "no more checkpoints": ({}, ("runtime.checkpoint_steps=null",)),
}


ALWAYS = ("a checkout with an untracked file", "another number of threads")


@pytest.mark.parametrize("name", [*ALWAYS, *slow(*sorted(HARMLESS.keys() - set(ALWAYS)))])
def test_a_harmless_difference_continues(resume, name, capsys):
    changes, overrides = HARMLESS[name]
    record, folder = resume(changes, *overrides)
    assert record["resumed_at_steps"] == [2]
    assert not list(folder.parent.glob("seed-0.*"))
    assert ("with 2 threads a run begun with 1" in capsys.readouterr().out) == (
        "threads" in changes
    )


def test_a_model_folder_of_another_name_holds_the_same_model():
    def described(name, weights):
        environment = {"device": "cpu (a processor)", "source_sha256": "0"}
        return {"environment": environment, "backbone": {"name": name, "weights_sha256": weights}}

    assert continued_by(described("m", "1")) == continued_by(described("n", "1"))
    assert continued_by(described("m", "1")) != continued_by(described("m", "2"))


def other_torch():
    return {"versions": environment()["versions"] | {"torch": "1.0"}}


HARMFUL = {
    "batch size": (dict, ("protocol.batch_size=16",), "protocol.batch_size was 32 and is 16"),
    "number of steps": (dict, ("protocol.max_steps=8",), "protocol.max_steps was 6 and is 8"),
    "data": (dict, ("data.seed=1",), "data.seed was 0 and is 1"),
    "code": (lambda: {"source_sha256": "0"}, (), "the code in condlora/ differs"),
    "torch": (other_torch, (), "environment.versions.torch was"),
    "precision": (lambda: {"precision": "bf16"}, (), "environment.precision was no and is bf16"),
}


@pytest.mark.parametrize("name", ["batch size", *slow(*sorted(HARMFUL.keys() - {"batch size"}))])
def test_what_cannot_be_continued_is_kept_and_named(resume, name, capsys):
    changes, overrides, why = HARMFUL[name]
    record, folder = resume(changes(), *overrides)
    assert record["resumed_at_steps"] == []
    (kept,) = folder.parent.glob("seed-0.unfinished-*")
    assert (kept / "checkpoints/step-00000002/state.json").is_file()
    assert read_record(kept)["status"] == "running"
    said = capsys.readouterr().out
    assert f"cannot be continued ({why}" in said and kept.name in said


@pytest.mark.slow
def test_work_that_is_set_aside_twice_is_kept_twice(resume, tmp_path):
    _, folder = resume({}, "protocol.batch_size=16")
    shutil.rmtree(folder)
    resume({}, "protocol.batch_size=16")
    assert len(list(folder.parent.glob("seed-0.unfinished-*"))) == 2


def test_the_hash_of_the_code_follows_statements_alone(tmp_path):
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    file = package / "inner" / "module.py"
    file.write_text("x = 1\n")
    before = source_sha256(package)
    file.write_text("# A comment\nx  =  (1)\n")
    (package / "notes.txt").write_text("a note")
    (package / "inner" / "module.py.orig").write_text("x = 2\n")
    (package / "inner" / ".#module.py").symlink_to("an-editor's-lock")
    assert source_sha256(package) == before
    found = {before}
    file.write_text("x = 2\n")
    found.add(source_sha256(package))
    file.rename(package / "module.py")
    found.add(source_sha256(package))
    (package / "half_written.py").write_text("def")
    found.add(source_sha256(package))
    assert len(found) == 4
