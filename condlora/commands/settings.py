"""The settings of the commands other than training, whose are in `condlora.runs.settings`: see configs/<command>.yaml."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationInfo, field_validator

from condlora import settings
from condlora.settings import Settings, choice, folder_fault, items, matching, number, whole

NAME = matching(r"^\w[\w.-]*$", "the name of a profile")


class SearchSettings(Settings):
    """configs/search/settings.yaml"""

    profile: NAME
    overrides: items(str, "a list of settings, as in 'overrides=[\"task=rte,cola\"]'")
    repeats: whole(1)
    further: whole(0)
    extend: whole(0)
    refine: choice(True, False)
    around: matching(r"^\w[\w.-]*$", "the name of a profile", null=True)
    seed: whole(0)
    jobs: whole(1)
    learning_rates: items(
        number(0, above=True),
        "a list of numbers above 0, as in learning_rates=[1e-3,4e-3]",
        least=1,
    )

    @field_validator("learning_rates")
    @classmethod
    def _rates_differ_and_continue(cls, rates: list[float], others: ValidationInfo) -> list[float]:
        if len(set(rates)) < len(rates):
            raise ValueError(f"learning_rates={rates} holds a rate twice: leave one out.")
        if len(rates) < 2 and (others.data.get("further") or others.data.get("extend")):
            raise ValueError(
                f"learning_rates={rates} is one rate, and further and extend continue the step between two: name "
                "another, or set further=0 extend=0."
            )
        return rates


class AnalysisSettings(Settings):
    """configs/analysis/settings.yaml"""

    profile: matching(r"^\w[\w.-]*$", "the name of a profile", null=True)
    adapters: items(str, "a list of folders or hub ids, as in 'adapters=[a,b]'", least=1, null=True)
    baseline_seed: whole(0)
    baseline_draws: whole(1)
    i: whole(1, null=True)
    j: whole(1, null=True)
    margin_points: number(0, above=True, null=True)
    against: matching(r"^\w[\w.-]*$", "the name of a profile", null=True)
    may_differ: items(str, "a list, as in may_differ=[versions,commit]")
    fill_from_records: choice(True, False)


class BenchmarkSettings(Settings):
    """The settings of configs/benchmark.yaml that all measures share."""

    measures: items(str, "a list of measures, as in 'measures=[analysis,memory]'", least=1)
    layers: whole(1)
    hidden_size: whole(1)
    rank: whole(1)
    repeats: whole(1)


class GpuCheckSettings(Settings):
    """The settings of configs/gpu_check.yaml that are no part of a measurement."""

    device: choice("cuda", "cpu")
    size: choice("full", "toy")
    seconds: whole(1)
    profile: NAME


SCHEMAS = {
    "search/settings": SearchSettings,
    "analysis/settings": AnalysisSettings,
    "benchmark": BenchmarkSettings,
    "gpu_check": GpuCheckSettings,
}


def check_command(config: str, cfg: DictConfig) -> None:
    """Raise a ConfigError that names all settings of a command that are not set or invalid; `config` names its file."""
    if config not in SCHEMAS:
        return
    found = settings.unset(cfg)
    if not found:
        plain = OmegaConf.to_container(cfg, resolve=True)
        found += settings.faults(SCHEMAS[config], plain)
        for name in ("runs", "results", "records"):
            if isinstance(plain.get(name), str):
                found += folder_fault(name, plain[name])
    settings.refuse(found)
