"""Runs that start from another run's adapter: what is taken over, what is refused, and under which name they stand."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from analysis.study.scores import scores
from condlora.errors import AdapterError, ConfigError, RunFolderError
from condlora.grid.cells import inspect
from condlora.grid.listing import survey
from condlora.models.backbones import load_backbone
from condlora.runs.recipe import recipe, recipe_hash, recipe_of_any_seed
from condlora.runs.record import run_folder, write_record
from condlora.training import run as finetune
from condlora.training import setup
from tests.faults.harness import KILLED, fault, in_child, kill, left_behind
from tests.tasks import FEW_ROWS, slow

RATE = ("protocol.learning_rate=1e-2", "protocol.precision=no")
METHODS = ("lora", "condlora")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A runs folder with a finished MNLI run of each method, made once."""
    from condlora.grid.cells import compose_cells

    runs = tmp_path_factory.mktemp("source")
    for method in METHODS:
        (cfg,) = compose_cells(
            (
                "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "protocol.max_steps=6",
                "protocol.evaluate_every=3", "runtime.threads=1", "task=mnli", f"adapter={method}", *RATE,
                f"runs={runs}",
            )
        )  # fmt: skip
        finetune.run(cfg)
    return runs


@pytest.fixture
def begun(source, tmp_path, tiny_cells):
    """A function (method, *overrides) -> the config of an RTE run that starts from a copy of the MNLI run."""
    shutil.copytree(source, tmp_path / "runs")

    def compose(method="lora", *overrides):
        words = ("task=rte", f"adapter={method}_from", "runtime.checkpoint_steps=2")
        return tiny_cells(*words, *RATE, *overrides)[0]

    return compose


def mnli(tmp_path, method="lora"):
    return tmp_path / "runs/adhoc/mnli" / method / "seed-0"


def initial(cfg):
    backbone = load_backbone(cfg.backbone, num_labels=2)
    seeds = setup.streams(cfg.seed, cfg.task.name)
    return get_peft_model_state_dict(setup.initialise(cfg, backbone, seeds))


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_is_the_other_runs_and_the_head_is_new(begun, tmp_path, tiny_cells, method):
    saved = load_file(mnli(tmp_path, method) / "adapter/adapter_model.safetensors")
    started = initial(begun(method))
    afresh = initial(tiny_cells("task=rte", f"adapter={method}", *RATE)[0])
    assert started.keys() == afresh.keys() == saved.keys()
    for name, tensor in started.items():
        if ".classifier." in name:
            assert torch.equal(tensor, afresh[name])  # paired with a run that starts afresh
        else:
            assert torch.equal(tensor, saved[name])
            assert not torch.equal(tensor, afresh[name]), name


@pytest.mark.parametrize("method", ["lora", *slow("condlora")])
def test_a_run_stands_under_its_own_name_and_resumes_to_the_same_bits(begun, tmp_path, method):
    cfg = begun(method)
    record = finetune.run(cfg)
    assert run_folder(cfg).parts[-3:] == ("rte", f"{method}_from_mnli", "seed-0")
    weights = mnli(tmp_path, method) / "adapter/adapter_model.safetensors"
    assert (
        record["recipe"]["adapter"]["init_from"]
        == setup.hashlib.sha256(weights.read_bytes()).hexdigest()
    )
    undisturbed = left_behind(run_folder(cfg))
    shutil.rmtree(run_folder(cfg))

    def doomed():
        with fault(kill, 5, instants=((finetune.Run, "finish_step"),)):
            finetune.run(cfg)

    assert in_child(doomed) == KILLED
    finetune.run(cfg)
    assert left_behind(run_folder(cfg)) == undisturbed


def test_tables_keep_it_apart_from_runs_that_start_afresh(begun, tiny_cells, tmp_path):
    finetune.run(begun())
    finetune.run(tiny_cells("task=rte", "adapter=lora", *RATE)[0])
    runs = scores([c for c in survey("adhoc", tmp_path / "runs") if c.task == "rte"])
    assert sorted(runs.adapter) == ["lora", "lora_from_mnli"]


@pytest.mark.slow
def test_recipe_follows_the_adapter_and_not_its_place(begun, tmp_path):
    before = recipe_hash(recipe(begun()))
    mnli(tmp_path).rename(tmp_path / "moved")
    assert recipe_hash(recipe(begun("lora", f"adapter.init_from={tmp_path}/moved"))) == before
    alone = f"adapter.init_from={tmp_path}/moved/adapter"
    assert recipe_hash(recipe(begun("lora", alone))) == before


def test_a_run_whose_origin_was_done_anew_is_stale(begun, tmp_path, tiny_cells):
    finetune.run(begun())
    assert inspect(begun()).state == "done"
    shutil.rmtree(mnli(tmp_path))
    finetune.run(tiny_cells("task=mnli", "adapter=lora", *RATE, "protocol.max_steps=3")[0])
    assert inspect(begun()).state == "stale"


@pytest.mark.slow
def test_seeds_that_start_from_seeds_are_of_one_recipe(begun, tmp_path, tiny_cells):
    """Outside a profile the newest run says which recipe counts, and every seed has an adapter of its own."""
    finetune.run(tiny_cells("task=mnli", "adapter=lora", *RATE, "seed=1")[0])
    for seed in (0, 1):
        finetune.run(begun("lora", f"seed={seed}"))
    cells = [c for c in survey("adhoc", tmp_path / "runs") if c.adapter == "lora_from_mnli"]
    assert [c.state for c in cells] == ["done", "done"]
    assert len({c.record["recipe_hash"] for c in cells}) == 2


def test_an_adapter_alone_will_do(begun, tmp_path):
    shutil.copytree(mnli(tmp_path) / "adapter", tmp_path / "alone")
    started = initial(begun("lora", f"adapter.init_from={tmp_path}/alone"))
    assert all(
        torch.equal(tensor, started[name])
        for name, tensor in initial(begun()).items()
    )  # fmt: skip
    config = tmp_path / "alone/adapter_config.json"
    other = json.loads(config.read_text()) | {"base_model_name_or_path": "another"}
    config.write_text(json.dumps(other))
    with pytest.raises(AdapterError, match=r"other weights \(another\) than this run's \(tiny\)"):
        initial(begun("lora", f"adapter.init_from={tmp_path}/alone"))


REFUSED = {
    "other weights": (("backbone.weights_seed=1",), AdapterError, r"other weights \(tiny\)"),
    "another rank": (("adapter.config.r=4",), AdapterError, "has r=8 where this run has 4"),
    "another scaling": (("protocol.adapter.lora_alpha=16",), AdapterError, "has lora_alpha=8 where this run has 16"),
    "other modules": (("adapter.config.target_modules=[query]",), AdapterError, "has target_modules="),
    "another method": (("adapter.init_from=${runs}/adhoc/mnli/condlora/seed-0",), AdapterError, "start from one of the same settings"),
    "another task": (("adapter.origin=qqp", "adapter.init_from=${runs}/adhoc/mnli/lora/seed-0"), ConfigError, "is a run on mnli, and adapter.origin is qqp"),
    "no run": (("seed=7",), RunFolderError, "There is no adapter in .*seed-7 to start from: finish that run first"),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(begun, overrides, error, message):
    with pytest.raises(error, match=message):
        finetune.run(begun("lora", *overrides))


def test_a_damaged_or_unfinished_run_is_refused(begun, tmp_path):
    folder = mnli(tmp_path)
    record = json.loads((folder / "record.json").read_text())
    write_record(folder, record | {"status": "interrupted"})
    with pytest.raises(RunFolderError, match="to start from, is interrupted: finish it first"):
        finetune.run(begun())
    write_record(folder, record)
    weights = folder / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunFolderError, match="was changed or damaged after it was written"):
        finetune.run(begun())


@pytest.mark.slow
def test_an_origin_of_another_recipe_makes_another_recipe(begun, tmp_path, tiny_cells):
    """So that runs from unlike origins are not taken for seeds of one cell."""
    before = recipe(begun())
    shutil.rmtree(mnli(tmp_path))
    (other,) = tiny_cells("task=mnli", "adapter=lora", "protocol.max_steps=3", *RATE)
    finetune.run(other)
    after = recipe(begun())
    assert before["adapter"]["origin_recipe"] != after["adapter"]["origin_recipe"]
    assert recipe_of_any_seed(before) != recipe_of_any_seed(after)
