"""Submit workers for a grid, or for a search of learning rates, to a cluster; each takes what no other worker has.

Examples:
    python scripts/submit.py slurm profile=paper cluster.partition=gpu
    python scripts/submit.py slurm profile=single_gpu runs=/shared/runs cluster.workers=4 cluster.follow=true
    python scripts/submit.py slurm search profile=minilm_glue runs=/shared/runs cluster.workers=4
    python scripts/submit.py ray profile=paper runs=/shared/runs cluster.workers=4

Settings of the cluster: configs/cluster/<slurm or ray>.yaml. After `search` the settings are those of
scripts/search_learning_rate.py. The same command again submits workers for what is left.
"""

from __future__ import annotations

import datetime
import sys

from condlora.commands.cli import command


@command("train", composes=False)
def main(overrides: list[str]) -> None:
    from condlora.cluster import on_ray, slurm
    from condlora.cluster.follow import follow
    from condlora.cluster.settings import read_settings
    from condlora.cluster.worker import command_of_worker
    from condlora.commands.work import Grid, Search

    name, *words = overrides or [""]
    settings = read_settings(name, [word for word in words if word.startswith("cluster.")])
    scheduler = {"slurm": slurm, "ray": on_ray}[name]
    scheduler.require_client()
    kind = Search if "search" in words else Grid
    work = kind(tuple(w for w in words if w != "search" and not w.startswith("cluster.")))
    items = work.items()
    left = [item for item in items if not item.is_done and not item.is_taken]
    if not left:
        print(f"Nothing to submit: of {len(items)} {work.noun} all are done or being done.")
        print(work.afterwards)
        return
    workers = min(settings.workers, len(left))
    logs = work.runs.resolve() / ".cluster" / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    worker = command_of_worker(settings.python or sys.executable, work.module, work.words)
    job, is_alive = scheduler.launch(settings, workers, worker, logs)
    count = f"{workers} worker{'s' * (workers > 1)}"
    print(f"Submitted {job} with {count}: {len(left)} of {len(items)} {work.noun} are left.")
    print(f"Logs: {logs}")
    print(work.afterwards, flush=True)
    if settings.follow:
        follow(work.items, work.noun, is_alive, logs)
