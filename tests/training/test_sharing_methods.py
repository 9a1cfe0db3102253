"""Runs with the methods of `condlora.tuner.methods`: the shipped configs, seeds that are drawn, and a run that is resumed."""

import pytest
from omegaconf import OmegaConf

from condlora.models.adapters import load_run
from condlora.models.backbones import load_backbone
from condlora.runs.record import read_record, run_folder
from condlora.training import run as finetune
from condlora.training import setup
from condlora.tuner import layer_factors
from tests.faults.harness import KILLED, fault, in_child, kill, left_behind
from tests.tasks import compose_tiny
from tests.tuner.test_sharing import trained

SHIPPED = [
    "condlora_random",
    "condlora_spectrum",
    "condlora_other_layer",
    "condlora_frozen_a",
    "condlora_frozen_b",
    "condlora_core",
    "condlora_x",
    "condlora_dora",
    "condlora_rslora",
    "condlora_all_linear",
    "condlora_consistent",
    "cond_adalora",
    "cond_pissa",
    "cond_dylora",
    "share_lora_a",
    "share_lora_b",
    "share_lora_ab",
    "share_lora_a_swapped",
    "share_lora_b_swapped",
    "lora_swapped",
    "lotr",
    "tied_lora",
    "lora_xs",
    "nola",
    "nola_authors",
    "dylora",
    "half_lora_a",
    "half_lora_a_orthogonal",
    "half_lora_b_orthogonal",
    "half_lora_b_singular",
    "melora",
]


@pytest.fixture(scope="module")
def shipped():
    """The configs of a toy run of each shipped method, by name."""
    words = ("task=rte", f"adapter={','.join(SHIPPED)}", "protocol.learning_rate=1e-3")
    return {cfg.adapter.name: cfg for cfg in compose_tiny(*words)}


@pytest.mark.parametrize("adapter", SHIPPED)
def test_the_shipped_config_puts_its_method_on_a_backbone(adapter, shipped):
    cfg = shipped[adapter]
    backbone = load_backbone(cfg.backbone, num_labels=2)
    model = setup.initialise(cfg, backbone, setup.streams(0, "rte"))
    config = model.peft_config["default"]
    assert config.method == cfg.adapter.config.get("method", "condlora")
    # Conditional AdaLoRA is pruned to 8; of Conditional PiSSA half is W's own.
    assert config.r == {"cond_adalora": 12, "cond_pissa": 16}.get(adapter, 8)
    assert config.use_dora == (adapter == "condlora_dora")
    assert config.use_rslora == (adapter == "condlora_rslora")
    assert setup.count_parameters(model, backbone)["adapter"] == sum(
        parameter.numel() for parameter in trained(model).values()
    )


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["nola", "dylora", "condlora_spectrum"])
def test_a_run_that_is_killed_and_resumed_ends_with_the_bits_of_one_that_was_not(
    adapter, tiny_cells, tmp_path
):
    """Drawn ranks, and tensors derived from a seed that was drawn and from W."""
    settings = (
        "task=rte",
        f"adapter={adapter}",
        "protocol.learning_rate=1e-2",
        "protocol.precision=no",
    )
    cells = [
        tiny_cells(*settings, "runtime.checkpoint_steps=2", f"runs={tmp_path}/{name}")[0]
        for name in ("whole", "killed")
    ]
    record = finetune.run(cells[0])
    assert record["status"] == "done" and record["test"]

    def doomed():
        with fault(kill, 5, [(finetune.Run, "finish_step")]):
            finetune.run(cells[1])

    assert in_child(doomed) == KILLED
    finetune.run(cells[1])
    whole, killed = (run_folder(cfg) for cfg in cells)
    assert read_record(killed)["resumed_at_steps"] == [4]
    assert left_behind(killed) == left_behind(whole)
    model, cfg = load_run(whole)
    factors = layer_factors(model, OmegaConf.to_container(cfg.backbone.modules))
    assert factors["query"].A.shape == (3, 8, 16) and factors["value"].B.abs().max() > 0


def test_runs_of_different_seeds_draw_different_matrices(tiny_cells):
    seeds = set()
    for seed in (0, 1):
        (cfg,) = tiny_cells(
            "task=rte", "adapter=condlora_random", "protocol.learning_rate=1e-3", f"seed={seed}"
        )
        backbone = load_backbone(cfg.backbone, num_labels=2)
        model = setup.initialise(cfg, backbone, setup.streams(seed, "rte"))
        seeds.add(model.peft_config["default"].options["seed"])
    assert len(seeds) == 2
