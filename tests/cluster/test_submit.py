"""What is submitted, and when nothing is: SLURM's commands are small scripts that note their arguments."""

import shlex
import subprocess
import sys
import time

import pytest

from condlora.cluster import on_ray, slurm
from condlora.cluster.follow import follow
from condlora.cluster.settings import read_settings
from condlora.commands import submit
from condlora.commands.work import Grid, Search
from condlora.errors import ClusterError, ConfigError, DivergedError, IncompleteGrid
from condlora.grid.cells import compose_cells, plan_cells
from condlora.runs.lease import Claim
from condlora.runs.recipe import recipe
from condlora.runs.record import failure, new_record, run_folder, write_record
from condlora.search.studies import plan_studies, standing, storage_of
from condlora.search.trials import ended_trial
from tests.tasks import FEW_ROWS, ROOT, slow

TINY = (
    "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "protocol.max_steps=4",
    "protocol.evaluate_every=2", "runtime.threads=1", "adapter=lora", "task=rte",
)  # fmt: skip


@pytest.fixture
def client(tmp_path, monkeypatch):
    """client(sbatch=..., squeue=...): bash lines for SLURM's commands; calls are noted in tmp_path/calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def install(**lines):
        for name in ("sbatch", "squeue", "scontrol", "srun"):
            path = folder / name
            path.write_text(
                f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/calls\n{lines.get(name, "")}\n'
            )
            path.chmod(0o755)

    install(sbatch="echo 41")
    return install


@pytest.fixture
def words(tmp_path):
    return [*TINY, f"runs={tmp_path}/runs", "seed=0,1,2"]


def finish(cfg, **changes):
    """The record of a finished or failed run, without the run."""
    record = new_record(cfg, recipe(cfg), streams={}, environment={})
    folder = plan_cells((f"runs={cfg.runs}", *TINY, f"seed={cfg.seed}"))[0].folder
    write_record(folder, record | changes)
    return folder


def the_script(tmp_path):
    (path,) = tmp_path.glob("runs/.cluster/*/workers.sh")
    return path.read_text()


def test_no_more_workers_than_runs_that_are_left(client, words, tmp_path, capsys):
    submit.main.__wrapped__(["slurm", *words, "cluster.workers=8", "cluster.partition=gpu"])
    text = the_script(tmp_path)
    assert "#SBATCH --array=1-3\n" in text and "#SBATCH --partition=gpu\n" in text
    assert "wait=false" in text and f"runs={tmp_path}/runs" in text
    assert "cluster." not in text
    said = capsys.readouterr().out
    assert (
        "Submitted SLURM job 41 with 3 workers: 3 of 3 runs are left" in said
        and f"Logs: {tmp_path}/runs/.cluster/" in said
    )
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_runs_that_another_launcher_is_doing_get_no_worker(client, words, tmp_path):
    claims = [Claim(cell.folder) for cell in plan_cells(tuple(words))[:2]]
    for claim in claims:
        claim.__enter__()
    submit.main.__wrapped__(["slurm", *words])
    assert "#SBATCH --array=1-1\n" in the_script(tmp_path)
    for claim in claims:
        claim.__exit__(None, None, None)


def test_nothing_is_submitted_for_a_grid_that_is_done(client, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("condlora.commands.work.state_of", done)
    submit.main.__wrapped__(["slurm", *words])
    assert "Nothing to submit: of 3 runs all" in capsys.readouterr().out
    assert not (tmp_path / "calls").exists()


def done(cell):
    from condlora.grid.cells import Cell

    return Cell("adhoc", cell.task, cell.adapter, cell.seed, cell.folder, "done", None, {})


@pytest.fixture
def of_search(tmp_path):
    """The words of a search of six first trials, on the tiny backbone."""
    overrides = ",".join(f'"{word}"' for word in (*TINY[:-2], "task=rte", "adapter=lora,condlora"))
    places = [f"{name}={tmp_path}/{name}" for name in ("runs", "results", "rates")]
    return ["profile=adhoc", f"overrides=[{overrides}]", "learning_rates=[1e-3,2e-3,4e-3]", *places]


def test_workers_of_a_search_run_its_command_no_more_of_them_than_known_trials(
    client, of_search, tmp_path, capsys
):
    submit.main.__wrapped__(["slurm", "search", *of_search, "cluster.workers=8"])
    text = the_script(tmp_path)
    assert "#SBATCH --array=1-6\n" in text
    assert "from condlora.commands.search_learning_rate import main; main()" in text
    assert shlex.join(of_search) in text and " search " not in text and "wait=" not in text
    assert "with 6 workers: 6 of 6 known trials are left" in capsys.readouterr().out


def fail(trial, error):
    """The record of a trial that failed, without its run."""
    record = new_record(trial, recipe(trial), streams={}, environment={})
    write_record(run_folder(trial), record | failure(error))


@pytest.mark.slow
def test_trials_that_ended_or_are_being_done_get_no_worker(client, of_search, tmp_path, capsys):
    work, error = Search(tuple(of_search)), DivergedError("too high")
    plans = plan_studies(work.cfg)
    with Claim(tmp_path, file=storage_of(plans[0]).claim_file(plans[0].key(2e-3))):
        submit.main.__wrapped__(["slurm", "search", *of_search])
    assert "#SBATCH --array=1-5\n" in the_script(tmp_path)
    for plan in plans:
        trials = standing(plan, {})[1]
        for trial in trials.values():
            fail(trial, error)
        storage_of(plan).enter({k: ended_trial(t, k[0], error) for k, t in trials.items()})
    capsys.readouterr()
    submit.main.__wrapped__(["slurm", "search", *of_search])
    assert "Nothing to submit: of 6 known trials all" in capsys.readouterr().out


def test_a_search_that_cannot_be_is_refused_before_submission(client, of_search, tmp_path):
    for words, says in (
        (of_search[1:], "profile"),
        (["learning_rates=[0]", *of_search[3:], *of_search[:2]], "learning_rates"),
        (["profile=adhoc", 'overrides=["protocol.batch_size=0"]', *of_search[2:]], "batch_size"),
        (["profile=adhoc", 'overrides=["protocol.validation=test"]', *of_search[2:]], "test set"),
    ):
        with pytest.raises(ConfigError, match=says):
            submit.main.__wrapped__(["slurm", "search", *words])
    assert not (tmp_path / "calls").exists()


def test_who_follows_a_search_hears_why_a_trial_failed(of_search, tmp_path):
    work = Search(tuple(of_search))
    fail(plan_studies(work.cfg)[0].trial(2e-3), RuntimeError("the disk is full"))
    with pytest.raises(
        IncompleteGrid, match=r"6 of 6 known trials .*rte lora 0.002: .*disk is full"
    ):
        follow(work.items, work.noun, lambda: False, tmp_path)


@pytest.mark.parametrize("profile", ["paper", *slow("single_gpu")])
def test_a_login_node_needs_no_gpu_and_no_hub(client, tmp_path, profile):
    words = ["slurm", f"profile={profile}", f"runs={tmp_path}/runs", "cluster.at_a_time=4"]
    submit.main.__wrapped__(words)
    assert "%4\n" in the_script(tmp_path) and "--gres=gpu:1" in the_script(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1", "invalid partition specified: gpu"),
        ("echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1", "Unable to contact"),
        ("exit 3", "status 3"),
    ],
)  # fmt: skip
def test_what_slurm_refuses_is_one_sentence_in_its_words(client, words, line, says):
    client(sbatch=line)
    with pytest.raises(ClusterError, match=says):
        submit.main.__wrapped__(["slurm", *words])


def test_a_machine_without_slurm_is_one_sentence_and_leaves_nothing(words, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="sbatch, squeue, scontrol not found: submit from"):
        submit.main.__wrapped__(["slurm", *words])
    assert not (tmp_path / "runs").exists()


def test_a_machine_without_ray_is_one_sentence_and_leaves_nothing(words, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClusterError, match="Ray is not installed: run pip install"):
        submit.main.__wrapped__(["ray", *words])
    assert not (tmp_path / "runs").exists()


def test_an_address_where_no_ray_answers_is_not_tried_for_minutes(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    for address in ("auto", "127.0.0.1:1"):
        with pytest.raises(ConnectionRefusedError):
            on_ray._require_open(address)
    monkeypatch.delenv("RAY_ADDRESS")
    for address in ("auto", "local"):
        on_ray._require_open(address)


def test_settings_of_ray_are_not_those_of_slurm():
    with pytest.raises(ConfigError, match="no setting cluster.partition"):
        read_settings("ray", ["cluster.partition=gpu"])
    found = read_settings("ray", ["cluster.address=ray://head:10001", "cluster.gpus=0"])
    assert (found.address, found.gpus) == ("ray://head:10001", 0)


def test_wrong_settings_of_the_training_are_refused_before_submission(client, words, tmp_path):
    with pytest.raises(ConfigError, match="batch_size"):
        submit.main.__wrapped__(["slurm", *words, "protocol.batch_size=0"])
    assert not (tmp_path / "calls").exists()


def test_settings_of_the_cluster_are_checked_all_at_once():
    with pytest.raises(ConfigError, match=r"(?s)workers.*time.*gpus"):
        read_settings("slurm", ["cluster.workers=0", "cluster.time=soon", "cluster.gpus=-1"])
    with pytest.raises(
        ConfigError, match=r"no setting cluster.partitoin: did you mean cluster.partition\?"
    ):
        read_settings("slurm", ["cluster.partitoin=x"])
    with pytest.raises(
        ConfigError, match="'profile=paper' is not a scheduler: begin with one of slurm"
    ):
        read_settings("profile=paper", [])
    found = read_settings("slurm", ["cluster.setup=['module load cuda']", "cluster.time=12:00:00"])
    assert found.setup == ["module load cuda"] and found.time == "12:00:00"


@pytest.mark.parametrize(
    ("status", "state", "is_queued_again"),
    [(143, "RUNNING", True), (138, "RUNNING", True), (143, "", False), (0, "RUNNING", False), (1, "RUNNING", False)],
)  # fmt: skip
def test_a_worker_that_wrote_a_checkpoint_is_queued_again_unless_it_was_cancelled(
    client, tmp_path, monkeypatch, status, state, is_queued_again
):
    client(srun=f"exit {status}", squeue=f"echo {state}")
    (tmp_path / "bin" / "sleep").write_text("#!/bin/bash\n")
    (tmp_path / "bin" / "sleep").chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "41")  # the whole array's, as of its last task
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "41")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    text = slurm.script(read_settings("slurm", []), 1, ["true"], tmp_path)
    assert subprocess.run(["bash"], input=text, text=True, cwd=tmp_path).returncode == status
    calls = (tmp_path / "calls").read_text()
    assert ("scontrol requeue 41_2\n" in calls) == is_queued_again
    assert "squeue" not in calls or "--jobs 41_2 " in calls


def test_who_follows_hears_why_runs_failed(words, tmp_path):
    cfg = compose_cells(tuple(words))[0]
    finish(cfg, **failure(RuntimeError("the disk is full")))
    asked = iter([True, True, False])
    started = time.monotonic()
    with pytest.raises(IncompleteGrid, match=r"3 of 3 runs are not done .*the disk is full"):
        follow(Grid(tuple(words)).items, "runs", lambda: next(asked), tmp_path, poll=0.01)
    assert time.monotonic() - started < 30 and next(asked, None) is None


def test_without_a_record_the_last_error_of_the_logs_is_the_reason(words, tmp_path):
    (tmp_path / "41_1.log").write_text(
        "loading\nerror: PROFILE=paper needs a CUDA GPU, not found here\n"
    )
    with pytest.raises(IncompleteGrid, match="needs a CUDA GPU"):
        follow(Grid(tuple(words)).items, "runs", lambda: False, tmp_path)


@pytest.mark.slow
def test_a_worker_leaves_the_runs_of_others_to_them_and_ends(words):
    with Claim(plan_cells(tuple(words))[0].folder):
        command = [sys.executable, "scripts/train.py", "wait=false", *words]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "waiting" not in found.stdout + found.stderr
    assert [cell.folder.joinpath("record.json").exists() for cell in plan_cells(tuple(words))] == [
        False,
        True,
        True,
    ]
