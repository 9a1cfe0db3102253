"""A grid over several processes: which launcher starts them, and that they end with the process that started them."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from condlora.grid.cells import compose_common
from condlora.runs.record import read_record
from tests.tasks import FEW_ROWS, ROOT, slow

TINY = [
    "task=rte", "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "runtime.threads=1", "adapter=lora",
]  # fmt: skip


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
@pytest.mark.parametrize("profile", ["embedded", *slow("kinship", "minilm_glue")])
def test_any_launcher_takes_the_place_of_a_profiles_own(profile, launcher):
    own = compose_common((f"profile={profile}",)).hydra.launcher
    assert own.n_jobs == 2
    other = compose_common((f"profile={profile}", f"hydra/launcher={launcher}")).hydra.launcher
    assert other._target_ != own._target_ or other.n_jobs == -1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_write_their_checkpoints_and_end_with_their_parent(tmp_path, number):
    words = [*TINY, "protocol.max_steps=1000000", "protocol.evaluate_every=1000000", "seed=0,1,2"]
    words += [f"runs={tmp_path}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    folders = [tmp_path / "adhoc/rte/lora" / f"seed-{seed}" for seed in (0, 1)]
    command = [sys.executable, str(ROOT / "scripts/train.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 240
        while not all((folder / "config.yaml").exists() for folder in folders):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.2)
        time.sleep(2)  # the first steps
        workers = psutil.Process(parent.pid).children(recursive=True)
        os.kill(parent.pid, number)
        parent.wait(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    for folder in folders:
        assert read_record(folder)["status"] == "interrupted"
        assert list((folder / "checkpoints").glob("step-*"))
    assert not (tmp_path / "adhoc/rte/lora/seed-2").exists()
