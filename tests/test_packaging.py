"""What `pip install` gives: the package and its configs alone, and commands and adapters that work outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from condlora.paths import CONFIGS
from tests.tasks import ROOT

ADAPT = """
import importlib.util, sys
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification
import condlora

assert condlora.__file__.startswith(sys.prefix), condlora.__file__
assert importlib.util.find_spec("analysis") is None

def backbone():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=50, intermediate_size=24, **sizes)).eval()

inputs = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}
config = condlora.CondLoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
model = get_peft_model(backbone(), config)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
before = model(**inputs).loss
before.backward()
optimizer.step()
after = model(**inputs)
assert after.loss < before
model.save_pretrained("adapter")
merged = PeftModel.from_pretrained(backbone(), "adapter").merge_and_unload()
torch.testing.assert_close(merged(**inputs).logits, after.logits)
print("adapted")
"""


def scripts() -> dict[str, str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["scripts"]


@pytest.mark.parametrize("name", scripts())
def test_each_console_script_names_a_function(name):
    module, function = scripts()[name].split(":")
    assert callable(getattr(import_module(module), function))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, as building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("condlora", "configs", "analysis", "benchmarks", "scripts", "tests"):
        unneeded = shutil.ignore_patterns("__pycache__", "golden")
        shutil.copytree(ROOT / name, source / name, ignore=unneeded)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index"]
    subprocess.run([*build, "--no-build-isolation", "-w", out, source], check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of commands of an empty environment into which the wheel was installed.

    Its dependencies are those of this environment, so nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(folder, *command) -> subprocess.CompletedProcess:
    """Run a command in a folder outside the checkout."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True)  # fmt: skip


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_configs_alone(wheel):
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {name.parts[0] for name in names} == {"condlora", f"{wheel.stem.rsplit('-', 3)[0]}.dist-info"}  # fmt: skip
    package = {name for name in names if name.parts[0] == "condlora"}
    modules = {path.relative_to(ROOT) for path in (ROOT / "condlora").rglob("*.py")}
    configs = {Path("condlora/configs", path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}  # fmt: skip
    assert package == modules | configs | {Path("condlora/py.typed")}


@pytest.mark.slow
def test_an_installed_wheel_adapts_a_model(environment, tmp_path):
    ended = run(tmp_path, environment / "python", "-c", ADAPT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("adapted\n")


@pytest.mark.slow
def test_a_command_of_an_installed_wheel_finds_the_configs(environment, tmp_path):
    listed = run(tmp_path, environment / "condlora-list", "profile=embedded", "task=rte")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("missing") >= 4
    asked = run(tmp_path, environment / "condlora-list", "--help")
    assert asked.returncode == 0, asked.stderr
