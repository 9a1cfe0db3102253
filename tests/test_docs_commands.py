"""Every command in README and docs names what exists, and its settings compose; test_examples runs those of contributing.md."""

import importlib
import re
import shlex
import tomllib

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from condlora.cluster.settings import read_settings
from condlora.commands.arguments import Parser
from condlora.commands.settings import check_command
from condlora.grid.cells import compose_cells
from condlora.paths import CONFIGS
from tests.tasks import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *(ROOT / "results/reference").rglob("README.md")]  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORD = r"(?:'[^']*'|[^\s'`>&|;#])+"
# Where a target's ARGS go.
TAKES_ARGS = {
    "gpu-check": "scripts/gpu_check.py",
    "reference": "analysis/report.py",
    "submit": "scripts/submit.py",
}


def lines(pages=PAGES):
    """The lines of the pages' shell blocks, and code within their text; what has a placeholder is no command."""
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found = "\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)).splitlines()
        found += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        yield from (line for line in found if not re.search(r"\.\.\.|<|\$analysis", line))


def commands():
    """(script, words) of each call of a script, also behind torchrun, nohup or sbatch, but for the worked examples."""
    for line in lines(page for page in PAGES if page.name != "contributing.md"):
        pattern = rf"(?:python|torchrun)\b.*?((?:analysis|scripts)/\w+\.py)((?: +{WORD})*)"
        for script, words in re.findall(pattern, line):
            yield script, shlex.split(words)


def make_commands():
    """(target, variables) of each call of make."""
    for line in lines():
        for target, words in re.findall(rf"\bmake ([a-z-]+)((?: [A-Z_]+={WORD})*)", line):
            yield target, dict(word.split("=", 1) for word in shlex.split(words))


def check_settings(script, words):
    """Composes the words with the config of the script, where it has one."""
    source = (ROOT / script).read_text(encoding="utf-8")
    module = re.search(r"from (condlora\.commands\.\w+) import main", source)
    if module:
        source = (ROOT / (module[1].replace(".", "/") + ".py")).read_text(encoding="utf-8")
    config = re.search(r'@command\("([\w/]+)"', source)
    if config is None or not words or "--help" in words:
        return
    name = config[1]
    if script == "scripts/submit.py":
        cluster, *words = words
        read_settings(cluster, [word for word in words if word.startswith("cluster.")])
        words = [word for word in words if not word.startswith("cluster.")]
        if words[:1] == ["search"]:
            name, words = "search/settings", words[1:]
    words = [word for word in words if word not in ("--watch", "--dry-run")]
    if name == "train":
        words = [word for word in words if not word.startswith(("-", "hydra"))]
        assert compose_cells(tuple(words)), words
        return
    GlobalHydra.instance().clear()
    path = CONFIGS / name
    with initialize_config_dir(str(path.parent), version_base="1.3"):
        check_command(name, compose(path.name, words))


@pytest.mark.slow
def test_commands_of_the_pages_name_settings_that_exist():
    found = [(script, words) for script, words in commands() if (ROOT / script).exists()]
    assert len(found) >= 45
    for script, words in found:
        check_settings(script, words)


def test_make_commands_of_the_pages_have_targets_and_settings_that_exist():
    found = list(make_commands())
    assert len(found) >= 25
    for target, variables in found:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
        profile = variables.pop("PROFILE", "embedded")
        assert (CONFIGS / f"profile/{profile}.yaml").exists(), profile
        before, after = [], []
        if target == "submit":
            before, after = [variables.pop("CLUSTER", "slurm")], [f"profile={profile}"]
        variables.pop("GLUE_DATA", None)
        words = shlex.split(variables.pop("ARGS", ""))
        assert not variables, variables
        if words:
            check_settings(TAKES_ARGS[target], [*before, *words, *after])


def test_commands_with_plain_arguments_are_understood(monkeypatch):
    """Those of export, import and fetch, as console scripts and as files."""
    monkeypatch.setattr(Parser, "run", lambda self, function: self.parse_args())
    names = {name: path.partition(":")[0] for name, path in PROJECT["scripts"].items()}
    tried = 0
    for line in lines():
        for name, words in re.findall(rf"^(?:python )?(condlora-\w+|scripts/\w+\.py)((?: +{WORD})+)", line):  # fmt: skip
            module = names.get(name) or f"condlora.commands.{name[8:-3]}"
            is_plain = module.rpartition(".")[2] in ("export_lora", "import_adapter", "fetch")
            if is_plain and line.startswith(("python", "condlora")) and "--help" not in words:
                monkeypatch.setattr("sys.argv", [name, *shlex.split(words)])
                importlib.import_module(module).main()  # an unknown option ends it
                tried += 1
    assert tried >= 4


@pytest.mark.parametrize("pattern", [r"condlora-\w+", r"\[(\w+)\]", r"tests[/.][\w/.]+"], ids=["scripts", "extras", "tests"])  # fmt: skip
def test_names_in_commands_exist(pattern):
    """Console scripts, extras that pip installs, and tests that pytest or python run."""
    runs = {r"\[(\w+)\]": "pip install", r"tests[/.][\w/.]+": "pytest |python -m "}
    exists = {
        r"condlora-\w+": lambda name: name in PROJECT["scripts"] or name == "condlora-grid",
        r"\[(\w+)\]": lambda name: name in PROJECT["optional-dependencies"],
        r"tests[/.][\w/.]+": lambda name: any(
            (ROOT / path).exists() for path in (name, name.replace(".", "/") + ".py")
        ),
    }[pattern]
    found = [name for line in lines() if re.search(runs.get(pattern, ""), line) for name in re.findall(pattern, line)]  # fmt: skip
    assert found
    for name in found:
        assert exists(name), name
