"""Wrong inputs, each with its one sentence and exit status, and with nothing changed on the disk.

A case is a way to make something wrong (overrides; what is done to the user's files) and a part of the sentence that
must come. It goes the way of scripts/train.py: preflight, then the run.
"""

import contextlib
import copy
import io
import json
import re
import runpy
import shutil
import tempfile
from functools import partial

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from condlora import CondLoraConfig
from condlora.commands.explain import explain
from condlora.errors import UserError
from condlora.grid import preflight
from condlora.grid.cells import compose_cells
from condlora.models.backbones import load_backbone
from condlora.runs.record import SCHEMA_VERSION, write_record
from condlora.training import run as finetune
from tests.faults.harness import broken_disk, fault, full_disk, read_only_disk
from tests.tasks import ROOT, slow

SOUND = (
    "task=rte", "adapter=lora", "backbone=folder", "data=directory", "protocol=embedded",
    "protocol.max_steps=2", "protocol.evaluate_every=1", "runtime.threads=1", "runtime.progress=plain",
)  # fmt: skip

SETTINGS = [
    ("task=wnli", "There is no task 'wnli': choose one of cola"),
    ("adapter=loraa", "There is no adapter 'loraa': similar names are lora"),
    ("backbone=bert-huge", "There is no backbone 'bert-huge'"),
    ("protocol=mine", "There is no protocol 'mine'"),
    ("data=web", "There is no data 'web'"),
    ("profile=nothing", "There is no profile 'nothing'"),
    ("runtime=fast", "There is no runtime 'fast'"),
    ("protocol.lr=1", "Unknown setting"),
    ("sead=1", "Unknown setting"),
    ("seed=-1", "Invalid value seed=-1; expected a whole number of at least 0"),
    ("seed=zero", "Invalid value seed='zero'; expected"),
    ("protocol.batch_size=0", "Invalid value protocol.batch_size=0; expected"),
    ("protocol.batch_size=1.5", "Invalid value protocol.batch_size=1.5; expected"),
    ("protocol.batch_size=many", "Invalid value protocol.batch_size='many'; expected"),
    ("protocol.learning_rate=-1", "Invalid value protocol.learning_rate=-1; expected"),
    ("protocol.learning_rate=nan", "Invalid value protocol.learning_rate=nan; expected"),
    ("protocol.learning_rate=fast", "Invalid value protocol.learning_rate='fast'; expected"),
    ("protocol.max_steps=0", "Invalid value protocol.max_steps=0; expected"),
    ("protocol.max_steps=null", "protocol.epochs and protocol.max_steps are both null"),
    ("protocol.weight_decay=-0.1", "Invalid value protocol.weight_decay=-0.1; expected"),
    ("protocol.warmup_ratio=1.5", "Invalid value protocol.warmup_ratio=1.5; expected a number from 0 to 1"),
    ("protocol.max_grad_norm=0", "Invalid value protocol.max_grad_norm=0; expected a number above 0"),
    ("protocol.evaluate_every=0", "Invalid value protocol.evaluate_every=0; expected"),
    ("protocol.early_stopping_patience=0", "Invalid value protocol.early_stopping_patience=0; expected"),
    ("protocol.select=first", "Invalid value protocol.select='first'; expected one of best, last"),
    ("protocol.precision=fp8", "Invalid value protocol.precision='fp8'; expected"),
    ("protocol.regression_targets=log", "Invalid value protocol.regression_targets='log'; expected"),
    ("protocol.validation=half", "Invalid value protocol.validation='half'; expected one of tenth_of_train, test"),
    ("+protocol.validation_limit=0", "Invalid value protocol.validation_limit=0; expected"),
    ("protocol.max_length=0", "Invalid value protocol.max_length=0; expected"),
    ("protocol.max_length=5000", "protocol.max_length is 5000, and mine reads at most 128"),
    ("runtime.device=tpu", "Invalid value runtime.device='tpu'; expected"),
    ("runtime.device=cuda", "no CUDA device is available"),
    ("runtime.threads=0", "Invalid value runtime.threads=0; expected"),
    ("runtime.padding=left", "Invalid value runtime.padding='left'; expected"),
    ("runtime.attention=nonsense", "does not support runtime.attention=nonsense"),
    ("runtime.evaluation_batch_size=0", "Invalid value runtime.evaluation_batch_size=0; expected"),
    ("runtime.deterministic=maybe", "Invalid value runtime.deterministic='maybe'; expected"),
    ("runtime.checkpoint_minutes=-1", "Invalid value runtime.checkpoint_minutes=-1; expected"),
    ("runtime.trackers=[nothing] protocol.precision=no", "runtime.trackers=['nothing'] is not usable"),
    ("profile.name=../up", "is no folder's name"),
    ("protocol.adapter.r=0", "Invalid value protocol.adapter.r=0; expected"),
    ("adapter.config.r=-4", "does not fit the backbone"),
    ("adapter.config.target_modules=[elsewhere]", "does not fit the backbone"),
    ("adapter.config.colour=red", "Unknown setting"),
    ("+backbone.revision=main", "expected the 40 digits of a commit, as a branch or a tag moves"),
    ("+data.revision=e2da8e2", "expected the 40 digits of a commit"),
    ("+backbone.weights_sha256=beef", "not that of backbone.weights_sha256: fetch them again"),
    ("+adapter.config.colour=red", "adapter=lora is not accepted"),
]  # fmt: skip
CONDLORA = [
    ("adapter.config.form=other", "form"),
    ("adapter.config.r=99", "Rank 99 is above the smaller side"),
    ("adapter.config.target_modules=[elsewhere]", "does not fit the backbone"),
    ("adapter.config.target_modules=[intermediate.dense]", "square"),
    ("adapter.config.lora_dropout=2", "dropout"),
]


def no_folder(user):
    shutil.rmtree(user / "glue")


def no_file(user):
    (user / "glue/RTE/dev.tsv").unlink()


def edited(line, text):
    def edit(user):
        path = user / "glue/RTE/train.tsv"
        lines = path.read_bytes().split(b"\n")
        lines[line] = text
        path.write_bytes(b"\n".join(lines))

    return edit


def content(text):
    return lambda user: (user / "glue/RTE/train.tsv").write_bytes(text)


def one_class(user):
    path = user / "glue/RTE/train.tsv"
    path.write_text(path.read_text().replace("\tnot_entailment", "\tentailment"))


HEADER = b"index\tsentence1\tsentence2\tlabel"
DATA = {
    "no folder": (no_folder, "The data folder .* does not exist"),
    "no file": (no_file, "dev.tsv is missing"),
    "empty file": (content(b""), "line 1: there is no column 'sentence1'"),
    "header alone": (content(HEADER + b"\n"), "The split 'train' of rte is empty"),
    "column missing": (edited(0, b"index\tsentence1\tlabel"), "there is no column 'sentence2'"),
    "columns of another task": (edited(0, b"id\tquestion\tsentence\tlabel"), "is it a file of RTE"),
    "cells missing": (edited(5, b"5\tonly one"), "line 6 has 2 of 4 columns"),
    "empty line": (edited(5, b""), "line 6 has 1 of 4 columns"),
    "wrong label": (edited(5, b"5\ta\tb\tperhaps"), "line 6: 'perhaps' is no label of RTE"),
    "empty label": (edited(5, b"5\ta\tb\t"), "line 6: '' is no label"),
    "label out of range": (edited(5, b"5\ta\tb\t2"), "line 6: '2' is no label"),
    "hidden label": (edited(5, b"5\ta\tb\t-1"), "line 6: '-1' is no label"),
    "not UTF-8": (edited(5, b"5\t\xff\xfe\tb\tentailment"), "line 6 is not UTF-8"),
    "zeros in the middle": (content(b"\x00" * 100), "there is no column"),
    "a zip file": (content(b"PK\x03\x04\x14\x00\x08\xd0\x91\x8f"), "is not UTF-8"),
    "commas for tabs": (content(b"index,sentence1,sentence2,label\n0,a,b,entailment"), "there is no column"),
    "one class": (one_class, "label"),
}  # fmt: skip


def unlink(name):
    return lambda user: (user / "base" / name).unlink()


def no_tokenizer(user):
    for path in [*(user / "base").glob("tokenizer*"), *(user / "base").glob("vocab*")]:
        path.unlink()


def truncate(name):
    def cut(user):
        path = user / "base" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


def json_file(name, **changes):
    def change(user):
        path = user / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


config = partial(json_file, "base/config.json")
adapter_config = partial(json_file, "adapter/adapter_config.json")


def pickled(user):
    path = user / "base/model.safetensors"
    torch.save(load_file(path), user / "base/pytorch_model.bin")
    path.unlink()


def weight(change):
    def edit(user):
        path = user / "base/model.safetensors"
        tensors = load_file(path)
        name = "bert.encoder.layer.0.attention.self.query.weight"
        tensors[name] = change(tensors[name])
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


BACKBONE = {
    "no weights": (unlink("model.safetensors"), "No sequence classifier could be loaded"),
    "no config": (unlink("config.json"), "holds no config.json"),
    "no tokenizer": (no_tokenizer, "The tokenizer of mine knows .* of the model.s .* tokens"),
    "truncated weights": (truncate("model.safetensors"), "weights in .* cannot be read"),
    "truncated config": (truncate("config.json"), "could be loaded"),
    "truncated tokenizer": (truncate("tokenizer.json"), "tokenizer"),
    "pickled weights": (pickled, "needs that file and model.safetensors"),
    "another width": (config(hidden_size=32), "could be loaded|cannot be read"),
    "unknown architecture": (config(model_type="martian"), "could be loaded"),
    "a weight of another shape": (
        weight(lambda w: w[:4].clone()),
        "could be loaded|cannot be read",
    ),
    "NaN in a weight": (weight(lambda w: w * float("nan")), "is nan at step|not finite"),
}


def unlink_adapter(name):
    return lambda user: (user / "adapter" / name).unlink()


def truncated_adapter(user):
    path = user / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


def pickled_adapter(user):
    path = user / "adapter/adapter_model.safetensors"
    torch.save(load_file(path), user / "adapter/adapter_model.bin")
    path.unlink()


def adapter_tensors(change):
    def edit(user):
        path = user / "adapter/adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return edit


def wider_base(user):
    (cfg,) = compose_cells(
        ("task=rte", "backbone=tiny", "data=synthetic", "backbone.architecture.hidden_size=32")
    )
    shutil.rmtree(user / "base")
    load_backbone(cfg.backbone, num_labels=2).model.save_pretrained(user / "base")


ADAPTERS = {  # what scripts/export_lora.py is given
    "no config": (unlink_adapter("adapter_config.json"), "holds no readable adapter"),
    "no weights": (unlink_adapter("adapter_model.safetensors"), "holds no readable adapter"),
    "truncated": (truncated_adapter, "holds no readable adapter"),
    "pickled": (pickled_adapter, "holds no readable adapter .*adapter_model.safetensors"),
    "of a wider base": (wider_base, "8 x 16 in the adapter's file and 8 x 32 here: .* base model differs"),
    "of a base that is gone": (adapter_config(base_model_name_or_path="gone"), "gone is neither a folder"),
    "of no base": (adapter_config(base_model_name_or_path=None), "does not name its base model"),
    "of another method": (adapter_config(peft_type="MARTIAN"), "holds no readable adapter"),
    "of another rank": (adapter_config(r=4), "and 4 x 16 here: the rank"),
    "of another form": (adapter_config(form="other"), "form"),
    "with a map missing": (adapter_tensors(lambda t: dict(list(t.items())[1:])), "does not fit|lacks|missing"),
    "with a tensor too many": (adapter_tensors(lambda t: t | {"x.condlora_theta_A": torch.ones(2)}), "does not fit|x.condlora"),
}  # fmt: skip

DISK = {
    "full": (full_disk, "The disk is full"),
    "broken": (broken_disk, "The disk failed"),
    "read-only": (read_only_disk, "No permission to write"),
}

CASES = [
    *(pytest.param(tuple(o.split()), None, m, id=o) for o, m in SETTINGS),
    *(pytest.param(("adapter=condlora", o), None, m, id=f"condlora {o}") for o, m in CONDLORA),
    *(pytest.param((), change, m, id=f"data: {name}") for name, (change, m) in DATA.items()),
    *(pytest.param((), change, m, id=f"backbone: {name}") for name, (change, m) in BACKBONE.items()),
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A user's folder with text, a backbone and a finished run, all as they should be."""
    user = tmp_path_factory.mktemp("user")
    write_glue(user / "glue/RTE")
    (cfg,) = compose_cells(("task=rte", "backbone=tiny", "data=synthetic"))
    tiny = load_backbone(cfg.backbone, num_labels=2)
    tiny.model.save_pretrained(user / "base")
    tiny.tokenizer.save_pretrained(user / "base")
    with torch.random.fork_rng():
        config = CondLoraConfig(r=8, target_modules=["query", "value"], task_type="SEQ_CLS")
        get_peft_model(copy.deepcopy(tiny.model), config).save_pretrained(
            user / "adapter", save_embedding_layers=False
        )
    finished = user / "runs/adhoc/rte/lora/seed-0"
    (finished / "adapter").mkdir(parents=True)
    record = {"schema_version": SCHEMA_VERSION, "status": "done", "recipe_hash": "another"}
    for name in (
        "config.yaml",
        "curve.csv",
        "predictions_validation.parquet",
        "predictions_test.parquet",
    ):
        (finished / name).write_text(name)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (finished / "adapter" / name).write_text(name)
    write_record(finished, record)
    return user


def write_glue(folder):
    folder.mkdir(parents=True)
    rows = [
        f"{i}\tThe {i} cats sat.\tA cat sat {i} times.\t{('entailment', 'not_entailment')[i % 2]}"
        for i in range(40)
    ]
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join([HEADER.decode(), *rows, ""]))


def attempt(user, *overrides):
    """What scripts/train.py does with these words; the sentence and the exit status of what went wrong."""
    places = (
        f"backbone.path={user}/base",
        "backbone.name=mine",
        f"data.root={user}/glue",
        f"runs={user}/runs",
    )
    chosen = {o.split("=")[0] for o in overrides}
    words = [o for o in SOUND if o.split("=")[0] not in chosen]
    try:
        preflight.preflight([*words, *places, *overrides])
        (cfg,) = compose_cells((*words, *places, *overrides))
        return finetune.run(cfg), 0
    except Exception as error:
        message = explain(error)
        assert message is not None, f"{type(error).__name__} would be a stack trace: {error}"
        return message, getattr(error, "exit_status", UserError.exit_status)


def export(user):
    """What scripts/export_lora.py says of the user's adapter, and its exit status."""
    words = [str(user / "adapter"), str(user / "lora")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("sys.argv", ["export_lora.py", *words])
        with contextlib.redirect_stderr(io.StringIO()) as said:
            runpy.run_path(str(ROOT / "scripts" / "export_lora.py"))["main"]()
    return said.getvalue(), stopped.value.code


def on_disk(folder):
    return {
        str(p): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".claims" not in p.parts
    }


def test_the_sound_input_runs(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "user")
    assert attempt(tmp_path / "user")[1] == 0


# Composing and loading take a second each, so `make test` takes every eighth case.
@pytest.mark.parametrize(
    ("overrides", "change", "message"),
    [
        case if n % 8 == 0 else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for n, case in enumerate(CASES)
    ],
)
def test_wrong_input_is_one_sentence_and_changes_nothing(
    sound, tmp_path, request, overrides, change, message
):
    user = tmp_path / "user"
    shutil.copytree(sound, user)
    if change is not None:
        change(user)
    before = on_disk(user / "runs")
    said, status = attempt(user, *overrides)
    assert status == 2
    assert re.search(message if change else re.escape(message), said), said
    assert "\n" not in said.strip() and len(said) < 800
    kept = on_disk(user / "runs")
    assert set(before.values()) <= set(kept.values())  # set aside under another name is not lost
    assert (
        before.items() <= kept.items() or "backbone: NaN" in request.node.name
    )  # found in training alone


@pytest.mark.parametrize("name", ADAPTERS)
def test_wrong_adapter_is_one_sentence_and_exports_nothing(sound, tmp_path, name):
    change, message = ADAPTERS[name]
    user = tmp_path / "user"
    shutil.copytree(sound, user)
    adapter_config(base_model_name_or_path=str(user / "base"))(user)
    change(user)
    before = on_disk(user)
    said, status = export(user)
    assert status == 2
    assert re.match("error: .*", said) and re.search(message, said), said
    assert said.count("\n") == 1 and len(said) < 600
    assert on_disk(user) == before


@pytest.mark.parametrize("name", ["full", *slow("broken", "read-only")])
@pytest.mark.parametrize("at", [1, *slow(4)])
def test_a_disk_that_takes_no_writes_is_one_sentence_and_loses_nothing(sound, tmp_path, name, at):
    act, message = DISK[name]
    user = tmp_path / "user"
    shutil.copytree(sound, user)
    before = on_disk(user / "runs")
    with fault(act, at, [(tempfile, "mkdtemp")]):
        said, status = attempt(user, "seed=1")
    assert status == 2
    assert said.startswith(message) and "\n" not in said
    assert before.items() <= on_disk(user / "runs").items()
    assert attempt(user, "seed=1")[1] == 0  # the same command, once the disk is well


def test_there_are_enough_of_them():
    assert len(CASES) + len(ADAPTERS) + len(DISK) >= 60
