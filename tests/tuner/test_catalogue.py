"""28 architectures, LoRA and VeRA as controls: attach by default, train, save, reload, merge, export.

What LoRA survives, CondLoRA survives. Each test compares its row of the table in docs/architectures.md with what it found;
`CONDLORA_WRITE_DOCS=1 pytest tests/tuner/test_catalogue.py -p no:xdist` writes the table.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model

from condlora import CondLoraConfig, export_lora
from tests.tuner.catalogue import ARCHITECTURES, TARGETS, build, inputs_of, output_of

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"
MARK = "<!-- table -->\n"
METHODS = {"LoRA": LoraConfig, "VeRA": VeraConfig, "CondLoRA": CondLoraConfig}
STEPS = ("attach", "train", "save", "reload", "merge", "export")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def journey(name: str, method: str, folder: Path) -> tuple[dict[str, str], object]:
    """What each step of the journey came to, "works" or the first line of an error, and the adapter's config."""
    result = dict.fromkeys(STEPS, "–")
    step = "attach"
    config = METHODS[method](target_modules=TARGETS.get(name))
    try:
        model = get_peft_model(build(name), config)
        result[step], step = "works", "train"
        train(model, name)
        result[step], step = "works", "save"
        expected = output_of(model.eval(), name)
        model.save_pretrained(folder / "own", save_embedding_layers=False)
        result[step], step = "works", "reload"
        same(PeftModel.from_pretrained(build(name), folder / "own").eval(), name, expected)
        result[step], step = "works", "merge"
        model.merge_adapter()
        same(model, name, expected)
        model.unmerge_adapter()
        result[step], step = "works", "export"
        if method == "CondLoRA":
            export_lora(model, folder / "lora")
            same(PeftModel.from_pretrained(build(name), folder / "lora").eval(), name, expected)
            result[step] = "works"
    except Exception as error:
        result[step] = str(error).split("\n")[0] or type(error).__name__
    return result, config


def train(model, name: str) -> None:
    """Two steps, after which the output must differ."""
    before = output_of(model.eval(), name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    model.train()
    for _ in range(2):
        outputs = model(**inputs_of(name))
        loss = getattr(outputs, "loss", None)
        (outputs.last_hidden_state.square().mean() if loss is None else loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(output_of(model.eval(), name), before), "training changed nothing"


def same(model, name: str, expected: torch.Tensor) -> None:
    torch.testing.assert_close(output_of(model, name), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_lora_survives_condlora_survives(name, tmp_path):
    results = {}
    for method in METHODS:
        (tmp_path / method).mkdir()
        results[method], config = journey(name, method, tmp_path / method)
    assert results["CondLoRA"]["export"] in ("works", "–"), results["CondLoRA"]
    survived = {method: [s for s in STEPS if r[s] == "works"] for method, r in results.items()}
    assert set(survived["LoRA"]) <= set(survived["CondLoRA"]), results["CondLoRA"]
    row = table_row(name, config, results)
    if os.environ.get("CONDLORA_WRITE_DOCS"):
        write(name, row)
    assert row in DOCS.read_text().splitlines(), "run with CONDLORA_WRITE_DOCS=1 to write the table"


def table_row(name: str, config: CondLoraConfig, results: dict[str, dict[str, str]]) -> str:
    """Of CondLoRA every step; of LoRA and VeRA the first that failed, if any."""
    names = TARGETS.get(name) or sorted(config.target_modules or ())
    shown = names if isinstance(names, str) else ", ".join(names)
    steps = [results["CondLoRA"][step].replace("|", "\\|") for step in STEPS]
    controls = [summary(results[method]) for method in ("LoRA", "VeRA")]
    return f"| {' | '.join([name, shown, config.form or '–', *steps, *controls])} |"


def summary(result: dict[str, str]) -> str:
    failed = [f"{step}: {told}" for step, told in result.items() if told not in ("works", "–")]
    return failed[0].replace("|", "\\|")[:160] if failed else "works"


def write(name: str, row: str) -> None:
    """Put a row into the table in the docs, in the order of ARCHITECTURES."""
    head, _, table = DOCS.read_text().partition(MARK)
    found = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[2:]}
    found[name] = row
    header = ["model", "target modules", "form", *STEPS, "LoRA", "VeRA"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [found[each] for each in ARCHITECTURES if each in found]
    DOCS.write_text(head + MARK + "\n".join(lines) + "\n")


def test_the_table_has_a_row_for_each_architecture_and_no_other():
    rows = DOCS.read_text().partition(MARK)[2].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ARCHITECTURES)
    assert len(ARCHITECTURES) == 28
