"""Trainings and batches as members of a step, without runs around them."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model

from condlora import CondLoraConfig
from condlora.training import step as stepping
from condlora.training.state import Training

CPU = torch.device("cpu")


def accelerator_on(device):
    """What a Training needs of an Accelerator."""
    return SimpleNamespace(
        device=device,
        scaler=None,
        unwrap_model=lambda model: model,
        clip_grad_norm_=torch.nn.utils.clip_grad_norm_,
        backward=lambda loss: loss.backward(),
    )


ACCELERATOR = accelerator_on(CPU)


@dataclass
class Member:
    """A member of a step whose errors are raised."""

    training: Training
    batch: dict
    kind: Hashable = None
    is_active: bool = True

    def guard(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def fail(self, error: Exception) -> None:
        raise error


METHODS = {
    "lora": lambda **s: LoraConfig(r=4, lora_alpha=4, **s),
    "rslora": lambda **s: LoraConfig(r=4, lora_alpha=4, use_rslora=True, **s),
    "condlora": lambda **s: CondLoraConfig(r=4, lora_alpha=4, **s),
    "condlora_blocks": lambda **s: CondLoraConfig(r=4, lora_alpha=4, layers_per_map=2, **s),
    "tied_lora": lambda **s: CondLoraConfig(r=4, lora_alpha=4, method="tied_lora", **s),
    "cond_pissa": lambda **s: CondLoraConfig(r=4, lora_alpha=4, method="cond_pissa", **s),
    "condlora_other_layer": lambda **s: CondLoraConfig(
        r=4, lora_alpha=4, method="condlora_other_layer", **s
    ),
    "condlora_random": lambda **s: CondLoraConfig(r=4, lora_alpha=4, method="condlora_random", **s),
    "condlora_x": lambda **s: CondLoraConfig(r=4, lora_alpha=4, method="condlora_x", **s),
    "lotr": lambda **s: CondLoraConfig(r=4, lora_alpha=4, method="lotr", **s),
    "half_lora": lambda **s: CondLoraConfig(r=4, lora_alpha=4, method="half_lora", **s),
    "lora_drop": lambda **s: CondLoraConfig(  # layer 0 keeps a query pair of its own
        r=4,
        lora_alpha=4,
        method="share_lora",
        options={"shared": "AB"},
        unshared_modules=["bert.encoder.layer.0.attention.self.query"],
        **s,
    ),
    "lora_drop_value": lambda **s: CondLoraConfig(
        r=4,
        lora_alpha=4,
        method="share_lora",
        options={"shared": "AB"},
        unshared_modules=["bert.encoder.layer.1.attention.self.value"],
        **s,
    ),
    "melora": lambda **s: CondLoraConfig(
        r=4, lora_alpha=4, method="melora", options={"blocks": 2}, **s
    ),
}


def training(tiny_bert, name, seed, dtype, dropout=0.0, device=CPU, **settings):
    """A run of one of METHODS on a tiny BERT, before its first step."""
    settings |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    base = tiny_bert(**settings).to(dtype)
    torch.manual_seed(seed)
    config = METHODS[name](
        target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    model = get_peft_model(base, config).to(device)
    with torch.no_grad():  # so that the updates are not zero
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.05 * torch.randn(parameter.shape, dtype=parameter.dtype).to(device)
                )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3 * (1 + seed))
    return Training(model, optimizer, constant(optimizer), accelerator_on(device), 1.0)


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def batch(seed, outputs=3, device=CPU):
    """Four examples of up to eleven tokens with random labels."""
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(5, 12, (), generator=generator))
    lengths = torch.randint(2, length + 1, (4,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(1, 50, (4, length), generator=generator) * mask
    labels = torch.randint(outputs, (4,), generator=generator)
    if outputs == 1:
        labels = torch.randn(4, generator=generator, dtype=torch.float64)
    found = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: values.to(device) for name, values in found.items()}


def steps(trainings, count, together, outputs=3, cycle=1000):
    """Losses (steps, runs) of training each on that many batches of its own; `gradients` are those of the last step."""
    found = []
    for i, training in enumerate(trainings):
        training.max_grad_norm = 0.5 + i
    for number in range(count):
        batches = [
            batch(100 * (number % cycle) + i, outputs, t.accelerator.device)
            for i, t in enumerate(trainings)
        ]
        members = [Member(t, b) for t, b in zip(trainings, batches, strict=True)]
        taken = []
        for group in [members] if together else [[member] for member in members]:
            taken += stepping.step(group)
        for member, loss in taken:
            member.training.progress.count(4, loss)
        found.append([float(loss) for _, loss in taken])
    return torch.tensor(found)
