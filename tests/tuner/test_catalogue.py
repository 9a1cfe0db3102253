"""28 architectures, LoRA and VeRA as controls: attach by default, train, save, reload, merge, export.

What LoRA survives, CondLoRA survives. `CONDLORA_WRITE_DOCS=1` writes the table in docs/architectures.md anew.
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
METHODS = {"LoRA": LoraConfig, "VeRA": VeraConfig, "CondLoRA": CondLoraConfig}
STEPS = ("attach", "train", "reload", "merge", "export")
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
        result[step], step = "works", "reload"
        expected = output_of(model.eval(), name)
        model.save_pretrained(folder / "own", save_embedding_layers=False)
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
    rows.append((name, config, results))
    assert results["CondLoRA"]["export"] in ("works", "–"), results["CondLoRA"]
    survived = {method: [s for s in STEPS if r[s] == "works"] for method, r in results.items()}
    assert set(survived["LoRA"]) <= set(survived["CondLoRA"]), results["CondLoRA"]


rows: list = []


def test_the_table_in_the_docs_is_of_these_results():
    if len(rows) < len(ARCHITECTURES):
        pytest.skip("needs the results of all architectures")
    table = [
        "| model | target modules | form | LoRA | VeRA | CondLoRA |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, config, results in rows:
        names = TARGETS.get(name) or sorted(config.target_modules or ())
        shown = names if isinstance(names, str) else ", ".join(names)
        told = [summary(results[method]) for method in METHODS]
        table.append(f"| {name} | {shown} | {config.form} | {' | '.join(told)} |")
    # Under pytest-xdist no process has all results; `pytest tests/tuner/test_catalogue.py -p no:xdist` compares them.
    text = DOCS.read_text() if DOCS.exists() else "<!-- table -->"
    head = text.split("<!-- table -->")[0]
    written = head + "<!-- table -->\n" + "\n".join(table) + "\n"
    if os.environ.get("CONDLORA_WRITE_DOCS"):
        DOCS.write_text(written)
    assert DOCS.read_text() == written, "run with CONDLORA_WRITE_DOCS=1 to update the table"


def summary(result: dict[str, str]) -> str:
    failed = [f"{step}: {told}" for step, told in result.items() if told not in ("works", "–")]
    return failed[0].replace("|", "\\|")[:160] if failed else "works"
