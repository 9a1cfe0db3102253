"""Checks that the runs of one table may be joined, and describes what differs between them.

Seeds of one cell share a recipe, or `condlora.grid.cells` calls them stale. Beyond the recipe, all runs should come from
the same software, code, device and weights, and those of a task from the same data, protocol and metrics.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from condlora.errors import UserError
from condlora.grid.cells import Cell

OF_A_METHOD = ("learning_rate", "adapter")  # what methods of one task may set for themselves


def _protocol(record: dict[str, Any]) -> dict[str, Any]:
    protocol = record["recipe"]["protocol"]
    return {name: value for name, value in protocol.items() if name not in OF_A_METHOD}


def _task(record: dict[str, Any]) -> dict[str, Any]:
    """What is asked and how it is scored."""
    return {name: value for name, value in record["recipe"]["task"].items() if name != "title"}


def _part(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {name: record["environment"][name] for name in names}


# Kind -> (whether it may differ between tasks, its fields in a record).
KINDS: dict[str, tuple[bool, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "versions": (False, lambda record: record["environment"]["versions"]),
    "commit": (False, _part("commit", "dirty")),
    "device": (False, _part("device", "precision")),
    "weights": (False, lambda record: {"sha256": record["backbone"]["weights_sha256"]}),
    "protocol": (True, _protocol),
    "task": (True, _task),
    "data": (True, lambda record: record["data"]["split_sha256"]),
}


def differences(done: Iterable[Cell]) -> dict[str, str]:
    """What differs between runs that a table joins: kind -> "max_steps of rte is 80 in 5 runs and 120 in 5 runs"."""
    done, found = list(done), {}
    for kind, (is_of_task, fields) in KINDS.items():
        tasks = dict.fromkeys(cell.task if is_of_task else None for cell in done)
        lines = [line for task in tasks for line in _differing(done, task, fields)]
        if lines:
            found[kind] = "; ".join(lines)
    return found


def _differing(done: list[Cell], task: str | None, fields: Callable) -> list[str]:
    """A line a field that is not the same in all runs of a task, or in all runs where it is None."""
    described = [fields(cell.record) for cell in done if task in (None, cell.task)]
    lines = []
    for name in dict.fromkeys(name for one in described for name in one):
        counts = Counter(_short(one.get(name)) for one in described)
        if len(counts) > 1:
            of = f" of {task}" if task else ""
            runs = (f"{value} in {n} run{'s' * (n > 1)}" for value, n in counts.most_common())
            lines.append(f"{name}{of} is {' and '.join(runs)}")
    return lines


def _short(value: Any) -> str:
    """A value as text; of a hash the first digits."""
    text = str(value)
    return text[:12] if len(text) in (40, 64) and set(text) <= set("0123456789abcdef") else text


def require_comparable(done: Iterable[Cell], may_differ: Iterable[str]) -> None:
    """Refuse to join runs that differ in a kind that is not in `may_differ`.

    Raises:
        UserError: they do, or a name in `may_differ` is no kind.
    """
    allowed = set(may_differ)
    if unknown := allowed - KINDS.keys():
        raise UserError(
            f"may_differ={sorted(unknown)} names nothing that is compared: choose of {', '.join(KINDS)}."
        )
    refused = {kind: text for kind, text in differences(done).items() if kind not in allowed}
    if refused:
        kinds = ",".join([*allowed, *refused])
        raise UserError(
            f"Runs of one table differ in {' and '.join(refused)} ({'; '.join(refused.values())}): redo those that "
            f"should not be there, or set 'may_differ=[{kinds}]' to have it shown."
        )
