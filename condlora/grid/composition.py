"""Hydra's composition of configs, each once per process for all runs that differ in plain values alone."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from condlora.paths import CONFIGS

Words = tuple[str, ...]  # overrides, as on a command line


@contextlib.contextmanager
def composing(folder: Path = CONFIGS) -> Iterator[None]:
    """Hydra's compose API on a folder of configs, also from within a running Hydra application."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = running


@functools.lru_cache(maxsize=1024)
def parse(word: str) -> Override:
    """An override of a command line; a millisecond, and the runs of a grid share most words."""
    return OverridesParser.create().parse_overrides([word])[0]


def split(overrides: list[Override]) -> tuple[Words, list[Override]]:
    """The words that choose the parts of a config, and the overrides that set one value of it.

    Composing takes a fifth of a second and setting a value a millisecond, so runs that differ in values alone, such as
    their seeds, folders or learning rates, share one composition.
    """
    changed = [o.key_or_group for o in overrides if not _sets_a_value(o) and not _chooses(o)]
    values = [
        o
        for o in overrides
        if _sets_a_value(o) and not any(_overlap(o.key_or_group, key) for key in changed)
    ]
    return tuple(o.input_line for o in overrides if o not in values), values


def _chooses(override: Override) -> bool:
    """Whether it chooses a file of a config group, which Hydra does before it sets anything."""
    return (CONFIGS / override.key_or_group).is_dir() and not isinstance(override.value(), dict)


def _overlap(key: str, other: str) -> bool:
    """Whether one setting is, or is a part of, the other, so that their order may matter."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _sets_a_value(override: Override) -> bool:
    """Whether it gives a setting one value and chooses, adds, deletes and sweeps nothing: `protocol.max_steps=6`."""
    key = override.key_or_group
    return (
        override.type is OverrideType.CHANGE
        and override.package is None
        and (key in ("seed", "runs", "wait") or ("." in key and not key.startswith("hydra.")))
        and not override.is_sweep_override()
        and not isinstance(override.value(), dict | list)
    )


def with_values(cfg: DictConfig, choices: Words, values: list[Override]) -> DictConfig:
    """The config with some values set as Hydra does, in place. Where that fails, Hydra composes all and says why."""
    try:
        for override in values:
            OmegaConf.update(cfg, override.key_or_group, override.value())
    except OmegaConfBaseException:
        words = [*choices, *(o.input_line for o in values)]
        with composing():
            return compose("train", words, return_hydra_config="hydra" in cfg)
    return cfg


@functools.lru_cache(maxsize=64)
def composed(config: str | None, overrides: Words) -> DictConfig:
    """What Hydra composes, with its own settings. Not to be changed: the next call returns the same object."""
    with composing():
        return compose(config, list(overrides), return_hydra_config=True)


@functools.lru_cache(maxsize=64)
def _composed_run(choices: Words) -> DictConfig:
    cfg = copy.deepcopy(composed("train", choices))
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _compose_run(choices: Words) -> DictConfig:
    """The config of a run without Hydra's own settings, which the caller may change."""
    return copy.deepcopy(_composed_run(choices))


def composer(jobs: list[Words]) -> Callable[[Words], DictConfig]:
    """A function from a job's choices to its config, which the next call may change.

    Where jobs differ only in the choices of groups that change nothing but their own part of the config, as tasks and
    adapters do, all choices are composed in one go and put into one config. The last job is composed by itself as well:
    if it differs, the choices are not independent, and each job is composed.
    """
    base = _compose_run(jobs[0])
    if len(jobs) == 1:
        return lambda choices: base
    parts = _independent_choices(jobs, base)

    def assemble(choices: Words) -> DictConfig:
        for position, group in parts.groups.items():
            base[group] = parts.nodes[choices[position]]
        return base

    if parts is not None and _raw(assemble(jobs[-1])) == _raw(_composed_run(jobs[-1])):
        return assemble
    return functools.lru_cache(maxsize=None)(_compose_run)


@dataclass(frozen=True)
class _Choices:
    """groups: config group by the position of its override. nodes: the group's content by the override."""

    groups: dict[int, str]
    nodes: dict[str, DictConfig]


def _independent_choices(jobs: list[Words], base: DictConfig) -> _Choices | None:
    """What differs between the jobs, if that is only choices of config groups that no other override touches."""
    groups, wanted = {}, {}
    keys = [parse(word).key_or_group for word in jobs[0]]
    for position, words in enumerate(zip(*jobs, strict=True)):
        if len(set(words)) == 1:
            continue
        group = keys[position]
        touched = [key for key in keys if key == group or key.startswith(f"{group}.")]
        if len(touched) > 1 or not (CONFIGS / group).is_dir():
            return None
        groups[position] = group
        for choice in map(parse, dict.fromkeys(words)):
            if choice.type is not OverrideType.CHANGE or choice.package is not None:
                return None
            wanted[choice.input_line] = f"{group}{len(wanted)}", group, choice.value()
    words = tuple(f"+{group}@{name}={value}" for name, group, value in wanted.values())
    found = composed(None, words)
    if len(found) != 1 + len(wanted):  # Hydra's part, and one for each choice that changes no other
        return None
    nodes = {line: found[name] for line, (name, _, _) in wanted.items()}
    first = {group: nodes[jobs[0][position]] for position, group in groups.items()}
    if any(_raw(base[group]) != _raw(node) for group, node in first.items()):
        return None
    return _Choices(groups, nodes)


def _raw(cfg: DictConfig) -> dict:
    """The content of a config, its interpolations unresolved."""
    return OmegaConf.to_container(cfg, resolve=False)
