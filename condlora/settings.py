"""Typed settings: types that know how to say what they expect, and a check that reports all invalid values at once.

A command's settings are a pydantic model whose fields are these types. Unknown names are Hydra's to refuse, so the models
ignore them. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError

from condlora.errors import ConfigError


class Settings(BaseModel):
    """Base of all settings; a field's description is what an error says was expected."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


def whole(least: int, *, null: bool = False, auto: bool = False) -> Any:
    """A whole number of at least `least`; with `null` or `auto`, None or "auto" too."""
    number = Annotated[StrictInt, Field(ge=least)]
    return _described(number, f"a whole number of at least {least}", null=null, auto=auto)


def number(least: float, most: float | None = None, *, above: bool = False, null: bool = False):
    """A finite number from `least` (with `above`, not itself) to `most`."""
    bound = {"gt" if above else "ge": least} | ({} if most is None else {"le": most})
    says = f"a number above {least:g}" if above else f"a number of at least {least:g}"
    if most is not None:
        says = f"a number from {least:g} to {most:g}"
    return _described(Annotated[StrictFloat, Field(**bound)], says, null=null)


def choice(*names: str | bool) -> Any:
    """One of a few values."""
    return _described(Literal[names], f"one of {', '.join(map(str, names))}")


def matching(pattern: str, says: str, *, null: bool = False) -> Any:
    """Text that a regular expression matches."""
    return _described(Annotated[str, Field(pattern=pattern)], says, null=null)


def items(of: Any, says: str, *, least: int = 0, null: bool = False) -> Any:
    """A list of at least `least` items."""
    return _described(Annotated[list[of], Field(min_length=least)], says, null=null)


def _described(kind: Any, says: str, *, null: bool = False, auto: bool = False) -> Any:
    if auto:
        kind, says = kind | Literal["auto"], f"{says}, or auto"
    if null:
        kind, says = kind | None, f"{says}, or null"
    return Annotated[kind, Field(description=says)]


def faults(schema: type[Settings], plain: dict) -> list[str]:
    """A sentence for each invalid value of some settings; one that is left out is not checked."""
    try:
        schema.model_validate(plain)
    except ValidationError as error:
        found = [fault for fault in error.errors() if fault["type"] != "missing"]
        return list(dict.fromkeys(_sentence(schema, plain, fault) for fault in found))
    return []


def _sentence(schema: type[Settings], plain: dict, fault: dict) -> str:
    """What is wrong with one value; a validator of ours has written its own sentence."""
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    names, value, says = [], plain, fault["msg"]
    for part in fault["loc"]:
        field = schema.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            break  # within a list or a union, which are described as a whole
        names.append(part)
        value, says = value.get(part), field.description or says
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Settings)):
            break
        schema = field.annotation
    return f"Invalid value {'.'.join(names)}={value!r}; expected {says}."


def unset(cfg: DictConfig) -> list[str]:
    """A sentence for each mandatory setting (`???`) of a config that is not set."""
    names = sorted(_missing(OmegaConf.to_container(cfg, resolve=False), ""))
    return [f"{name} is not set: add {name}=... to the command." for name in names]


def _missing(plain: dict, prefix: str) -> Iterator[str]:
    for key, value in plain.items():
        if value == "???":
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")


def folder_fault(name: str, path: str) -> list[str]:
    """Whether a folder that is to be written cannot be one, as it or a folder above it is a file."""
    folder = Path(path)
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if there is None or there.is_dir():
        return []
    return [f"Invalid value {name}={path}; {there} is a file: choose a folder with {name}=...."]


def refuse(found: Iterable[str]) -> None:
    """Raise a ConfigError that names every fault; nothing where there is none."""
    sentences = list(dict.fromkeys(found))
    if len(sentences) == 1:
        raise ConfigError(sentences[0])
    if sentences:
        raise ConfigError("\n  ".join([f"{len(sentences)} settings are wrong:", *sentences]))
