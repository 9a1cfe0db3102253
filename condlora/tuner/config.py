"""The configuration of CondLoRA as a PEFT method; names are those of `peft.LoraConfig` where it has the same."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from condlora.errors import AdapterError
from condlora.tuner.methods import make_method, options_of
from condlora.tuner.methods.base import Method


class CondLoraType(str, enum.Enum):  # noqa: UP042 - as PEFT's own, whose str() PEFT splits at the dot
    """The method's name. An enum, as PEFT prints its `.value`; PEFT's own enum is not changed."""

    CONDLORA = "CONDLORA"


PEFT_TYPE = CondLoraType.CONDLORA
FORMS = ("code", "literal", "consistent")
SHARING = ("path", "shape")
BIAS = ("none", "all", "condlora_only")


@dataclass
class CondLoraConfig(PeftConfig):
    """CondLoRA (Kim et al. 2024): A and B of every layer are made from its own frozen weight W; or another `method`.

    One pair of linear maps theta_A, theta_B serves all target modules of a sharing group; the update is
    `scaling * B A`. Defaults are the paper's (Table 1).

    Args:
        r: rank of the update, at most the smaller dimension of each target weight.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        lora_dropout: dropout on the input of A. The frozen layer's own input is not dropped.
        form: how A (r, in) and B (out, r) come from W (out, in). None (default) is "code" where all target modules are
            square and "consistent" otherwise; it is filled in, and saved, when the adapter is attached.
            "code"       A = theta_A W^T, B = W theta_B^T    the released code; square W only
            "literal"    A = theta_A W^T, B = W^T theta_B^T  equations 5 and 6 with W0 = W; square W only
            "consistent" A = theta_A W,   B = W theta_B^T    equations 5 and 6 with W0 = W^T; any shape
        method: "condlora", or another of `condlora.tuner.methods`: its controls, and other ways to share or
            generate A and B.
        options: the options of that method; those left out are filled in. CondLoRA itself has none.
        sharing: which target modules share one pair of maps:
            "path"       those whose path differs only in the layer index, as in the paper
            "shape"      all those whose weights have the same shape
        layers_per_map: how many neighbouring layers share one pair. None: all of a sharing group, as in the
            paper. k: those whose layer index (the first number in the module path, from 0) has the same
            `index // k`; with k = 1 each layer has its own pair. For every method with shared tensors.
        unshared_modules: paths of target modules, each of which has tensors of its own; the others of its sharing
            group share theirs. LoRA-drop fills it in.
        target_modules: names (suffixes), a regular expression, or "all-linear"; the default of the
            architecture is PEFT's for LoRA.
        exclude_modules: names or a regular expression of modules that get no adapter.
        bias: which biases of the base model are trained and saved too: "none", "all", or
            "condlora_only" for those of the target modules.
        modules_to_save: modules trained and saved whole with the adapter, such as a classifier head.
        layers_to_transform, layers_pattern: restrict the adapter to these layers, as in `LoraConfig`.
        rank_pattern, alpha_pattern: other ranks or alphas by module name or regular expression, as in
            `LoraConfig`, for whole sharing groups: {"query": 4}; with sharing="shape" by shape: {"16x16": 4}.
        use_rslora: scale by `lora_alpha / sqrt(r)` (Kalajdzievski 2023).
        use_dora: train the norm of each row of the adapted weight separately from its direction (Liu et al. 2024).
            Each layer has its own norms. For every method.
        init_weights: theta_A Kaiming-uniform and theta_B zero, so that the adapted model starts as the
            frozen one; False draws all trained tensors like theta_A (for tests).
        fan_in_fan_out: whether the targets store their weight as (in, out), as GPT-2's Conv1D does. It is set from the
            model's layers, and saved as in `LoraConfig`.

    Raises:
        AdapterError: a field has an invalid value.
    """

    r: int = field(default=8, metadata={"help": "Rank of the update."})
    lora_alpha: int = field(
        default=8, metadata={"help": "The update is scaled by `lora_alpha / r`."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of A."})
    form: Literal["code", "literal", "consistent"] | None = field(
        default=None,
        metadata={
            "help": "How A and B are made from W. None: 'code' if all target modules are square, else 'consistent'."
        },
    )
    method: str = field(
        default="condlora",
        metadata={"help": "'condlora', or another method that shares or generates A and B."},
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "The options of that method."}
    )
    sharing: Literal["path", "shape"] = field(
        default="path",
        metadata={
            "help": "Which target modules share maps: those whose path differs only in the layer index, or all of one shape."
        },
    )
    layers_per_map: int | None = field(
        default=None,
        metadata={
            "help": "How many neighbouring layers share one pair of maps. None: all of a group."
        },
    )
    unshared_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Paths of target modules that share tensors with no other. None: none."},
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names, a regular expression, or 'all-linear'. None: PEFT's for LoRA."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names or a regular expression of modules without an adapter."},
    )
    bias: Literal["none", "all", "condlora_only"] = field(
        default="none", metadata={"help": "Which biases of the base model are trained and saved."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved whole, such as a head."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "The layer indices that get an adapter. None: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "The name of the module list that `layers_to_transform` counts in."},
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Other ranks, by module name or regular expression."},
    )
    alpha_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Other alphas, by module name or regular expression."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by `lora_alpha / sqrt(r)`."})
    use_dora: bool = field(
        default=False,
        metadata={"help": "Train the norm of each row of the adapted weight, as DoRA."},
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": "Start as the frozen model. False: all trained tensors are random, for tests."
        },
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={
            "help": "Whether weights are stored as (in, out). Set from the layers by itself."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]  # untyped in PEFT
        self.peft_type = PEFT_TYPE
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        for name, choices in (("form", (None, *FORMS)), ("sharing", SHARING), ("bias", BIAS)):
            value = getattr(self, name)
            if value not in choices:
                raise AdapterError(
                    f"Unknown {name} {value!r}: choose one of {', '.join(filter(None, choices))}."
                )
        self.options = options_of(method_of(self))
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), dict):
                raise AdapterError(
                    f"{name} is {getattr(self, name)!r}: give module names and values, {{'query': 4}}."
                )
        self._check_types()
        for name, r in {"r": self.r, **self.rank_pattern}.items():
            if not isinstance(r, int) or isinstance(r, bool) or r < 1:
                raise AdapterError(f"The rank {name} is {r!r}: give a positive whole number.")
        k = self.layers_per_map
        if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
            raise AdapterError(
                f"layers_per_map is {k!r}: give a positive whole number, or None so that all layers share one pair."
            )
        if not 0.0 <= self.lora_dropout < 1.0:
            raise AdapterError(
                f"lora_dropout is {self.lora_dropout}: give a share of inputs from 0 up to 1, 1 excluded."
            )
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise AdapterError(
                "layers_to_transform needs target_modules as a list of names: "
                "list them, or put the layers into the regular expression."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise AdapterError(
                "layers_pattern names the layers that layers_to_transform counts: set layers_to_transform too."
            )

    def _check_types(self) -> None:
        for name, alpha in {"lora_alpha": self.lora_alpha, **self.alpha_pattern}.items():
            if (
                isinstance(alpha, bool)
                or not isinstance(alpha, int | float)
                or not math.isfinite(alpha)
            ):
                raise AdapterError(f"The alpha {name} is {alpha!r}: give a number.")
        if isinstance(self.lora_dropout, bool) or not isinstance(self.lora_dropout, int | float):
            raise AdapterError(f"lora_dropout is {self.lora_dropout!r}: give a number.")
        for name in ("use_rslora", "use_dora", "init_weights", "fan_in_fan_out"):
            if not isinstance(getattr(self, name), bool):
                raise AdapterError(f"{name} is {getattr(self, name)!r}: give True or False.")
        for name in ("modules_to_save", "unshared_modules"):
            if isinstance(value := getattr(self, name), str):
                raise AdapterError(f"{name} is {value!r}: give a list of names, [{value!r}].")

    def to_dict(self) -> dict[str, Any]:
        """As in PEFT, without fields that were added later and are not used, so that files stay equal to older ones."""
        fields: dict[str, Any] = super().to_dict()
        if self.method == "condlora":
            del fields["method"], fields["options"]
        if not self.use_dora:
            del fields["use_dora"]
        if self.layers_per_map is None:
            del fields["layers_per_map"]
        if self.unshared_modules is None:
            del fields["unshared_modules"]
        return fields


def method_of(config: CondLoraConfig) -> Method:
    """The method that a config names, with its options.

    Raises:
        AdapterError: see `condlora.tuner.methods.make_method`.
    """
    return make_method(config.method, config.options, config.form)
