"""What workers are submitted for: the runs of a grid, or the trials of a search of learning rates.

Each has the command of a worker (`module` and `words`), the folder of its runs, its items, and what to look at afterwards.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from hydra import compose

from condlora.cluster.follow import Item
from condlora.commands.settings import check_command
from condlora.grid.cells import compose_common, inspect, plan_cells, state_of
from condlora.grid.composition import Words, composing
from condlora.grid.preflight import preflight
from condlora.paths import CONFIGS
from condlora.runs.lease import living_owner


class Grid:
    """The runs that `scripts/train.py <words>` would do.

    Raises:
        ConfigError, DataError: see `condlora.grid.preflight.preflight`.
    """

    module, noun = "condlora.commands.train", "runs"

    def __init__(self, words: Words):
        preflight(list(words), on_this_machine=False)
        self.grid, self.words = words, ("wait=false", *words)
        self.runs = Path(compose_common(words).runs)
        self.afterwards = f"State of the runs: python scripts/list.py {shlex.join(words)}"

    def items(self) -> list[Item]:
        cells = [state_of(cell) for cell in plan_cells(self.grid)]
        return [
            Item(
                f"{c.task} {c.adapter} seed {c.seed}",
                is_done=c.state == "done",
                is_taken=bool(living_owner(c.folder)),
                reason=c.reason,
            )
            for c in cells
        ]


class Search:
    """The trials of `scripts/search_learning_rate.py <words>` that are known: later rates follow from their scores.

    Raises:
        ConfigError, DataError: see `condlora.grid.preflight.preflight` and `condlora.search.studies.plan_studies`.
    """

    module, noun = "condlora.commands.search_learning_rate", "known trials"

    def __init__(self, words: Words):
        with composing(CONFIGS / "search"):
            cfg = compose("settings", list(words))
        check_command("search/settings", cfg)
        trial = (f"protocol.learning_rate={cfg.learning_rates[0]}", f"runs={json.dumps(cfg.runs)}")
        preflight([f"profile={cfg.profile}", *cfg.overrides, *trial], on_this_machine=False)
        self.cfg, self.words, self.runs = cfg, words, Path(cfg.runs)
        again = f"python scripts/search_learning_rate.py {shlex.join(words)}"
        table = f"{cfg.results}/{cfg.profile}/search.csv"
        self.afterwards = f"The table at the end: {table}. If it is missing then: {again}"

    def items(self) -> list[Item]:
        # Here, as they load the training code: seconds.
        from condlora.search.studies import free_trials, plan_studies, standing, storage_of

        found = []
        for plan in plan_studies(self.cfg):
            table, missing = standing(plan, storage_of(plan).known())
            name = f"{plan.cell.task.name} {plan.cell.adapter.name}"
            found += [Item(name, is_done=True, is_taken=False, reason=None)] * len(table)
            free = free_trials(plan, missing)
            for key, cell in missing.items():
                rate = f"{name} {cell.protocol.learning_rate:g}"
                found.append(Item(rate, False, key not in free, inspect(cell).reason))
        return found
