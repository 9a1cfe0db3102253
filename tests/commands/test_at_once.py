"""What is answered within two seconds, as neither torch nor any library that takes as long is imported for it."""

import json
import os
import subprocess
import sys

import pytest

from tests.tasks import ROOT

# Run one after the other in one process: a module that one of them imports would stay for the next and be seen.
RUNNER = """
import contextlib, io, json, runpy, sys
cases, found = json.loads(sys.argv[1]), []
for script, *words in cases:
    sys.argv = [script, *words]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    heavy = sorted({"torch", "transformers", "datasets", "peft", "pandas", "accelerate"} & set(sys.modules))
    found.append([out.getvalue(), err.getvalue(), status, heavy])
print(json.dumps(found))
"""
SCRIPTS = sorted(
    f"{folder}/{path.name}"
    for folder in ("scripts", "analysis")
    for path in (ROOT / folder).glob("*.py")
    if "from condlora.commands." in path.read_text()
)
GROUPS = ["backbone=minilm", "data=synthetic", "protocol=embedded"]
WRONG = [
    (["scripts/train.py", "task=wnli"], "There is no task 'wnli': choose one of cola"),
    (["scripts/train.py", "adapter=loraa"], "There is no adapter 'loraa'"),
    (["scripts/train.py", *GROUPS, "protocol.rate=1"], "Unknown setting"),
    (["scripts/train.py", *GROUPS, "protocol.batch_size=0"], "Invalid value protocol.batch_size=0"),
    (["scripts/train.py", "profile=paper"], "PROFILE=paper needs a CUDA GPU"),
    (["scripts/train.py", *GROUPS, "runtime.device=cuda"], "no CUDA device is available"),
    (["scripts/train.py", "profile=minilm_glue", "data.root=/nowhere"], "/nowhere does not exist"),
    (["scripts/train.py", *GROUPS, "runs=a (1)"], "quote it as 'runs=\"a (1)\"'"),
    (["scripts/list.py", "profile=nothing"], "There is no profile 'nothing'"),
    (["scripts/search_learning_rate.py", "profile=embedded", "jobs=-1"], "Invalid value jobs=-1"),
    (["analysis/glue_scores.py", "baseline_draws=0"], "Invalid value baseline_draws=0"),
    (["scripts/gpu_check.py"], "no CUDA device is available"),
    (["analysis/report.py", "runs=/nowhere"], "There are no finished runs in /nowhere"),
]  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    cases = [[script, "--help"] for script in SCRIPTS]
    cases += [
        ["scripts/list.py", "profile=embedded", "runs=/nowhere"],
        *(words for words, _ in WRONG),
    ]
    cases = [[str(ROOT / script), *words] for script, *words in cases]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(cases)],
        capture_output=True, text=True, env=env, cwd=tmp_path_factory.mktemp("elsewhere"), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(map(tuple, cases), json.loads(done.stdout), strict=True))


def answer(answers, script, *words):
    return answers[(str(ROOT / script), *words)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_the_command_does_with_two_examples_under_its_own_name(answers, script):
    out, _, status, heavy = answer(answers, script, "--help")
    assert (status, heavy) == (0, [])
    first, *rest = out.splitlines()
    assert first.startswith(f"python {script}: ")
    shown = [line for line in rest[:10] if line.startswith(f"    python {script}")]
    assert len(shown) >= 2 or script in ("scripts/benchmark.py", "scripts/fetch.py")
    assert "Hydra" not in "".join(rest[:6])


def test_a_grid_is_listed_without_torch(answers):
    out, _, status, heavy = answer(answers, "scripts/list.py", "profile=embedded", "runs=/nowhere")
    assert "32 missing of 32" in out
    assert (status, heavy) == (0, [])


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_said_without_torch(answers, words, message):
    _, err, status, heavy = answer(answers, *words)
    assert message in err
    assert (status, heavy) == (2, [])


@pytest.mark.slow
def test_importing_condlora_registers_the_method_and_imports_torch_only_when_needed():
    program = """
import sys
import condlora
assert "torch" not in sys.modules and "CondLoraConfig" in dir(condlora)
import peft
assert "CONDLORA" in [str(getattr(key, "value", key)) for key in peft.PEFT_TYPE_TO_CONFIG_MAPPING]
assert peft.__spec__.loader is peft.__loader__ and type(peft.__loader__).__module__ != "condlora.registration"
from condlora import CondLoraConfig, export_lora
assert isinstance(CondLoraConfig(), peft.PeftConfig) and callable(export_lora)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_ends_the_list_quietly():
    words = f"{sys.executable} {ROOT}/scripts/list.py profile=embedded runs=/nowhere | head -1"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, shell=True, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("task")
    assert done.stderr == ""
