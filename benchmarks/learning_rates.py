"""Which learning rates suit CondLoRA and LoRA on three small models: `python scripts/benchmark.py 'measures=[learning_rates]'`.

Every adapter has its default settings (rank 8, alpha 8; the form that `form=None` resolves to), and one rate serves all that is
trained, as in transformers' Trainer.
"""

from __future__ import annotations

import copy
import sys
import time

import pandas as pd
import torch
from omegaconf import DictConfig
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.learning_rate_models import SUBJECTS, Subject, train
from condlora import CondLoraConfig
from condlora.runs.environment import environment

METHODS = {"lora": LoraConfig, "condlora": CondLoraConfig}


def learning_rates(cfg: DictConfig) -> pd.DataFrame:
    """A row for each model, method, rate and seed: the held-out loss and, of classifiers, the accuracy.

    Rows of the method "none" are the model before adaptation. A run whose training loss was not finite has no loss.
    """
    wanted = cfg.learning_rates
    torch.set_num_threads(1)
    versions = {name: environment()["versions"][name] for name in ("transformers", "peft")}
    rows = []
    for name, rates in wanted.rates.items():
        subject = SUBJECTS[name](wanted)
        rows.append({"model": name, "method": "none", **evaluate(subject.model, subject)})
        for seed in range(wanted.seeds):
            for rate in rates:
                for method in METHODS:
                    row = {"model": name, "method": method, "rate": rate, "seed": seed}
                    rows.append(row | adapted(subject, method, rate, seed, wanted.steps))
                    print(rows[-1], file=sys.stderr)
    return pd.DataFrame(rows).assign(**versions)


def adapted(subject: Subject, method: str, rate: float, seed: int, steps: int) -> dict:
    """What a new adapter gives after training; `seed` draws its start and the order of the data."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    settings = {"target_modules": subject.targets, "modules_to_save": list(subject.head) or None}
    model = get_peft_model(copy.deepcopy(subject.model), METHODS[method](r=8, **settings))
    form = getattr(model.peft_config["default"], "form", None)
    is_finite = train(model, subject.batch, steps=steps, rate=rate, seed=seed)
    found = evaluate(model, subject) if is_finite else {"loss": None, "accuracy": None}
    return {"form": form, **found, "seconds": round(time.perf_counter() - started, 1)}


@torch.no_grad()
def evaluate(model: nn.Module, subject: Subject) -> dict[str, float | None]:
    """The mean loss over the held-out batches, and the share of right labels where the model classifies."""
    outputs = [model.eval()(**batch) for batch in subject.held_out]
    losses = [output.loss for output in outputs]
    accuracy = None
    if outputs[0].logits.ndim == 2:
        right = [
            output.logits.argmax(-1) == batch["labels"]
            for output, batch in zip(outputs, subject.held_out, strict=True)
        ]
        accuracy = round(torch.cat(right).float().mean().item(), 4)
    return {"loss": round(torch.stack(losses).mean().item(), 4), "accuracy": accuracy}
