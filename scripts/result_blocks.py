"""Generated blocks of README.md and docs/results.md: the table of claims, and what the runs of MPNet-base show of Figure 1.

`scripts/update_docs.py` writes them, `update_docs.py --check` compares them.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "reference"
UNTRAINED = "gaussian_through_inverse_W0"  # Gaussian A and B, with the same inverse of W0


def claims() -> list[str]:
    """A row for each of the paper's main claims: the paper's numbers, ours, and the verdict by the rules of claims.yaml."""
    from method_table import cells, parameters  # imports torch

    found = {c["key"]: c for c in json.loads((RESULTS / "embedded/claims.json").read_text("utf-8"))}
    paper = {n: yaml.safe_load((ROOT / f"results/paper/table{n}.yaml").read_text("utf-8")) for n in (2, 3, 4)}  # fmt: skip
    printed, speed = paper[4]["trainable_parameters"], paper[4]["train_examples_per_second"]
    counted = parameters(cells(["lora", "condlora"]))
    average, steps = paper[2]["printed_average"], _steps("embedded")
    same = found["conversion_above_gaussian_mnli"]
    untrained = found["conversion_above_control"]["verdict"] == "does not hold"
    phi = pd.read_csv(RESULTS / "embedded/tables/figure1_means.csv")
    phi = phi[(phi.module == "value") & (phi.matrix == "A")].groupby("source").off_diagonal.mean()
    matrices = found["adapters_above_random_value"]
    rows = [
        ["1/12 of LoRA's parameters (Table 4)",
         f"{printed['condlora']:,} of {printed['lora']:,}",
         f"{counted['condlora']:,} of {counted['lora']:,}",
         found["parameters_one_over_layers"]["verdict"]],
        ["GLUE scores equal to LoRA's (Table 2)",
         f"{average['condlora']} and {average['lora']}",
         f"{_estimate(found['equal_on_average'], 1)} points after {steps} steps",
         f"{found['equal_on_average']['verdict']}: LoRA still improves"],
        ["Conversion matrices are more similar between layers than random ones (Figure 1)",
         "no numbers printed",
         f"φ {_short(same['estimate'], 3)}; random {_short(same['null'], 3)}; untrained {_short(phi[UNTRAINED], 3)}",
         same["verdict"] + ", also without training" * untrained],
        ["LoRA and CondLoRA learn more similar matrices than random ones (Table 3)",
         ", ".join(_short(sum(v) / len(v), 3) for v in paper[3]["phi"].values())
         + f"; random {_short(paper[3]['i'] / paper[3]['d'], 3)}",
         ", ".join(_short(v, 3) for v in _table3(paper[3]["module"]))
         + f"; random {_short(matrices['null'], 3)}",
         matrices["verdict"]],
        ["Trains as fast as LoRA (Table 4)",
         f"{speed['condlora'] / speed['lora']:.3f} times",
         f"{_estimate(found['speed_not_lower'], 3)} times",
         found["speed_not_lower"]["verdict"]],
        ["As fast as LoRA after merging (section 4)",
         "stated",
         f"{_estimate(found['merged_speed_equal'], 3)} times",
         found["merged_speed_equal"]["verdict"]],
    ]  # fmt: skip
    return _lines([["claim of the paper", "paper", "here", "status"], ["---"] * 4, *rows])


def figure1() -> list[str]:
    """What the runs of MPNet-base and the planted adapters say of Figure 1."""
    means = pd.read_csv(RESULTS / "mpnet_conversion/tables/figure1_means.csv")
    means = means[(means.module == "value") & means.matrix.isin(["A", "B"])]
    phi = means.groupby("source").off_diagonal.mean()
    power = pd.read_csv(RESULTS / "power/minilm/tables/power.csv")
    power = power[power.form == "W"].set_index(["statistic", "module", "rho"]).sort_index()
    planted = power.loc[("phi_all", "value"), "mean"]
    detected = 100 * power.loc["left_out_map", "smallest_rho"].max()
    shares = pd.read_csv(RESULTS / "mpnet_conversion/tables/shares.csv")
    shares = shares[shares.step < 0].set_index(["form", "source", "module"]).sort_index()
    other = shares.loc[("B", "other_layer_W0"), "share"].max()
    of_A = max(shares.loc[(form, "own_W0"), "share"].max() for form in ("A_code", "A_consistent"))
    common = shares.loc[("delta_A_code", "no_W0"), "share"]
    runs = pd.read_csv(RESULTS / "mpnet_conversion/tables/runs.csv")
    n, steps = (runs.state == "done").sum(), _steps("mpnet_conversion")
    items = [
        "Figure 1 compares `W0^-1 A'` and `W0^-1 B` between layers. `W0^-1` alone produces the picture: on an encoder of the paper's size "
        f"(MPNet-base, 12 layers of width 768, value modules) the mean similarity φ is {_short(phi['trained'], 3)} for trained LoRAs, "
        f"{_short(phi[UNTRAINED], 3)} for Gaussian `A` and `B` with the same `W0^-1`, and "
        f"{_short(phi['gaussian'], 3)} for the paper's random baseline.",
        "The statistic cannot test the paper's hypothesis. We constructed adapters for MiniLM of which one linear map of `W0` explains "
        f"a known share: φ is {_short(planted[0.0], 3)} for a share of 0, {_short(planted[0.9], 3)} for 90 %, "
        f"{_short(planted[0.99], 3)} for 99 % and {planted[1.0]:.0f} for 100 % (figure, left).",
        "A better test fits one map on all layers but one and applies it to the layer left out. With three runs it detects a share of "
        f"{detected:.0f} %. On MPNet-base the map explains {_interval(shares.loc[('B', 'own_W0', 'query')])} of query `B` and "
        f"{_interval(shares.loc[('B', 'own_W0', 'value')])} of value `B`; with another layer's `W0` at most {_short(other, 3)}. "
        f"Of `A` it explains at most {_short(of_A, 3)}. So `B` depends on `W0` a little, but one map does not yield `A` and `B`.",
        "Layers do share directions of `A`, without `W0`: one common matrix explains "
        f"{_short(common['value'], 2)} of what training adds to value `A` and {_short(common['query'], 2)} for query `A`. "
        f"(Items 1, 3 and 4: {n} LoRA runs of {steps} steps.)",
    ]
    lines = []
    for number, item in enumerate(items, 1):
        lines += textwrap.wrap(
            f"{number}. {item}", 120, subsequent_indent="   ", break_on_hyphens=False
        )
    return lines


def mpnet_figure1() -> list[str]:
    """Mean φ of conversion matrices of value modules: trained, Gaussian A, and the paper's baseline."""
    found = pd.read_csv(RESULTS / "mpnet_conversion/tables/figure1_means.csv")
    found = found[(found.module == "value") & (found.matrix == "A")].set_index("source")
    names = {
        "trained": "W₀⁻¹A′, trained",
        UNTRAINED: "W₀⁻¹A′, Gaussian A",
        "gaussian": "Gaussian matrices (the paper's baseline)",
    }
    pairs = {"off_diagonal": "all pairs", "deep": "deep half", "shallow": "shallow half"}
    rows = [
        [name, *(_mean_sd(found.loc[source, column]) for column in pairs)]
        for source, name in names.items()
    ]
    return _lines([["", *pairs.values()], ["---", *["---:"] * 3], *rows])


def mpnet_shares() -> list[str]:
    """The share that one map explains, by module kind, and the best of the controls with another matrix."""
    found = pd.read_csv(RESULTS / "mpnet_conversion/tables/shares.csv")
    found = found[found.step < 0].set_index(["form", "source", "module"]).sort_index()
    rows = []
    for form, name in {"B": "B = W₀θ′", "A_code": "A = θW₀′ (the paper's)", "A_consistent": "A = θW₀"}.items():  # fmt: skip
        controls = found.loc[form].loc[["other_layer_W0", "gaussian_W0", "spectrum_of_W0"], "share"]
        own = (_interval(found.loc[(form, "own_W0", module)]) for module in ("query", "value"))
        rows.append([name, *own, _short(controls.max(), 3)])
    common = (_interval(found.loc[("delta_A_code", "no_W0", m)]) for m in ("query", "value"))
    rows.append(["one common ΔA, no W₀", *common, ""])
    header = ["", "query", "value", "best control with a matrix in W₀'s place"]
    return _lines([header, ["---", *["---:"] * 3], *rows])


def _mean_sd(values: pd.Series) -> str:
    return f"{_short(values.mean(), 4)} ± {_short(values.std(), 4)} ({len(values)})"


def _lines(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in rows]


def _table3(module: str) -> list[float]:
    """Mean φ over layers and pairs of runs of A, B and ΔW."""
    found = pd.read_csv(RESULTS / "embedded/tables/table3.csv")
    means = found[found.module == module].groupby("matrix").phi.mean()
    return [means[name] for name in ("A", "B", "delta_W")]


def _steps(profile: str) -> str:
    steps = pd.read_csv(RESULTS / profile / "tables/runs.csv")
    steps = pd.to_numeric(steps[steps.state == "done"].steps)
    low, high = steps.min(), steps.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


def _estimate(claim: dict[str, Any], digits: int) -> str:
    numbers = (f"{v:.{digits}f}".replace("-", "−") for v in (claim["estimate"], *claim["interval"]))
    return "{} [{}, {}]".format(*numbers)


def _interval(row: Any) -> str:
    return f"{_short(row.share, 3)} [{_short(row.low, 3)}, {_short(row.high, 3)}]"


BLOCKS = {f.__name__: f for f in (claims, figure1, mpnet_figure1, mpnet_shares)}
