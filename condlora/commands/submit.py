"""Submit workers for a grid to a cluster; each trains runs of the shared folder that no other worker has.

Examples:
    python scripts/submit.py slurm profile=paper cluster.partition=gpu
    python scripts/submit.py slurm profile=single_gpu runs=/shared/runs cluster.workers=4 cluster.follow=true
    python scripts/submit.py ray profile=paper runs=/shared/runs cluster.workers=4

Settings of the cluster: configs/cluster/<slurm or ray>.yaml. The same command again submits workers for what is left.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from condlora.commands.cli import command


@command("train", composes=False)
def main(overrides: list[str]) -> None:
    from condlora.cluster import on_ray, slurm
    from condlora.cluster.follow import follow
    from condlora.cluster.settings import read_settings
    from condlora.grid.cells import compose_common, plan_cells, state_of
    from condlora.grid.preflight import preflight
    from condlora.runs.lease import living_owner

    name, *words = overrides or [""]
    settings = read_settings(name, [word for word in words if word.startswith("cluster.")])
    words = tuple(word for word in words if not word.startswith("cluster."))
    scheduler = {"slurm": slurm, "ray": on_ray}[name]
    scheduler.require_client()
    preflight(list(words), on_this_machine=False)
    cells = [state_of(cell) for cell in plan_cells(words)]
    left = [cell for cell in cells if cell.state != "done" and not living_owner(cell.folder)]
    if not left:
        print(f"Nothing to submit: of {len(cells)} runs all are done or being done.")
        return
    workers = min(settings.workers, len(left))
    folder = Path(compose_common(words).runs).resolve() / ".cluster"
    logs = folder / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    job, is_alive = scheduler.launch(settings, workers, words, logs)
    print(
        f"Submitted {job} with {workers} worker{'s' * (workers > 1)}: {len(left)} of {len(cells)} runs are left."
    )
    print(f"Logs: {logs}")
    print(f"State of the runs: python scripts/list.py {' '.join(words)}", flush=True)
    if settings.follow:
        follow(words, is_alive, logs)
