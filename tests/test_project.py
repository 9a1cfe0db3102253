"""What holds for the project as a whole: every config composes, imports go one way, README and docs are true."""

import ast
import copy
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from condlora.errors import ConfigError
from condlora.grid.cells import compose_cells, each_config
from condlora.grid.preflight import preflight
from condlora.runs.recipe import recipe
from condlora.training import run as finetune
from tests.tasks import GLUE_TASKS, ROOT, slow

PROFILES = sorted(p.stem for p in (ROOT / "configs" / "profile").glob("*.yaml"))
USED_MOST = ("adhoc", "embedded", "minilm_glue", "paper", "single_gpu")


@pytest.mark.parametrize("profile", [*USED_MOST, *slow(*sorted({*PROFILES} - {*USED_MOST}))])
def test_every_profile_composes_into_complete_recipes(profile, monkeypatch):
    monkeypatch.delenv("GLUE_DATA", raising=False)  # the analysis composes without the data
    count, cells = 0, []
    for cfg, is_fresh in each_config((f"profile={profile}",)):
        count += 1
        if is_fresh:  # runs that differ in the seed alone have one recipe
            cells.append(copy.deepcopy(cfg))
    params = OmegaConf.load(ROOT / "configs" / "profile" / f"{profile}.yaml")
    sweep = OmegaConf.select(params, "hydra.sweeper.params", default={})
    expected = 1
    for values in sweep.values():
        expected *= len(str(values).split(","))
    assert count == expected
    rates = re.findall(
        r"- optional /rates.*: (\w+)", (ROOT / f"configs/profile/{profile}.yaml").read_text()
    )
    if rates and not any((ROOT / f"configs/rates/{name}.yaml").exists() for name in rates):
        with pytest.raises(ConfigError, match="has no learning_rate"):
            recipe(cells[0])  # not searched yet
        return
    for cfg in cells:
        assert recipe(cfg)["protocol"]["learning_rate"] > 0


@pytest.mark.slow
def test_the_parts_of_parity_are_profiles_at_their_number_of_steps_that_its_rules_name():
    (whole, *_) = compose_cells(("profile=parity",))
    rules = OmegaConf.load(ROOT / "configs/analysis/parity_rules.yaml")
    curve = whole.profile.parts.curve
    for steps, profile in (*curve.items(), (4800, whole.profile.parts.dial)):
        cells = compose_cells((f"profile={profile}",))
        assert {cfg.protocol.max_steps for cfg in cells} == {steps}
        name = steps if profile in curve.values() else "dial"
        assert {cfg.seed for cfg in cells} == set(rules.seeds[name])
        assert {cfg.task.name for cfg in cells} == set(rules.primary.tasks)
    assert {cfg.task.name for cfg in compose_cells(("profile=parity_small",))} == set(
        rules.secondary.appendix
    )


@pytest.mark.parametrize("protocol", ["authors", "paper", *slow("lora_setting")])
def test_authors_protocols_cover_all_tasks_and_both_methods(protocol):
    tasks = ",".join(GLUE_TASKS)
    cells = compose_cells((f"protocol={protocol}", f"task={tasks}", "adapter=lora,condlora"))
    assert len(cells) == 16
    for cfg in cells:
        plain = recipe(cfg)["protocol"]
        assert plain["epochs"] > 0
        assert plain["batch_size"] == 16


def test_values_of_the_authors_scripts():
    """A few cells against the released scripts, so that a slip in the tables shows."""
    (cfg,) = compose_cells(("task=stsb", "adapter=lora", "protocol=authors"))
    plain = recipe(cfg)
    assert plain["protocol"]["learning_rate"] == 1.61048057994754e-3
    assert plain["protocol"]["epochs"] == 100
    assert plain["protocol"]["early_stopping_patience"] == 30
    assert plain["protocol"]["warmup_ratio"] == 0.1
    assert plain["adapter"]["config"]["r"] == plain["adapter"]["config"]["lora_alpha"] == 8
    (paper,) = compose_cells(("task=sst2", "protocol=paper"))
    assert recipe(paper)["protocol"]["epochs"] == 100
    (second,) = compose_cells(("task=sst2", "protocol=lora_setting"))
    assert recipe(second)["protocol"]["epochs"] == 60
    assert recipe(second)["protocol"]["learning_rate"] == 5e-4
    assert recipe(second)["adapter"]["config"]["lora_dropout"] == 0.1


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_file_is_safe_yaml(path):
    assert yaml.safe_load(path.read_text()) is not None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_imports_go_one_way():
    """configs -> condlora -> analysis: condlora knows no analysis, and the analysis never trains."""
    for path in (ROOT / "condlora").rglob("*.py"):
        assert not any(
            name.split(".")[0] in ("analysis", "matplotlib") for name in imports(path)
        ), path
    for path in (ROOT / "analysis").rglob("*.py"):
        forbidden = (
            "condlora.training.run",
            "condlora.glue",
            "condlora.training.evaluation",
            "accelerate",
        )
        assert not any(name.startswith(forbidden) for name in imports(path)), path


def test_no_pickle_and_no_remote_code():
    for folder in ("condlora", "analysis", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in imports(path)}
            assert "trust_remote_code=True" not in text
            loads = [line for line in text.splitlines() if "torch.load(" in line]
            assert all("weights_only=True" in line for line in loads), path


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# It makes files and runs them, which tests/test_examples.py does too.
WORKED_EXAMPLES = ROOT / "docs" / "contributing.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_names_what_exists(page):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for profile in re.findall(r"PROFILE=(\w+)", text):
        assert profile in PROFILES
    made_by_the_page = re.findall(r"^# ((?:analysis|configs)/[\w./-]+)$", text, re.MULTILINE)
    for path in re.findall(r"python ((?:scripts|analysis|examples)/[\w./-]+)", text):
        assert (ROOT / path).exists() or path in made_by_the_page, path
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / link).exists(), link


def train_commands():
    """The words of each `python scripts/train.py` in README and docs, Hydra's own options aside."""
    for page in (page for page in PAGES if page != WORKED_EXAMPLES):
        text = page.read_text().replace("\\\n", " ")
        for command in re.findall(r"^python scripts/train.py (.*)$", text, re.MULTILINE):
            words = shlex.split(command, comments=True)
            yield [word for word in words if not word.startswith(("-", "hydra"))]


@pytest.mark.slow
def test_documented_overrides_compose():
    commands = list(train_commands())
    assert len(commands) > 5
    for words in commands:
        assert compose_cells(tuple(words)), words


def test_git_ignores_what_is_made_and_keeps_the_reference_results():
    """A quick start must leave `git status` clean: nothing that it writes lies where files are committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def git(*words, text=None):
        found = subprocess.run(
            ["git", *words], cwd=ROOT, input=text, capture_output=True, text=True
        )
        return found.stdout.splitlines()

    made = [f"results/{name}/{file}" for name in (*PROFILES, "benchmark", "power/minilm")
            for file in ("report.html", "claims.json", "search.csv", "tables/table2.csv", "figures/figure1.png")]  # fmt: skip
    made += ["results/soak.csv", "runs/embedded/rte/lora/seed-0/record.json"]
    assert git("check-ignore", "--no-index", "--stdin", text="\n".join(made)) == made
    committed = git("ls-files", "results")
    assert not git("check-ignore", "--no-index", "--stdin", text="\n".join(committed))
    assert {path.split("/")[1] for path in committed} == {"paper", "reference"}


@pytest.mark.slow
def test_the_tables_in_the_pages_are_those_of_the_committed_results():
    words = [sys.executable, ROOT / "scripts" / "update_docs.py", "--check"]
    # It makes an adapter of each method on RoBERTa-base, without values.
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr


def test_readme_command_for_your_own_data_runs(tmp_path, monkeypatch):
    """Word for word, but for a toy backbone and fewer steps."""
    (words,) = (words for words in train_commands() if "task=custom" in words)
    rows = [
        f"Book {i},It was {'bad' if i % 2 else 'good'}.,{'bad' if i % 2 else 'good'}"
        for i in range(30)
    ]
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("\n".join(["title,body,stars", *rows, ""]))
    monkeypatch.chdir(tmp_path)
    words = [*words, "backbone=tiny", "protocol.max_steps=4", "runtime.threads=1"]
    words.remove("backbone=minilm")
    preflight(words)
    records = [finetune.run(cfg) for cfg in compose_cells(tuple(words))]
    assert [record["adapter"] for record in records] == ["lora", "condlora"]
    assert all(record["data"]["counts"]["test"] == 30 for record in records)


def test_readme_use_in_your_own_code_runs(tmp_path, monkeypatch):
    """The README's Python block, word for word, with a toy RoBERTa in place of the hub's."""
    from transformers import AutoModelForSequenceClassification, RobertaConfig
    from transformers import RobertaForSequenceClassification as Roberta

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    toy = Roberta(RobertaConfig(vocab_size=50, intermediate_size=24, **sizes))
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained", lambda name: copy.deepcopy(toy)
    )
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert isinstance(names["model"], Roberta)
    for folder in ("my-adapter", "my-adapter-as-lora"):
        assert (tmp_path / folder / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_example_runs_to_its_end():
    """It ends with an error where the saved, exported or merged model gives other logits."""
    words = [sys.executable, ROOT / "examples" / "condlora_any_model.py"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("exported, without condlora: logits differ by at most") == 2
