"""The long run of faults: `make soak`, or `python -m tests.faults.soak --kills 200 --writes 100 --cells 100`.

Three parts, each seeded, on a toy backbone: single runs killed at random instants, single runs whose disk fills or
fails at random writes, and launchers that share a grid and are killed at random times. After each the run or grid is
started again without faults and compared, bit for bit, with one that met none. One row a part goes to
results/soak.csv; the exit status is 1 if anything was lost, done twice or different.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from condlora.grid.cells import compose_cells, inspect
from condlora.runs.environment import ROOT, environment
from condlora.runs.record import run_folder
from condlora.training import run as finetune
from tests.faults.harness import (
    INSTANTS,
    KILLED,
    WRITES,
    broken_disk,
    fault,
    full_disk,
    in_child,
    kill,
    left_behind,
)
from tests.tasks import FEW_ROWS

TOY = (
    "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "protocol.max_steps=5", "protocol.evaluate_every=2",
    "protocol.precision=no", "runtime.threads=1", "runtime.checkpoint_steps=2", "runtime.progress=plain",
)  # fmt: skip
KINDS = [(task, adapter) for task in ("rte", "stsb") for adapter in ("lora", "condlora")]
PARTS = {"killed": ((kill,), INSTANTS), "writes": ((full_disk, broken_disk), WRITES)}
LAUNCHERS, LAUNCHER_KILLS = 4, 8


def cells(folder: Path, *overrides: str) -> list:
    return list(compose_cells((*TOY, f"runs={folder}", *overrides)))


def trials(kind: tuple[str, str], part: str, n: int, seed: int) -> list[str]:
    """n runs of a task and adapter, each with a fault at a random instant and then started again: what each came to.

    same: the bits of a run without faults; different; lost: it did not end; missed: no fault struck.
    """
    (acts, instants), chance = PARTS[part], random.Random(f"{seed}/{part}/{kind}")
    words = [f"task={kind[0]}", f"adapter={kind[1]}"]
    with tempfile.TemporaryDirectory() as place:
        (whole,) = cells(Path(place) / "whole", *words)
        with fault(None, 0, instants) as passed:
            finetune.run(whole)
        expected = left_behind(run_folder(whole))
        (cfg,) = cells(Path(place) / "broken", *words)

        def doomed(act, at):
            with fault(act, at, instants):
                finetune.run(cfg)

        found = []
        for _ in range(n):
            status = in_child(partial(doomed, chance.choice(acts), chance.randint(1, len(passed))))
            found.append(
                outcome(cfg, expected) if part == "writes" or status == KILLED else "missed"
            )
            shutil.rmtree(Path(place) / "broken")
    return found


def quiet(work: Callable, *arguments):
    """Do it without what each run says of itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work(*arguments)


def outcome(cfg, expected: dict) -> str:
    """Start a run again and compare what it leaves with what was expected."""
    try:
        finetune.run(cfg)
    except Exception as error:
        print(f"lost: {error!r}", file=sys.stderr)
        return "lost"
    found = left_behind(run_folder(cfg))
    if found == expected:
        return "same"
    for kind in ("record", "files"):
        a, b = expected[kind], found[kind]
        differ = [name for name in a | b if a.get(name) != b.get(name)]
        print(f"{run_folder(cfg)} differs in {kind}: {differ}", file=sys.stderr)
    return "different"


def grid(n: int, seed: int) -> list[str]:
    """What became of n cells under launchers of which one after the other is killed and started again."""
    chance = random.Random(f"{seed}/grid")
    words = ["task=rte,stsb", "adapter=lora,condlora", f"seed={','.join(map(str, range(n // 4)))}"]
    with tempfile.TemporaryDirectory() as place:
        shared, said = Path(place) / "shared", Path(place) / "said"
        command = [
            sys.executable,
            str(ROOT / "scripts" / "train.py"),
            *TOY,
            *words,
            f"runs={shared}",
        ]

        def launch() -> subprocess.Popen:
            with said.open("a") as output:
                return subprocess.Popen(
                    [*command, "--multirun"], stdout=output, stderr=output, cwd=ROOT
                )

        launchers = [launch() for _ in range(LAUNCHERS)]
        for _ in range(LAUNCHER_KILLS):
            time.sleep(chance.uniform(5, 15))
            victim = chance.randrange(LAUNCHERS)
            launchers[victim].kill()
            launchers[victim].wait()
            launchers[victim] = launch()
        for launcher in launchers:
            launcher.wait()
        finished = Counter(
            re.findall(r"^(\w+ \w+ seed \d+): test ", said.read_text(), re.MULTILINE)
        )
        found = []
        for cfg, alone in zip(
            cells(shared, *words), cells(Path(place) / "alone", *words), strict=True
        ):
            if inspect(cfg).state != "done":
                found.append("lost")
            elif finished[f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}"] > 1:
                found.append("twice")
            else:
                finetune.run(alone)
                found.append(outcome(cfg, left_behind(run_folder(alone))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, count in (("kills", 200), ("writes", 100), ("cells", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    asked = parser.parse_args()
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # of libraries, here and in every process started
    os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"
    where, rows = environment(), []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for part, n in (("killed", asked.kills), ("writes", asked.writes), ("grid", asked.cells)):
            started = time.perf_counter()
            if part == "grid":
                found = quiet(grid, n, asked.seed)
            else:
                each = -(-n // len(KINDS))
                jobs = [pool.submit(quiet, trials, kind, part, each, asked.seed) for kind in KINDS]
                found = [result for job in jobs for result in job.result()]
            counts = Counter(found)
            columns = ("same", "different", "lost", "twice", "missed")
            rows.append(
                {"part": part, "tried": len(found)} | {c: counts[c] for c in columns}
                | {"seconds": round(time.perf_counter() - started), "seed": asked.seed}
                | {"torch": where["versions"]["torch"], "commit": where["commit"], "dirty": where["dirty"]}
            )  # fmt: skip
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(asked.results / "soak.csv", index=False)
    if (table["same"] < table["tried"] - table["missed"]).any():
        sys.exit("error: a guarantee does not hold, see above")


if __name__ == "__main__":
    main()
