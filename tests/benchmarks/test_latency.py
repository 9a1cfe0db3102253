"""The parts of benchmarks/latency.py on a toy model; the times themselves are not tested."""

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import latency
from benchmarks.workload import backbone_of, cell
from condlora.models.adapters import start
from condlora.models.baselines.bottleneck import Bottleneck
from tests.benchmarks.test_training import TINY
from tests.tasks import ROOT

IDS = torch.arange(10, 34).view(2, 12)


@pytest.fixture
def cfg():
    """The shipped settings, for a toy model and short inputs."""
    changes = {"models": ["tiny"], "shapes": {"tiny": TINY}, "inputs": [[2, 8, 1], [1, 4, 2]], "turns": 2}  # fmt: skip
    cfg = OmegaConf.merge(OmegaConf.load(ROOT / "configs/benchmark.yaml"), {"latency": changes})
    OmegaConf.set_struct(cfg, True)  # as Hydra does
    return cfg


@pytest.fixture
def wanted(cfg):
    return OmegaConf.create({**cfg.training, **cfg.latency})


def test_every_method_has_a_row_for_each_shape_and_the_backbone_is_the_unit(cfg):
    table = latency.latency(cfg)
    methods = ["backbone", "backbone_again", "lora", "condlora", "pfeiffer", "houlsby"]
    for shape in ((2, 8), (1, 4)):
        own = table[(table.batch == shape[0]) & (table.tokens == shape[1])]
        assert set(own.method) == set(methods) and len(own) == len(methods)
        assert list(own.method[:2]) == methods[:2]
    alone = table[table.method == "backbone"]
    assert (alone.filter(like="over_backbone") == 1).all(axis=None)
    assert (table.ms_min <= table.ms).all() and (table.ms <= table.ms_max).all()


@torch.inference_mode()
def test_what_is_timed_is_merged_where_it_can_be_and_computes_what_the_adapter_does(wanted):
    plain = latency.contestant(wanted, "tiny", "backbone")
    outputs = {}
    for method in ("lora", "condlora", "pfeiffer", "houlsby"):
        timed = latency.contestant(wanted, "tiny", method)
        added = [m for m in timed.modules() if isinstance(m, Bottleneck)]
        assert len(added) == {"pfeiffer": 2, "houlsby": 4}.get(method, 0)
        if not added:
            assert type(timed) is type(plain)
            assert {n for n, _ in timed.named_modules()} == {n for n, _ in plain.named_modules()}
        assert not timed.training and not any(p.requires_grad for p in timed.parameters())
        outputs[method] = timed(input_ids=IDS).logits
        assert not torch.allclose(outputs[method], plain(input_ids=IDS).logits, atol=1e-6)
    settings = cell(wanted, "tiny", "sst2", "lora", "longest")
    model = start(settings.adapter, backbone_of(settings), latency.SEED)
    generator = torch.Generator().manual_seed(latency.SEED)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    torch.testing.assert_close(model.eval()(input_ids=IDS).logits, outputs["lora"])


def test_turns_begin_with_another_method_each_and_ratios_are_taken_within_a_turn():
    called = []

    class Named(torch.nn.Linear):
        def forward(self, input_ids):
            called.append(self.name)

    models = {name: Named(1, 1) for name in ("backbone", "lora", "houlsby")}
    for name, model in models.items():
        model.name = name
    turns = latency.take_turns(models, {"input_ids": IDS}, calls=1, turns=2)
    assert len(turns) == 2 and [called[n] for n in (0, 3, 6)] == ["backbone", "lora", "houlsby"]
    rows = latency.summary([{"backbone": 1.0, "lora": 1.5}, {"backbone": 4.0, "lora": 4.0}])
    assert rows[1] == {
        "method": "lora", "turns": 2, "ms": 2750, "ms_min": 1500, "ms_max": 4000,
        "over_backbone": 1.25, "over_backbone_min": 1.0, "over_backbone_max": 1.5,
    }  # fmt: skip
