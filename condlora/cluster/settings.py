"""The settings of workers on a cluster: configs/cluster/<scheduler>.yaml, and `cluster.name=value` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import yaml

from condlora.errors import ConfigError
from condlora.paths import CONFIGS
from condlora.settings import Settings, choice, faults, items, matching, refuse, whole

TEXTS = ("partition", "account", "qos", "time", "memory", "python", "address")
WORD = r"^[\w.+:@/-]+$"


class SlurmSettings(Settings):
    """configs/cluster/slurm.yaml"""

    workers: whole(1)
    at_a_time: whole(1, null=True)
    partition: matching(WORD, "a name", null=True)
    account: matching(WORD, "a name", null=True)
    qos: matching(WORD, "a name", null=True)
    time: matching(r"^(\d+-)?\d+(:\d+){0,2}$", "a time as SLURM writes it, as in 24:00:00")
    grace: whole(1)
    cpus: whole(1)
    memory: matching(r"^\d+[KMGT]?$", "an amount as SLURM writes it, as in 32G")
    gpus: whole(0)
    options: items(str, "a list of options, as in '[\"--constraint=a100\"]'")
    setup: items(str, "a list of lines, as in '[\"module load cuda\"]'")
    python: matching(".", "a path", null=True)
    follow: choice(True, False)


class RaySettings(Settings):
    """configs/cluster/ray.yaml"""

    workers: whole(1)
    address: matching(WORD, "an address, as in auto, local or ray://head:10001")
    cpus: whole(1)
    gpus: whole(0)
    python: matching(".", "a path", null=True)
    follow: choice(True)


SCHEDULERS = {"slurm": SlurmSettings, "ray": RaySettings}


def read_settings(scheduler: str, words: Sequence[str]) -> SlurmSettings | RaySettings:
    """The settings of a scheduler with those of `words` (cluster.name=value, value in YAML) put in.

    Raises:
        ConfigError: an unknown scheduler or name, or the values that are wrong, all at once.
    """
    if scheduler not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise ConfigError(
            f"{scheduler!r} is not a scheduler: begin with one of {known}, as in scripts/submit.py slurm profile=paper."
        )
    plain = yaml.safe_load((CONFIGS / "cluster" / f"{scheduler}.yaml").read_text(encoding="utf-8"))
    for word in words:
        name, _, value = word.removeprefix("cluster.").partition("=")
        if name not in plain:
            close = get_close_matches(name, plain, n=1)
            advice = (
                f"did you mean cluster.{close[0]}?" if close else f"use one of {', '.join(plain)}."
            )
            raise ConfigError(f"There is no setting cluster.{name}: {advice}")
        # YAML would read 12:00:00 as a number of seconds.
        is_text = name in TEXTS and value != "null"
        plain[name] = value if is_text else yaml.safe_load(value)
    schema = SCHEDULERS[scheduler]
    refuse(faults(schema, plain))
    return schema(**plain)
