"""Where the numbers of a report come from: what ran, on what data, every run of the grid.

Takes a study's cells and their records; nothing is computed here.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.stats import formatting
from analysis.study.names import TASKS, label, task_order
from analysis.study.selection import Study
from condlora.grid.cells import Cell


def section(study: Study) -> Section:
    """The data of each task, and every run for who opens it."""
    return Section("Runs and data", [], [data_table(study.done)], [runs_table(study.cells)])


def facts(study: Study) -> list[tuple[str, str]]:
    """What ran, on what: name and value; several values are listed where runs differ."""
    done, settings = study.done, study.settings
    records = [cell.record for cell in done]

    def each(*path: str) -> str:
        return listed(_at(record, path) for record in records)

    backbones = (
        f"{b['name']}: {b['layers']} layers of width {b['hidden_size']}, from {b['source']}, "
        f"revision {b['revision'] or formatting.UNDEFINED}, weights {b['weights_sha256'][:12]}"
        for b in (record["backbone"] for record in records)
    )
    adapters = (f"{label(c.adapter)}: {_adapter(c.record['recipe']['adapter'])}" for c in done)
    seeds = sorted({cell.seed for cell in done})
    versions = (
        ", ".join(f"{name} {version}" for name, version in sorted(e["versions"].items()))
        for e in (record["environment"] for record in records)
    )
    commits = (
        f"{(e['commit'] or formatting.UNDEFINED)[:12]}{' (with uncommitted changes)' * bool(e['dirty'])}"
        for e in (record["environment"] for record in records)
    )
    return [
        ("Backbone", listed(backbones)),
        ("Methods", " / ".join(dict.fromkeys(adapters))),
        ("Tasks", ", ".join(_names(done))),
        ("Data", each("data", "source")),
        ("Seeds", f"{len(seeds)}: {', '.join(map(str, seeds))}"),
        ("Protocol", _protocol(records)),
        (
            "Similarity φ",
            f"i = {settings.i or 'r'}, j = {settings.j or 'r'}; baselines: "
            f"{settings.baseline_draws} draws, seed {settings.baseline_seed}",
        ),
        ("Truncated examples", _truncated(done)),
        ("Device", each("environment", "device")),
        ("Mixed precision", each("environment", "precision")),
        (
            "Processor",
            f"{each('environment', 'processor')}; threads a run: {each('environment', 'threads')}",
        ),
        ("Platform", f"Python {each('environment', 'python')}, {each('environment', 'platform')}"),
        ("Versions", listed(versions)),
        ("Commit", listed(commits)),
        ("Runs trained together", listed(str(record.get("fleet", 1)) for record in records)),
        ("Checkpoints", _checkpoints(records)),
        ("Runs finished", f"{min(_finish_times(records))} to {max(_finish_times(records))}"),
    ]


def data_table(done: list[Cell]) -> typeset.Table:
    """Where each task's examples come from, how many, and how many were cut."""
    rows = []
    for task in sorted({cell.task for cell in done}, key=task_order):
        data = [cell.record["data"] for cell in done if cell.task == task]
        splits = [
            listed(f"{d['counts'][split]:,}" for d in data)
            for split in ("train", "validation", "test")
        ]
        cut = listed(
            " / ".join(f"{d['truncated'][s]:,}" for s in ("train", "validation", "test"))
            for d in data
        )
        official = listed("yes" if d["official_counts"] else "no" for d in data)
        rows.append([TASKS.get(task, task), listed(d["source"] for d in data), *splits, cut])
        rows[-1].append(official)
    header = ["task", "source", "train", "validation", "test"]
    header += ["truncated (train / validation / test)", "GLUE's own counts"]
    return typeset.Table(
        name="data",
        title="Data",
        header=header,
        rows=rows,
        data=pd.DataFrame(rows, columns=header),
        notes=["Truncated: examples longer than the maximum length, cut to it."],
        text_columns=2,
    )


def runs_table(cells: list[Cell]) -> typeset.Table:
    """Every cell of the grid with its state; finished ones with what identifies them."""
    rows = []
    for cell in cells:
        record = cell.record if cell.state == "done" else None
        name = [TASKS.get(cell.task, cell.task), label(cell.adapter), str(cell.seed), cell.state]
        if record is None:
            rows.append([*name, *[formatting.UNDEFINED] * 6, cell.reason or formatting.UNDEFINED])
            continue
        environment, best = record["environment"], record["best"]
        rows.append(
            [
                *name,
                record["recipe_hash"][:12],
                (environment["commit"] or formatting.UNDEFINED)[:12]
                + "+" * bool(environment["dirty"]),
                f"{record['recipe']['protocol']['learning_rate']:g}",
                f"{record['steps']:,}{', stopped early' * record['stopped_early']}",
                f"{best['step']:,}",
                str(record["finished_at"]),
                formatting.UNDEFINED,
            ]
        )
    header = ["task", "method", "seed", "state", "recipe", "commit", "learning rate", "steps"]
    header += ["best step", "finished", "reason"]
    return typeset.Table(
        name="runs",
        title="Every run of the grid",
        header=header,
        rows=rows,
        data=pd.DataFrame(rows, columns=header),
        notes=["Recipe: first digits of the recipe's hash. A + after a commit: with changes."],
        text_columns=len(header),
    )


def _adapter(recipe: dict[str, Any]) -> str:
    config = recipe["config"]
    if not {"r", "lora_alpha"} <= config.keys():  # a method with settings of its own
        named = ("_target_", "task_type", "target_modules")
        own = (f"{key} {value}" for key, value in config.items() if key not in named)
        return ", ".join(own) or "no settings"
    form = f", form {config['form']}" if "form" in config else ""
    return f"r {config['r']}, alpha {config['lora_alpha']}{form}"


def _protocol(records: list[dict[str, Any]]) -> str:
    """Every setting of the protocol, with the values of all runs where they differ."""
    found: dict[str, list[Any]] = {}
    for record in records:
        protocol = record["recipe"]["protocol"]
        for name, value in protocol.items():
            nested = value.items() if isinstance(value, dict) else [(None, value)]
            for inner, setting in nested:
                found.setdefault(f"{name}.{inner}" if inner else name, []).append(setting)
    return "; ".join(f"{name} {listed(values)}" for name, values in found.items())


def _checkpoints(records: list[dict[str, Any]]) -> str:
    size = max(record["checkpoint_bytes"] for record in records) / 2**20
    spent = sum(record["checkpoint_seconds"] for record in records)
    trained = sum(record["train_seconds"] for record in records)
    resumed = sum(bool(record["resumed_at_steps"]) for record in records)
    return (
        f"at most {size:.1f} MiB; {100 * spent / trained:.2f} % of the time spent training; "
        f"{resumed} of {len(records)} runs were interrupted and continued"
    )


def _truncated(done: list[Cell]) -> str:
    cut = {c.task: sum(c.record["data"]["truncated"].values()) for c in done}
    named = [f"{TASKS.get(task, task)} {count:,}" for task, count in cut.items() if count]
    return ", ".join(named) or "none"


def _names(done: list[Cell]) -> list[str]:
    return list(dict.fromkeys(TASKS.get(cell.task, cell.task) for cell in done))


def _finish_times(records: list[dict[str, Any]]) -> list[str]:
    return [str(record["finished_at"]) for record in records]


def _at(record: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        record = record[name]
    return record


def listed(values: Iterable[Any]) -> str:
    """The distinct values as text, sorted where there are several."""
    distinct = list(dict.fromkeys(str(value) for value in values))
    return distinct[0] if len(distinct) == 1 else " / ".join(sorted(distinct))
