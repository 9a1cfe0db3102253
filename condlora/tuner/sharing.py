"""Which target modules share one set of tensors: with CondLoRA, one pair of maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from condlora.tuner.config import CondLoraConfig


@dataclass(frozen=True)
class Target:
    """A module that gets an adapter: its path in the model, and the shape (out, in) of its weight.

    is_step: it is a direct child of an `nn.Sequential`, so the number at the end of its path is a position in a
    computation and not a layer index.
    """

    path: str
    shape: tuple[int, int]
    is_step: bool = False

    @classmethod
    def of(cls, path: str, shape: Sequence[int], parent: nn.Module) -> Target:
        out_features, in_features = shape
        return cls(path, (out_features, in_features), isinstance(parent, nn.Sequential))


def layer_index(path: str) -> int | None:
    """The layer index in a module path: its first numeric component, or None where there is none."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def sharing_group(path: str) -> str:
    """The module path without its layer index."""
    numbers = _numbers(path)
    return _without(path, numbers[0]) if numbers else path


def sharing_groups(targets: Iterable[Target], config: CondLoraConfig) -> dict[str, str]:
    """The name of the sharing group of every target, by path.

    With sharing="shape" it is the shape, "16x24". With sharing="path" it is the path without its layer index. The layer
    index is the first number in the path. If modules that differ in this number have different shapes (Swin's stages), it
    is the first number for which the shapes of each group are equal. If there is no such number, a module shares with no other.

    `layers_per_map` divides each of these groups into blocks of neighbouring layers. A module of `unshared_modules` is a
    group of its own.
    """
    alone = {path: path for path in config.unshared_modules or ()}
    if config.sharing == "shape":
        return {
            target.path: block_of(sizes(target.shape, "x"), layer_index(target.path), config)
            for target in targets
        } | alone
    kinds: dict[str, list[Target]] = {}
    for target in targets:
        parts = target.path.split(".")
        kind = ".".join("*" if part.isdigit() else part for part in parts)
        kinds.setdefault(kind, []).append(target)
    groups = {}
    for members in kinds.values():
        position = _layer_position(members)
        for target in members:
            index = None if position is None else int(target.path.split(".")[position])
            groups[target.path] = block_of(_without(target.path, position), index, config)
    return groups | alone


def block_of(group: str, index: int | None, config: CondLoraConfig) -> str:
    """The part of a group that shares one set of tensors: all of it, or a block of neighbouring layers."""
    if config.layers_per_map is None or index is None:
        return group
    return f"{group}.block-{index // config.layers_per_map}"


def _layer_position(members: list[Target]) -> int | None:
    """The position of the layer index in the paths of modules of one kind; None if no number can be it."""
    candidates = _numbers(members[0].path)
    last = members[0].path.count(".")
    if any(target.is_step for target in members):
        candidates = [position for position in candidates if position != last]
    for position in candidates:
        shapes: dict[str, set[tuple[int, int]]] = {}
        for target in members:
            shapes.setdefault(_without(target.path, position), set()).add(target.shape)
        if all(len(of_group) == 1 for of_group in shapes.values()):
            return position
    return None


def _numbers(path: str) -> list[int]:
    """The positions of the numeric components of a path."""
    return [position for position, part in enumerate(path.split(".")) if part.isdigit()]


def _without(path: str, position: int | None) -> str:
    return ".".join(part for i, part in enumerate(path.split(".")) if i != position)


def sizes(shape: Iterable[int], separator: str = " x ") -> str:
    """A shape in words: "16 x 24"."""
    return separator.join(map(str, shape))
