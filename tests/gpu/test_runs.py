"""Whole runs: fleets, exact resume, bfloat16, and bases in 4 bits."""

from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from condlora.errors import ConfigError
from condlora.runs.record import run_folder
from condlora.training import run as finetune
from tests.faults.harness import Stop, fault, stop

NOT_HERE = "bitsandbytes is not installed: pip install '.[quantised]'"
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason=NOT_HERE)


@pytest.fixture
def cells(tiny_cells, backbone, device, tmp_path):
    """A function (name, *overrides, dropout, precision) -> configs of RTE runs on the device, kept under that name."""

    def compose(name, *overrides, dropout=0.0, precision="no"):
        where = (f"runs={tmp_path}/{name}", f"runtime.device={device.type}", *backbone(dropout))
        shared = ("task=rte", "protocol.learning_rate=1e-2", f"protocol.precision={precision}")
        return tiny_cells(*where, *shared, *overrides)

    return compose


def weights(cfg):
    return load_file(run_folder(cfg) / "adapter/adapter_model.safetensors")


def losses(cfg):
    return pd.read_csv(run_folder(cfg) / "curve.csv")["train_loss"].to_numpy()


GRID = ("adapter=lora,condlora", "seed=0")


def test_a_fleet_leaves_what_its_runs_leave_alone(cells, device):
    together, alone = cells("together", *GRID), cells("alone", *GRID)
    records = finetune.run_together(list(together))
    for cfg, single, record in zip(together, alone, records, strict=True):
        assert finetune.run(single)["fleet"] == 1 and record["fleet"] == 2
        assert record["environment"]["device"].startswith("cpu") is (device.type == "cpu")
        assert losses(cfg) == pytest.approx(losses(single), rel=1e-4)
        theirs = weights(single)
        for name, tensor in weights(cfg).items():
            assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name


@pytest.mark.parametrize("grid", [("adapter=condlora",), GRID], ids=["single", "fleet"])
def test_stopped_and_resumed_a_run_ends_with_the_same_bits(cells, grid):
    words = (*grid, "runtime.deterministic=true", "runtime.checkpoint_steps=2")
    whole, stopped = (list(cells(name, *words, dropout=0.1)) for name in ("whole", "stopped"))
    finetune.run_together(whole)
    at = 3 * len(stopped) + 1  # the first step of all after the third
    with pytest.raises(Stop), fault(stop, at, [(finetune.Run, "finish_step")]):
        finetune.run_together(stopped)
    records = finetune.run_together(stopped)
    assert [record["resumed_at_steps"] for record in records] == [[2]] * len(stopped)
    assert all(record["environment"]["deterministic"] for record in records)
    for cfg, other in zip(stopped, whole, strict=True):
        assert all(torch.equal(t, weights(other)[name]) for name, t in weights(cfg).items())


@pytest.mark.parametrize("adapter", ["lora", "condlora"])
def test_in_bfloat16_a_run_is_near_the_run_in_float32(cells, adapter):
    found = {}
    for precision in ("bf16", "no"):
        (cfg,) = cells(precision, f"adapter={adapter}", precision=precision)
        record = finetune.run(cfg)
        assert record["environment"]["precision"] == precision
        found[precision] = losses(cfg)
    assert (found["bf16"] != found["no"]).any()
    assert found["bf16"] == pytest.approx(found["no"], rel=0.02)


@needs_bitsandbytes
def test_a_base_in_4_bits_is_trained(cells):
    (cfg,) = cells("qlora", "adapter=qlora", precision="bf16")
    assert finetune.run(cfg)["status"] == "done"


@needs_bitsandbytes
def test_loftq_starts_on_a_gpu_and_is_refused_on_a_cpu(cells, device):
    (cfg,) = cells("loftq", "adapter=loftq")
    if device.type == "cuda":
        assert finetune.run(cfg)["status"] == "done"
        return
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA GPU"):
            finetune.run(cfg)
