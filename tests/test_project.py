"""What holds for the project as a whole: every config composes, imports go one way, the README is true."""

import ast
import copy
import re
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf

from condlora.errors import ConfigError
from condlora.grid.cells import compose_cells
from condlora.grid.preflight import preflight
from condlora.runs.recipe import recipe
from condlora.training import run as finetune
from tests.tasks import GLUE_TASKS, ROOT

PROFILES = sorted(p.stem for p in (ROOT / "configs" / "profile").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_composes_into_complete_recipes(profile, monkeypatch):
    monkeypatch.delenv("GLUE_DATA", raising=False)  # the analysis composes without the data
    cells = compose_cells((f"profile={profile}",))
    params = OmegaConf.load(ROOT / "configs" / "profile" / f"{profile}.yaml")
    sweep = OmegaConf.select(params, "hydra.sweeper.params", default={})
    expected = 1
    for values in sweep.values():
        expected *= len(str(values).split(","))
    assert len(cells) == expected
    rates = re.findall(
        r"- optional /rates.*: (\w+)", (ROOT / f"configs/profile/{profile}.yaml").read_text()
    )
    if rates and not any((ROOT / f"configs/rates/{name}.yaml").exists() for name in rates):
        with pytest.raises(ConfigError, match="has no learning_rate"):
            recipe(cells[0])  # not searched yet
        return
    for cfg in cells:
        assert recipe(cfg)["protocol"]["learning_rate"] > 0


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


@pytest.mark.parametrize("protocol", ["authors", "paper", "lora_setting"])
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


README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""


def test_readme_names_what_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= targets
    for profile in re.findall(r"PROFILE=(\w+)", README):
        assert profile in PROFILES
    for path in re.findall(
        r"(?:python |\]\()((?:scripts|analysis|results|docs|configs|examples)/[\w./-]+)", README
    ):
        assert (ROOT / path).exists(), path


def train_commands():
    """The words of each `python scripts/train.py` in the README, Hydra's own aside."""
    commands = re.findall(
        r"^python scripts/train.py (.*)$", README.replace("\\\n", " "), re.MULTILINE
    )
    for command in commands:
        words = shlex.split(command, comments=True)
        yield [word for word in words if not word.startswith(("-", "hydra"))]


def test_readme_overrides_compose():
    commands = list(train_commands())
    assert commands
    for words in commands:
        assert compose_cells(tuple(words)), words


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
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert isinstance(names["model"], Roberta)
    for folder in ("my-adapter", "my-adapter-as-lora"):
        assert (tmp_path / folder / "adapter_model.safetensors").is_file()


def test_the_example_runs_to_its_end():
    """It ends with an error where the saved, exported or merged model gives other logits."""
    words = [sys.executable, ROOT / "examples" / "condlora_any_model.py"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("exported, without condlora: logits differ by at most") == 2


def tables_of(section):
    """The rows of each table in a section of the README."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\|.*\|$", text, re.MULTILINE)


def committed(path):
    """A file of results, of which the README speaks as it is committed; skips where it was made anew."""
    if shutil.which("git"):
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", path], cwd=ROOT)
        if changed.returncode == 1:  # more: no checkout, where nothing can be told
            pytest.skip(f"{path} was made anew here; the README's numbers are the committed file's")
    return ROOT / path


def test_results_that_were_made_anew_are_not_held_against_the_readme(monkeypatch):
    assert committed("results/embedded/tables/table2.md").exists()
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess("git diff", 1)
    )
    with pytest.raises(pytest.skip.Exception, match=r"table2.md was made anew here"):
        committed("results/embedded/tables/table2.md")


def test_readme_table_is_the_committed_one():
    rows = tables_of("Run it")
    table = committed("results/embedded/tables/table2.md").read_text()
    assert len(rows) == 5
    assert all(row in table for row in rows)


def less_condlora(found, method):
    """A method's score less CondLoRA's with its interval, as the README writes it."""
    columns = ["less_condlora", "less_condlora_low", "less_condlora_high"]
    mean, low, high = (f"{v:z.1f}".replace("-", "−") for v in found.loc[method, columns])
    return f"{mean} [{low}, {high}]"


def test_readme_controls_on_real_text_are_those_of_the_committed_frontier():
    found = pd.read_csv(committed("results/kinship_glue/tables/frontier.csv")).set_index("method")
    for method in ("condlora_random", "share_lora_ab", "tied_lora", "vera", "lora"):
        row = f"| {found.parameters[method]:,.0f} | {less_condlora(found, method)} |"
        assert row in README, method
    assert f"CondLoRA's {found.score['condlora']:.1f} ± {found.sd['condlora']:.1f}" in README


def test_readme_controls_are_those_of_the_committed_frontier():
    found = pd.read_csv(committed("results/kinship/tables/frontier.csv")).set_index("method")
    prose = " ".join(README.split())
    order = ("condlora_random", "condlora_spectrum", "share_lora_ab", "condlora_other_layer")
    order += ("condlora_frozen_a", "vera", "tied_lora", "lora")
    shown = [
        [c.strip() for c in row.split("|")[2:4]] for row in tables_of("What the controls show")
    ]
    for (parameters, numbers), method in zip(shown[2 : 2 + len(order)], order, strict=True):
        assert (parameters, numbers) == (
            f"{found.parameters[method]:,.0f}",
            less_condlora(found, method),
        )
    for method, words in (
        ("condlora", "CondLoRA's"), ("full", "full fine-tuning has"), ("corda", "CorDA"), ("oft", "OFT"), ("lora", "LoRA"),
    ):  # fmt: skip
        assert f"{words} {found.score[method]:.1f} ± {found.sd[method]:.1f}" in prose
    place = found.score.rank(ascending=False)["condlora"]
    assert f"CondLoRA is number {place:.0f} of {len(found)} methods" in prose
    for method in ("ia3", "ln_tuning", "condlora_dora", "cond_pissa", "cond_adalora"):
        assert less_condlora(found, method) in prose, method


def test_readme_scores_at_equal_parameters_are_those_of_the_committed_frontier():
    found = pd.read_csv(committed("results/kinship_rank/tables/frontier.csv"))
    columns = ("lora", "share_lora_ab", "condlora", "condlora_random")
    of_methods = {}
    for row in found.itertuples():
        place = f"{row.parameters:,.0f}", row.method.rpartition("_r")[0]
        of_methods[place] = f"{row.score:.1f} ± {row.sd:.1f}"
    shown = {}
    for row in tables_of("What the controls show"):
        parameters, *scores = [cell.strip() for cell in row.split("|")[1:-1]]
        if len(scores) == len(columns) and parameters[0].isdigit():
            shown |= {(parameters, m): s for m, s in zip(columns, scores, strict=True) if s}
    assert shown == of_methods


def test_readme_speeds_are_those_of_the_committed_benchmark():
    found = pd.read_csv(committed("results/benchmark/training.csv"))
    found = found.set_index(["model", "method", "variant", "task"]).sort_index()
    columns = [
        ("over_trainer_512", "cola", ".0f"),
        ("over_trainer_512", "rte", ".1f"),
        ("over_trainer_dynamic", "cola", ".2f"),
        ("over_trainer_dynamic", "rte", ".2f"),
    ]
    shown = [[c.strip() for c in row.split("|")[2:-1]] for row in tables_of("Speed")[2:]]

    def ratios(model, variant):
        return [
            f"{found.loc[(model, 'lora', variant, task), over]:{form}}"
            for over, task, form in columns
        ]

    assert shown == [ratios("minilm", variant) for variant in ("longest", "packed", "fleet_4")]
    cola, rte, cola_dynamic, rte_dynamic = ratios("roberta-base", "packed")
    assert f"{cola} times the examples of the first on CoLA's texts and {rte} on" in README
    assert f"{cola_dynamic} and {rte_dynamic} times those of the second" in README
    slower = [
        f"{found.loc[(model, 'lora', 'packed', task), 'examples_per_second'] / found.loc[(model, 'condlora', 'packed', task), 'examples_per_second']:.2f}"
        for model in ("minilm", "roberta-base")
        for task in ("cola", "rte")
    ]
    said = (
        "CondLoRA's packed step takes {} (CoLA) and {} (RTE) of LoRA's time on MiniLM, {} and {} at"
    )
    assert said.format(*slower) in " ".join(README.split())
    of_matrix_rate = found.of_matrix_rate["roberta-base", "lora", "packed"]
    assert f"at {of_matrix_rate['cola']:.2f} and {of_matrix_rate['rte']:.2f} of" in README


def test_readme_figures_of_compiling_are_those_of_the_committed_benchmark():
    found = pd.read_csv(committed("results/benchmark/compiled.csv")).set_index("variant")
    share = found.examples_per_second["compiled"] / found.examples_per_second["longest"]
    prose = " ".join(README.split())
    assert f"a first step of {found.first_step_seconds['compiled']:.0f} s" in prose
    assert f"the three after it did {share:.2f} times the examples" in prose


def test_readme_growth_is_that_of_the_committed_benchmark():
    found = pd.read_csv(committed("results/benchmark/growth.csv"))
    rate = found[found.method == "lora"].set_index(["variant", "task"]).examples_per_second
    gain = rate["fleet_16"] / rate["packed"]
    assert f"some {gain['tokens_16']:.1f} times the examples of one" in " ".join(README.split())
    assert gain["tokens_256"] == pytest.approx(0.5, abs=0.02)  # "half as many"
