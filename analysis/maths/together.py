"""The analyses of the runs' matrices, several at the same time, each on one core."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from analysis.maths import (
    adapter_similarity,
    amplification,
    conversion_controls,
    conversion_similarity,
    explained_share,
    linear_map,
    lora_subspace,
    magnitude_direction,
    positions,
    span_similarity,
)
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

Jobs = Mapping[str, Callable[[], Any]]

# The longest first, see `together`.
ANALYSES = {
    "shares": explained_share.explained_shares,
    "controls": conversion_controls.controls,
    "linear_map": linear_map.linear_maps,
    "conversion": conversion_similarity.figure1,
    "subspaces": lora_subspace.compare,
    "spans": span_similarity.spans,
    "adapters": adapter_similarity.compare,
    "amplification": amplification.amplify,
    "directions": lambda stacks, _: magnitude_direction.magnitude_and_direction(stacks),
    "positions": positions.locate,
}
NEED_RUNS = ("subspaces", "amplification", "positions")  # the others have a result without runs


def analyses(stacks: list[Stack], settings: Settings, names: Iterable[str] = ANALYSES) -> Jobs:
    """The analyses with these names, as jobs for `together`; without runs, those that have a result without runs."""
    return {
        name: partial(ANALYSES[name], stacks, settings)
        for name in names
        if stacks or name not in NEED_RUNS
    }


def together(jobs: Jobs) -> dict[str, Any]:
    """The results of all jobs, by name; begun in their order, so the longest belongs first.

    As many jobs run at the same time as torch may use threads, each with one thread: most matrices are too small for
    several cores, and with one thread the bits do not depend on the number of cores. The error of a job is raised.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = {name: pool.submit(job) for name, job in jobs.items()}
            return {name: job.result() for name, job in running.items()}
    finally:
        torch.set_num_threads(cores)
