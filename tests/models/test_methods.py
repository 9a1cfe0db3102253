"""Every method of docs/methods.md: it trains, goes on from a checkpoint, and is saved and loaded, to the same bits.

`tests/models/test_baselines.py` does the same with whole runs, most of them in `make test-slow`.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from condlora.models.adapters import base_for, load_adapter, save_adapter
from condlora.models.backbones import load_backbone
from condlora.models.baselines import baseline_of
from condlora.training import setup, step
from condlora.training.data import prepare
from condlora.training.optimizer import adamw
from condlora.training.state import Training
from tests.members import ACCELERATOR, Member
from tests.models.shipped import FITTING, QUIET, TRAINED_HERE
from tests.tasks import compose_tiny, slow

pytestmark = QUIET
FAST = (
    "lora",
    "condlora",
    "share_lora_ab",
    "vera",
    "adalora",
)  # one of each kind; the others in `make test-slow`
STEPS = 20  # of the whole run, of which four are taken
IDS = torch.arange(2000, 2024).view(2, 12)


def started(cfg):
    """A training before its first step, and the backbone."""
    backbone = load_backbone(cfg.backbone, num_labels=2)
    model = setup.initialise(cfg, backbone, setup.streams(0, "rte"), prepare(cfg))
    baseline_of(model).begin(STEPS)
    groups = baseline_of(model).parameter_groups(1e-2)
    optimizer = adamw(groups, 1e-2, 0.0, torch.device("cpu"))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=STEPS)
    return Training(model, optimizer, schedule, ACCELERATOR, 1.0), backbone


def take_steps(training, numbers):
    for number in numbers:
        batch = {"input_ids": IDS + number, "attention_mask": torch.ones_like(IDS)}
        batch["labels"] = torch.tensor([0, 1])
        ((_, loss),) = step.step([Member(training, batch)])
        training.progress.count(2, loss)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("method", [*FAST, *slow(*(m for m in TRAINED_HERE if m not in FAST))])
def test_a_method_trains_resumes_and_is_saved_and_loaded(method, tmp_path):
    (cfg,) = compose_tiny(
        "task=rte",
        "protocol.precision=no",
        "protocol.learning_rate=1e-2",
        "backbone.architecture.model_type=roberta",  # whose head has several layers
        "backbone.architecture.max_position_embeddings=140",
        *FITTING.get(method, []),
        f"adapter={method}",
    )
    whole, backbone = started(cfg)
    start = {name: p.detach().clone() for name, p in whole.trainable.items()}
    take_steps(whole, (0, 1))
    state, settings = whole.tensors(), json.loads(json.dumps(whole.settings()))
    take_steps(whole, (2, 3))
    moved = {name for name, p in whole.trainable.items() if not torch.equal(p, start[name])}
    assert moved == set(start)

    resumed, _ = started(cfg)
    resumed.load(state, settings)
    resumed.progress.step = 2
    take_steps(resumed, (2, 3))
    for name, parameter in whole.trainable.items():
        assert torch.equal(resumed.trainable[name], parameter), name

    save_adapter(whole.model, tmp_path)
    expected = logits(whole.model)
    loaded = load_adapter(base_for(backbone, cfg.adapter), tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert all(
        t.isfinite().all() for t in load_file(tmp_path / "adapter_model.safetensors").values()
    )
