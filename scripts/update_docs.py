"""Write the tables in docs/ that repeat results or configs: `python scripts/update_docs.py [--check]`.

Results are those in results/reference; the table of methods is made by `method_table.py`.

Between `<!-- table NAME -->` and `<!-- end -->` stands what the function NAME below gives. --check changes nothing
and ends with status 1 where a table is not up to date.
"""

import re
import sys
from pathlib import Path

import pandas as pd
import yaml
from result_blocks import BLOCKS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "reference"
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CONTROLS = {
    "condlora_random": "A Gaussian matrix of W₀'s scale in W₀'s place",
    "condlora_spectrum": "W₀'s singular values with random singular vectors",
    "share_lora_ab": "One A and one B for all layers, without W₀",
    "condlora_other_layer": "The next layer's W₀",
    "condlora_frozen_a": "θ_A frozen at its initial values",
    "vera": "VeRA",
    "tied_lora": "Tied-LoRA",
    "lora": "LoRA",
}


def embedded() -> list[str]:
    """The first rows of Table 2 of the profile embedded: LoRA, CondLoRA and their difference."""
    text = (RESULTS / "embedded/tables/table2.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("|")][:5]


def kinship() -> list[str]:
    return _controls("kinship")


def kinship_glue() -> list[str]:
    return _controls("kinship_glue")


def _controls(profile: str) -> list[str]:
    """Score − CondLoRA's of the controls that a profile has, with its interval."""
    found = pd.read_csv(RESULTS / profile / "tables/frontier.csv").set_index("method")
    columns = ["less_condlora", "less_condlora_low", "less_condlora_high"]
    rows = []
    for method in (name for name in CONTROLS if name in found.index):
        mean, low, high = (f"{x:z.1f}".replace("-", "−") for x in found.loc[method, columns])
        parameters = f"{found.parameters[method]:,.0f}"
        rows.append([CONTROLS[method], parameters, f"{mean} [{low}, {high}]"])
    return _table(["", "trained parameters", "score − CondLoRA's"], rows)


def kinship_rank() -> list[str]:
    """Scores at equal numbers of parameters: a row for each number, a column for each method."""
    found = pd.read_csv(RESULTS / "kinship_rank/tables/frontier.csv")
    methods = {
        "lora": "LoRA",
        "share_lora_ab": "One A and one B",
        "condlora": "CondLoRA",
        "condlora_random": "Gaussian in W₀'s place",
    }
    found["of"] = found.method.str.rpartition("_r")[0]
    found["text"] = [f"{s:.1f} ± {sd:.1f}" for s, sd in zip(found.score, found.sd, strict=True)]
    wide = found.pivot(index="parameters", columns="of", values="text").reindex(columns=methods)
    rows = [
        [f"{n:,.0f}", *row] for n, row in zip(wide.index, wide.fillna("").to_numpy(), strict=True)
    ]
    return _table(["parameters", *methods.values()], rows)


def speed() -> list[str]:
    """Training steps of LoRA on MiniLM relative to the Trainer."""
    found = pd.read_csv(RESULTS / "benchmark/training.csv")
    found = found.set_index(["model", "method", "variant", "task"]).sort_index()
    names = {
        "longest": "padded to the longest",
        "packed": "packed",
        "fleet_4": "packed, four runs jointly",
    }
    columns = [
        (over, task)
        for over in ("over_trainer_512", "over_trainer_dynamic")
        for task in ("cola", "rte")
    ]
    forms = [".0f", ".1f", ".2f", ".2f"]
    rows = [
        [name, *(f"{found.loc[('minilm', 'lora', variant, task), over]:{form}}"
                 for (over, task), form in zip(columns, forms, strict=True))]
        for variant, name in names.items()
    ]  # fmt: skip
    header = [
        "relative to the Trainer",
        "padded to 512: CoLA",
        "RTE",
        "dynamic padding: CoLA",
        "RTE",
    ]
    return _table(header, rows)


def latency() -> list[str]:
    """Inference time over the backbone's on MiniLM, with the ratios of Hu et al.'s table 1 in columns of their own."""
    found = pd.read_csv(RESULTS / "benchmark/latency.csv")
    found = found[found.model == "minilm"].set_index(["method", "batch", "tokens"])
    paper = yaml.safe_load((ROOT / "results/paper/latency.yaml").read_text(encoding="utf-8"))
    names = {
        "backbone_again": "the backbone, a copy",
        "lora": "LoRA, merged",
        "condlora": "CondLoRA, merged",
        "pfeiffer": "Adapter (Pfeiffer)",
        "houlsby": "Adapter (Houlsby)",
    }
    rows = []
    for method, name in names.items():
        row = [name]
        for shape in paper["times"]:
            n = found.loc[(method, *map(int, shape.split("x")))]
            row.append(
                f"{n.over_backbone:.3f} [{n.over_backbone_min:.3f}, {n.over_backbone_max:.3f}]"
            )
        for times in paper["times"].values():
            row.append(f"{times[method] / times['lora']:.2f}" if method in times else "–")
        rows.append(row)
    shapes = [shape.replace("x", " x ") for shape in paper["times"]]
    header = ["time over the backbone's", *shapes, *(f"Hu et al., {shape}" for shape in shapes)]
    return _table(header, rows)


def analyses() -> list[str]:
    """Time and memory of all analyses of matrices at 12 x 768, and the longest of them."""
    found = pd.read_csv(RESULTS / "benchmark/controls.csv").set_index("figure").value
    names = {
        "power": "power, 440 planted worlds",
        "shares": "share that one map explains, with controls",
        "linear_map": "linear map of the claims",
        "controls": "controls of Figure 1",
        "conversion": "Figure 1",
    }
    rows = [[name, f"{found[f'{key}_seconds']:.0f}"] for key, name in names.items()]
    rows.append(["all, two at a time", f"{found['wall_seconds']:.0f}"])
    table = _table(["analysis", "seconds"], rows)
    return [*table, "", f"Peak memory of the process: {found['memory_mib']:,.0f} MiB."]


def learning_rates() -> list[str]:
    """Learning rates of LoRA and CondLoRA on three small models: the best one, and those that give nearly as much."""
    found = pd.read_csv(RESULTS / "benchmark/learning_rates.csv")
    names = {
        "encoder": "MiniLM, SST-2",
        "decoder": "Llama of 4 x 128, text",
        "vision": "ViT of 4 x 64, digits",
    }
    rows = []
    for model, name in names.items():
        of_model = found[found.model == model]
        before = of_model.loss[of_model.method == "none"].item()
        for method, shown in {"lora": "LoRA", "condlora": "CondLoRA"}.items():
            runs = of_model[of_model.method == method]
            form = runs.form.dropna().unique()
            loss = runs.groupby("rate").loss.mean()
            gain = before - loss
            near = gain.index[gain >= 0.9 * gain.max()]
            ends = f"{near.min():g} to {near.max():g}" if len(near) > 1 else f"{near.min():g}"
            shown += f" (`{form[0]}`)" if len(form) else ""
            rows.append(
                [name, shown, f"{before:.3f}", f"{loss.min():.3f}", f"{loss.idxmin():g}", ends]
            )
    return _table(
        ["", "", "loss before", "lowest loss", "at rate", "rates with 90 % of that gain"], rows
    )


def peft_suite() -> list[str]:
    """Outcomes of PEFT's own tests: a row for each suite, passed, failed and skipped tests of each method."""
    found = pd.read_csv(RESULTS / "peft_suite/outcomes.csv").set_index(["suite", "method"])
    rows = []
    for suite in found.index.unique("suite"):
        row = [f"`{suite.rpartition('/')[2]}`"]
        for method in ("Lora", "Vera", "CondLora"):
            n = found.loc[(suite, method)]
            row.append(f"{n.passed} / {n.failed + n.inherent} / {n.skipped}")
        rows.append([*row, str(found.loc[(suite, "CondLora"), "inherent"])])
    header = ["passed / failed / skipped", "LoRA", "VeRA", "CondLoRA", "of these failures inherent"]
    return _table(header, rows)


def methods() -> list[str]:
    """One table for each family of methods."""
    from method_table import tables  # imports torch

    return tables()


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


TABLES = {
    f.__name__: f
    for f in (
        embedded,
        kinship,
        kinship_glue,
        kinship_rank,
        speed,
        latency,
        analyses,
        learning_rates,
        peft_suite,
        methods,
    )
} | BLOCKS


def updated(text: str) -> str:
    """A page with every marked table written again."""
    return MARKED.sub(lambda m: m[1] + "\n".join(TABLES[m[2]]()) + "\n" + m[3], text)


def main() -> None:
    outdated = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if updated(text) != text:
            outdated.append(path.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                path.write_text(updated(text), encoding="utf-8")
    if outdated and "--check" in sys.argv:
        sys.exit(
            f"Tables are not up to date in {', '.join(outdated)}: run python scripts/update_docs.py."
        )


if __name__ == "__main__":
    main()
