"""The settings of the runs by task and method, next to those of the authors' scripts and of the paper."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.study.names import TASKS, adapter_order, label, task_order
from condlora.grid.cells import Cell
from condlora.paths import CONFIGS

TITLE = "Hyper-parameters, and what the released code did"
HEADER = [
    "task", "method", "settings of", "learning rate", "steps or epochs", "batch", "max length", "warm-up", "decay",
    "r", "alpha", "patience", "selected by", "precision", "seeds",
]  # fmt: skip
RELEASED_CODE = [
    "The released code (commit 83aac26) differs from what its paper and scripts suggest: the Trainer is given no seed and uses 42 "
    "in every run, so data order and dropout never change, and a seed moves only the new head and the adapter's start "
    "(θ_A; θ_B is zero). Warm-up is 0.1 where 0.06 is declared; weight decay is declared and never passed, so 0.",
    "It was run with PyTorch 1.11 on an A100. Up to PyTorch 1.11 float32 matrix products on such a GPU use TF32 (10 bits of "
    "mantissa) by default; the code does not switch this off. From 1.12 on they are full float32.",
    "Its examples per second (Table 4) are probably transformers' train_samples_per_second, the time of which includes the "
    "evaluations during training. CondLoRA computes A and B from W₀ again in every forward pass unless it is merged, in "
    "training and in evaluation.",
]  # fmt: skip


def table(cells: Iterable[Cell]) -> typeset.Table:
    """A row per task and method of ours, and after it those of the authors' scripts and of the paper, where they have one."""
    rows, groups = [], {}
    for cell in cells:
        groups.setdefault((cell.task, cell.adapter), []).append(cell)
    for task, adapter in sorted(groups, key=lambda k: (task_order(k[0]), adapter_order(k[1]))):
        name = [TASKS.get(task, task), label(adapter)]
        of_cell = groups[task, adapter]
        rows.append([*name, "these runs", *_ours(of_cell)])
        rows += [[*name, source, *values] for source, values in _published(task, adapter)]
    return typeset.Table(
        name="hyperparameters",
        title="Hyper-parameters by task and method",
        header=HEADER,
        rows=rows,
        data=pd.DataFrame(rows, columns=HEADER),
        notes=[
            "Authors: the released scripts. Paper: section 3.1 and Table 1, where they state a value; the learning rates of the "
            "paper were searched and are printed in the scripts alone, and its number of seeds is not stated. Epochs are the "
            "most that early stopping leaves. The schedule is linear in all; the paper says Adam, the scripts' Trainer and these runs "
            "use AdamW, which without decay is Adam.",
        ],
        text_columns=3,
    )


def _ours(cells: list[Cell]) -> list[str]:
    protocols = [cell.record["recipe"]["protocol"] for cell in cells]
    adapters = [cell.record["recipe"]["adapter"]["config"] for cell in cells]
    return [
        *_settings(protocols, adapters),
        str(len({cell.seed for cell in cells})),
    ]


def _settings(protocols: list[dict[str, Any]], adapters: list[dict[str, Any]]) -> list[str]:
    def each(name: str) -> str:
        return _listed(p.get(name) for p in protocols)

    lengths = (
        f"{p['max_steps']} steps" if p.get("max_steps") else f"{p.get('epochs')} epochs"
        for p in protocols
    )
    return [
        _listed(f"{p['learning_rate']:.3g}" for p in protocols), _listed(lengths), each("batch_size"),
        each("max_length"), each("warmup_ratio"), each("weight_decay"),
        _listed(a.get("r") for a in adapters), _listed(a.get("lora_alpha") for a in adapters),
        each("early_stopping_patience"), each("select"), each("precision"),
    ]  # fmt: skip


def _published(task: str, adapter: str) -> list[tuple[str, list[str]]]:
    """(whose, values) of the authors' scripts and of the paper, for their tasks and methods."""
    folder = CONFIGS / "protocol"
    authors = OmegaConf.to_container(OmegaConf.load(folder / "authors.yaml"), resolve=False)
    paper = OmegaConf.to_container(OmegaConf.load(folder / "paper.yaml"), resolve=False)
    rates = authors["tables"]["learning_rate"].get(adapter, {})
    if task not in rates:
        return []
    epochs = authors["tables"]["epochs"][task]
    plain = authors | {
        "learning_rate": rates[task],
        "epochs": epochs,
        "early_stopping_patience": authors["tables"]["early_stopping_patience"][task],
    }
    theirs = _settings([plain], [authors["adapter"]])
    unstated = "not stated"
    printed = [
        unstated, f"{paper['tables']['epochs'].get(task, epochs)} epochs", str(plain["batch_size"]),
        str(plain["max_length"]), unstated, unstated, str(authors["adapter"]["r"]),
        str(authors["adapter"]["lora_alpha"]), unstated, "best", unstated, unstated,
    ]  # fmt: skip
    return [("authors' scripts", [*theirs, unstated]), ("paper", printed)]


def _listed(values: Iterable[Any]) -> str:
    """Distinct values, in their order; a dash for none."""
    shown = dict.fromkeys("–" if value is None else str(value) for value in values)
    return ", ".join(shown)


def section(cells: list[Cell]) -> Section:
    """What the released code did, and the table."""
    return Section(TITLE, RELEASED_CODE, [], [table(cells)])
