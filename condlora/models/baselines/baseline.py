"""All mechanisms of one adapted model, behind the hooks that the training loop calls."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from condlora.models.baselines.adalora import AdaLora, CondAdaLora
from condlora.models.baselines.bottleneck import Bottleneck, Bottlenecks
from condlora.models.baselines.butterfly import Butterfly
from condlora.models.baselines.changed_weights import Corda, LoftQ, Milora, Olora, Pissa
from condlora.models.baselines.combined import Combined
from condlora.models.baselines.eva import Eva
from condlora.models.baselines.learning_rates import LearningRates
from condlora.models.baselines.lora_drop import LoraDrop
from condlora.models.baselines.mechanism import Batches, Mechanism
from condlora.models.baselines.own_weights import FrozenWeights, TrainedWeights
from condlora.models.baselines.prompts import PromptLearning
from condlora.models.baselines.quantised import Quantised
from condlora.models.baselines.random_parts import RandomParts
from condlora.models.baselines.rank_by_depth import RankByDepth
from condlora.models.baselines.routed import Routed

# In the order in which their hooks are called: the backbone is quantised and seeds are drawn before a start from
# examples, and what is trained is decided after every start.
MECHANISMS: tuple[type[Mechanism], ...] = (
    PromptLearning,
    Quantised,
    Bottlenecks,
    Combined,
    RandomParts,
    Butterfly,
    Routed,
    RankByDepth,
    LoraDrop,
    Eva,
    Pissa,
    Olora,
    Milora,
    Corda,
    LoftQ,
    TrainedWeights,
    FrozenWeights,
    LearningRates,
    AdaLora,
    CondAdaLora,
)


def mechanisms_of(cfg: DictConfig, config: PeftConfig) -> list[Mechanism]:
    """The mechanisms that an adapter needs. cfg: the `adapter` group; config: PEFT's."""
    return [kind(cfg, config) for kind in MECHANISMS if kind.serves(cfg, config)]


def attach(
    base: PreTrainedModel, config: PeftConfig, cfg: DictConfig, batches: Batches | None
) -> PeftModel:
    """Attach an adapter to a model and start it as its method does.

    cfg: the `adapter` group. batches: of the training data, for methods that start from them. The result has
    `base_weights`, the names of the backbone's own weights that are saved with the adapter, and `mechanisms`.

    Raises:
        ConfigError: the method does not work on this model.
    """
    mechanisms = mechanisms_of(cfg, config)
    for mechanism in mechanisms:
        mechanism.check(base)
    for mechanism in mechanisms:
        mechanism.before_attach(base, batches)
    with warnings.catch_warnings():
        # A combination has LoRA's layers in the backbone already, see `combined`.
        warnings.filterwarnings("ignore", "You are trying to modify a model with PEFT for a second")
        model = get_peft_model(base, config)
    model.base_weights = []
    for mechanism in mechanisms:
        mechanism.after_attach(model, batches)
    model.mechanisms = mechanisms
    return model


def prepare_base(base: PreTrainedModel, cfg: DictConfig, head: Iterable[str]) -> None:
    """Change, in place, a model that a saved adapter is loaded onto into one like that it was trained on.

    It is quantised, or gets bottleneck adapters or the layers of a combined adapter, whose weights are in the adapter's file.
    """
    if cfg.get("quantise"):
        Quantised.apply(base, cfg, head)
    if cfg.get("bottleneck"):
        Bottlenecks.apply(base, cfg)
    if cfg.get("inner"):
        Combined.apply(base, cfg)


class Baseline:
    """The hooks of an adapted model's method, for the training loop; the model keeps all state.

    For a model from `attach` they are those of its adapter's config; for a loaded one those of PEFT's config alone.
    """

    def __init__(self, model: PeftModel):
        self.model = model
        self.config: PeftConfig = model.peft_config["default"]
        self.mechanisms: list[Mechanism] | None = getattr(model, "mechanisms", None)
        if self.mechanisms is None:
            self.mechanisms = mechanisms_of(OmegaConf.create({"config": {}}), self.config)

    @property
    def base_weights(self) -> list[str]:
        """Names of the backbone's own weights that are saved with the adapter."""
        return getattr(self.model, "base_weights", [])

    def parameter_groups(self, learning_rate: float) -> list[nn.Parameter] | list[dict[str, Any]]:
        """The trainable parameters as torch's optimizers take them: one list, or a group per learning rate."""
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        groups: dict[float, list[nn.Parameter]] = {}
        sets_rates = False
        for name, parameter in trainable.items():
            factors = (m.learning_rate_factor(name) for m in self.mechanisms)
            factor = next((f for f in factors if f is not None), None)
            sets_rates |= factor is not None
            groups.setdefault(1 if factor is None else factor, []).append(parameter)
        if not sets_rates:
            return list(trainable.values())
        return [{"params": own, "lr": factor * learning_rate} for factor, own in groups.items()]

    def begin(self, total_steps: int) -> None:
        """Before the first step. Raises ConfigError if a schedule does not fit into `total_steps` steps."""
        for mechanism in self.mechanisms:
            mechanism.begin(self.model, total_steps)

    def after_step(self, step: int) -> None:
        """Between the optimizer's step (counted from 1) and the clearing of gradients."""
        for mechanism in self.mechanisms:
            mechanism.after_step(self.model, step)

    def may_be_kept(self, step: int) -> bool:
        """Whether the adapter after this step may be chosen as the run's result."""
        return all(mechanism.may_be_kept(self.model, step) for mechanism in self.mechanisms)

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that a checkpoint needs besides the trainable parameters."""
        found: dict[str, torch.Tensor] = {}
        for mechanism in self.mechanisms:
            found |= mechanism.state(self.model)
        return found

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        for mechanism in self.mechanisms:
            mechanism.load_state(self.model, tensors)

    @contextmanager
    def as_saved(self) -> Iterator[dict[str, torch.Tensor]]:
        """Within it PEFT may save the adapter; yields the tensors to save in addition, by name."""
        own = dict(self.model.named_parameters())
        with ExitStack() as stack:
            for mechanism in self.mechanisms:
                stack.enter_context(mechanism.as_saved(self.model))
            yield {name: own[name].detach().contiguous() for name in self.base_weights}

    def merged(self) -> nn.Module | None:
        """The model with the adapter merged into its weights; None for methods that cannot be merged.

        The trained head is put in its place first: many PEFT tuners look there for a `weight`, which a head of
        several layers (RoBERTa's) does not have.
        """
        if not all(mechanism.can_be_merged for mechanism in self.mechanisms):
            return None
        if any(isinstance(module, Bottleneck) for module in self.model.modules()):
            return (
                None  # a loaded model does not have the mechanisms that its adapter's file asks for
            )
        base = self.model.get_base_model()
        for name, child in list(base.named_children()):
            if isinstance(child, ModulesToSaveWrapper):
                setattr(base, name, child.modules_to_save["default"])
        return self.model.merge_and_unload()


def baseline_of(model: PeftModel) -> Baseline:
    """The hooks of an adapted model's method."""
    return Baseline(model)


def is_one_product(cfg: DictConfig, config: PeftConfig, saved: Iterable[str]) -> bool:
    """Whether a saved adapter adds scaling * B A, of one rank, to the pretrained W that all methods share.

    cfg: the `adapter` group; config: PEFT's, as saved; saved: names of the tensors in the adapter's file. True for LoRA,
    rsLoRA, LoRA+, LoRA-FA and CondLoRA. False for DoRA, which scales the sum; for EVA, whose layers differ in rank; for
    methods that changed W; and for all that are not LoRA. Controls and relatives of CondLoRA are excluded as well: the
    paper's statements about its matrices are not about theirs.
    """
    if config.peft_type not in ("LORA", "CONDLORA") or getattr(config, "use_dora", False):
        return False
    if getattr(config, "method", "condlora") != "condlora":
        return False
    if not all(mechanism.is_one_product for mechanism in mechanisms_of(cfg, config)):
        return False
    saved = list(saved)
    changed_W = any(name.endswith(".base_layer.weight") for name in saved)
    return not changed_W and any("lora_" in name for name in saved)
