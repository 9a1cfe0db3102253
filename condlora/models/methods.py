"""What some methods need beside a PEFT config, all in one place; most is asked for by a key of the adapter's file.

    trained                regular expression: which of the model's own weights are trained (full, BitFit)
    frozen                 regular expression: which of the adapter's are not (LoRA-FA)
    learning_rate_factors  regular expression on a parameter's name -> factor on the rate (LoRA+, VB-LoRA)
    start                  a start that PEFT lacks: milora
    examples               of the training data that the start is made from, one by one (CorDA)
    quantise               the 4-bit format of the backbone's linear layers: nf4 (QLoRA)
    schedule               shares of the run's steps (AdaLoRA, Conditional AdaLoRA)
    requires               a package that is not among the requirements (LoftQ, QLoRA)

Full fine-tuning, the head alone and BitFit are PEFT models too, of LoRA on no module: what is trained of the model
itself is saved under its own name in the adapter's file, which PEFT loads like any other tensor. So there is one
kind of model, of folder and of checkpoint. In the same way a method that starts by taking something out of W (PiSSA,
OLoRA, MiLoRA, CorDA, LoftQ) saves what is left of W: a start made anew from W, as PEFT does by itself, may differ in
its last bits, and CorDA's needs the data. Such a file is as large as the adapted weights: 54 MiB where LoRA has 1.1 on
RoBERTa-base, query and value.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from condlora.errors import ConfigError

# Size of a batch -> the training batches, in order.
Batches = Callable[[int], Iterable[dict[str, torch.Tensor]]]

# The head's trained copy, and the head it stands in for.
OF_PEFT = (".modules_to_save.", ".original_module.")
EVA_BATCH = 32  # examples; the start is the same whatever the run's batch
CHANGES_W = re.compile("pissa|olora|corda|loftq")  # init_lora_weights that take something out of W


def check_requirements(cfg: DictConfig) -> None:
    """Raise a ConfigError if the adapter's method needs a package that is not installed."""
    package = cfg.get("requires")
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"adapter={cfg.name} needs {package}, which is not installed: pip install '.[quantised]'."
        )


def put_on(
    model: PreTrainedModel, config: PeftConfig, cfg: DictConfig, batches: Batches | None
) -> PeftModel:
    """Put the adapter on a model and start it as its method does, from training batches where it needs them.

    `base_weights` of what is returned names the model's own weights that are to be saved with the adapter.
    """
    init = getattr(config, "init_lora_weights", None)
    _check_fit(model, config, cfg)
    if cfg.get("quantise"):
        quantise(model, cfg, config.modules_to_save)
    for seed in ("projection_prng_key", "random_loc_seed"):  # VeRA, RandLoRA; FourierFT
        if hasattr(config, seed) and seed not in cfg.config:  # PEFT's own is one for all runs
            setattr(config, seed, int(torch.randint(2**31, (), device="cpu")))
    if init == "corda":
        _look_at_examples(model, config, cfg.examples, batches)
    adapted = get_peft_model(model, config)
    _check_butterfly(adapted, config)
    if init == "eva":
        initialize_lora_eva_weights(adapted, batches(EVA_BATCH), show_progress_bar=False)
    if cfg.get("start") == "milora":
        for layer in lora_layers(adapted):
            _start_with_minor_components(layer)
    adapted.base_weights = []
    if cfg.get("start") or CHANGES_W.match(str(init)):
        # As it is saved: loaded again, it must not take anything out of W a second time.
        config.init_lora_weights, config.corda_config, config.loftq_config = True, None, {}
        kept = {id(layer.get_base_layer().weight) for layer in lora_layers(adapted)}
        adapted.base_weights = [n for n, p in adapted.named_parameters() if id(p) in kept]
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in OF_PEFT):
            continue
        if cfg.get("trained") and re.search(cfg.trained, name):
            parameter.requires_grad_(True)
            adapted.base_weights.append(name)
        if cfg.get("frozen") and re.search(cfg.frozen, name):
            parameter.requires_grad_(False)
    return adapted


def quantise(model: PreTrainedModel, cfg: DictConfig, head: Iterable[str]) -> None:
    """Put the frozen linear layers outside the head into the 4 bits that `cfg.quantise` names, in place.

    Double quantisation and products in bfloat16 (QLoRA, section 3). It is done on the CPU, to the same bits for every
    device, and draws nothing, so that LoRA starts as on the backbone itself, but for PEFT's rounding it to bfloat16.

    Raises:
        ConfigError: bitsandbytes is not installed, or the model has no such layer.
    """
    check_requirements(cfg)
    import bitsandbytes as bnb

    head = tuple(f"{part}." for part in head)
    linear = [
        p for p, m in model.named_modules() if type(m) is nn.Linear and not f"{p}.".startswith(head)
    ]
    if not linear:
        raise ConfigError(
            f"adapter={cfg.name} quantises nn.Linear layers, and this model has none: choose another."
        )
    for path in linear:
        exact = model.get_submodule(path)
        packed = bnb.nn.Linear4bit(
            exact.in_features,
            exact.out_features,
            bias=exact.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type=cfg.quantise,
            device="meta",
        )
        packed.weight = bnb.nn.Params4bit(
            exact.weight.data, requires_grad=False, quant_type=cfg.quantise
        )
        packed.bias = exact.bias
        # Else the first evaluation on a CPU that has AVX512-BF16 packs W for inference, and gradients end there.
        packed.support_avx512bf16_for_cpu = False
        model.set_submodule(path, packed.to("cpu"))
    model.is_loaded_in_4bit = True  # by which PEFT knows


def _check_fit(model: PreTrainedModel, config: PeftConfig, cfg: DictConfig) -> None:
    """Raise a ConfigError for what PEFT would take and get wrong on this model."""
    adds_inputs = config.is_prompt_learning and config.peft_type != PeftType.PREFIX_TUNING
    reads_last_token = hasattr(model, "score")  # what transformers calls such a head
    if adds_inputs and reads_last_token:
        raise ConfigError(
            f"adapter={cfg.name} gives the model embeddings in place of tokens, and this decoder's head then reads the "
            "padding: choose prefix_tuning or another method."
        )
    reads_past = "past_key_values" in inspect.signature(model.base_model.forward).parameters
    if config.peft_type == PeftType.PREFIX_TUNING and not reads_past:
        raise ConfigError(
            f"adapter={cfg.name} gives each layer keys and values, which this backbone does not take: choose another."
        )
    init = str(getattr(config, "init_lora_weights", None))
    if init == "loftq" and not torch.cuda.is_available():
        raise ConfigError(
            f"adapter={cfg.name} is started by PEFT on a CUDA GPU, and there is none: choose another, such as qlora."
        )
    starts_from_W = cfg.get("start") or CHANGES_W.match(init)
    if starts_from_W and init != "pissa" and any(isinstance(m, Conv1D) for m in model.modules()):
        raise ConfigError(
            f"adapter={cfg.name} starts from W of linear layers, and this model's are GPT-2's Conv1D: choose another."
        )


def _check_butterfly(model: PeftModel, config: PeftConfig) -> None:
    """Raise a ConfigError where PEFT lacks its CUDA extension and so made BOFT's many factors one, with a warning."""
    asked = getattr(config, "boft_n_butterfly_factor", None)
    made = {len(p) for name, p in model.named_parameters() if ".boft_R." in name}
    if asked and made != {asked}:
        raise ConfigError(
            f"adapter.config.boft_n_butterfly_factor={asked} needs PEFT's CUDA extension, which cannot be compiled "
            "here (nvcc and ninja): set it to 1."
        )


def lora_layers(model: nn.Module) -> Iterator[LoraLayer]:
    """The adapted layers of a LoRA."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def _look_at_examples(
    model: PreTrainedModel, config: LoraConfig, count: int, batches: Batches
) -> None:
    """What CorDA starts from: the covariance of each target's inputs, by PEFT, which wants one example at a time."""

    def run() -> None:
        for _, batch in zip(range(count), batches(1), strict=False):
            model(**{k: v.to(model.device) for k, v in batch.items() if k != "labels"})

    preprocess_corda(model, config, run_model=run)


@torch.no_grad()
def _start_with_minor_components(layer: LoraLayer, adapter: str = "default") -> None:
    """MiLoRA (equations 3 to 5): s B A is W's r smallest singular triplets, and W loses them."""
    weight, r, s = layer.get_base_layer().weight, layer.r[adapter], layer.scaling[adapter]
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    root = (S[-r:] / s).sqrt()
    layer.lora_A[adapter].weight.copy_(root[:, None] * Vh[-r:])
    layer.lora_B[adapter].weight.copy_(U[:, -r:] * root)
    weight -= s * layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight


def base_weights(model: PeftModel) -> list[str]:
    """Names of the model's own weights that are saved with the adapter: those that `put_on` listed."""
    return getattr(model, "base_weights", [])


# Training


def parameter_groups(model: nn.Module, cfg: DictConfig, learning_rate: float) -> list:
    """The trainable parameters as torch's optimizers take them: one list, or a group for each rate."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    factors = cfg.get("learning_rate_factors")
    if not factors:
        return list(trainable.values())
    groups: dict[float, list] = {}
    for name, parameter in trainable.items():
        factor = next((f for pattern, f in factors.items() if re.search(pattern, name)), 1)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": own, "lr": factor * learning_rate} for factor, own in groups.items()]


def begin(model: PeftModel, cfg: DictConfig, total_steps: int) -> None:
    """Tell the method how long the run is; AdaLoRA's schedule is in steps, also Conditional AdaLoRA's.

    Raises:
        ConfigError: too few steps for a schedule.
    """
    if not _is_pruned(model):
        return
    tinit, tfinal = (int(cfg.schedule[key] * total_steps) for key in ("tinit", "tfinal"))
    deltaT = math.ceil(cfg.schedule.deltaT * total_steps)
    _schedule(model).update(total_step=total_steps, tinit=tinit, tfinal=tfinal, deltaT=deltaT)
    if total_steps - tfinal - tinit < 2:
        raise ConfigError(
            f"adapter={cfg.name} has no step left to prune in: train longer or lower adapter.schedule.tinit and tfinal."
        )


def after_step(model: PeftModel, step: int) -> None:
    """Between the optimizer's step, counted from 1, and the clearing of gradients: AdaLoRA prunes."""
    if _is_pruned(model):
        model.base_model.update_and_allocate(step)


def may_be_kept(model: PeftModel, step: int) -> bool:
    """Whether a checkpoint of this step is of the method's final form: AdaLoRA's is once its pruning has ended."""
    if not _is_pruned(model):
        return True
    schedule = _schedule(model)
    return step >= schedule["total_step"] - schedule["tfinal"]


def _is_pruned(model: PeftModel) -> bool:
    """Whether it is AdaLoRA's or Conditional AdaLoRA's: both have an allocator of one interface."""
    return hasattr(model.base_model, "rankallocator")


def _schedule(model: PeftModel) -> dict:
    """Where total_step, tinit, tfinal and deltaT are: the fields of PEFT's config, or the options of ours."""
    config = _config(model)
    return vars(config) if isinstance(config, AdaLoraConfig) else config.options


# Of RankAllocator, by parameter; ours lacks the first.
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def state(model: PeftModel) -> dict[str, torch.Tensor]:
    """All that a checkpoint has to hold beside trainable parameters: changed weights, AdaLoRA's importance and ranks."""
    own = dict(model.named_parameters())
    changed = [name for name in base_weights(model) if not own[name].requires_grad]
    found = {f"weight.{name}": own[name].detach() for name in changed}
    if _is_pruned(model):
        allocator = model.base_model.rankallocator
        for kind in IMPORTANCE:
            found |= {f"{kind}.{name}": t for name, t in getattr(allocator, kind, {}).items()}
    if isinstance(_config(model), AdaLoraConfig):
        for name, kept in (_config(model).rank_pattern or {}).items():
            found[f"kept.{name}"] = torch.tensor(kept)
    return found


@torch.no_grad()
def load_state(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `state` gave."""
    own = dict(model.named_parameters())
    ranks = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "weight":
            own[name].copy_(tensor)
        elif kind == "kept":
            ranks[name] = tensor.tolist()
        else:
            device = own[f"base_model.model.{name}"].device
            getattr(model.base_model.rankallocator, kind)[name] = tensor.to(device)
    if ranks:
        _config(model).rank_pattern = ranks


# Saving and use


@contextmanager
def as_saved(model: PeftModel) -> Iterator[dict[str, torch.Tensor]]:
    """Within it PEFT may save the adapter; yields the tensors to be saved beside PEFT's own.

    AdaLoRA is saved with the triplets it pruned, which are zero: without them PEFT would leave out those that grew
    since the last pruning, and a sum over fewer terms is another sum in its last bits.
    """
    config, own = _config(model), dict(model.named_parameters())
    is_pruned = isinstance(config, AdaLoraConfig)
    ranks = config.rank_pattern if is_pruned else None
    if is_pruned:
        config.rank_pattern = None
    try:
        yield {name: own[name].detach().contiguous() for name in base_weights(model)}
    finally:
        if is_pruned:
            config.rank_pattern = ranks


def merged(model: PeftModel) -> nn.Module | None:
    """The model, with the adapter now part of its own weights; None for methods that add tokens, which cannot be.

    The trained head is put in place first: many of PEFT's tuners would look there for a `weight`, which a head of
    several layers (RoBERTa's) does not have.
    """
    if _config(model).is_prompt_learning:
        return None
    base = model.get_base_model()
    for name, child in list(base.named_children()):
        if isinstance(child, ModulesToSaveWrapper):
            setattr(base, name, child.modules_to_save["default"])
    return model.merge_and_unload()


def is_one_product(config: PeftConfig, saved: Iterable[str]) -> bool:
    """Whether a saved adapter adds scaling B A, of one rank, to the W that all methods start from.

    saved: the names in its file. Of PEFT's methods: LoRA, rsLoRA, LoRA+, LoRA-FA; CondLoRA. Not: DoRA, which scales
    the sum; EVA, whose layers have ranks of their own; those that took something out of W; and all that are no LoRA. The
    controls and kin of CondLoRA are left out as well: what the paper says of its matrices it does not say of theirs.
    """
    if config.peft_type not in ("LORA", "CONDLORA") or getattr(config, "use_dora", False):
        return False
    if getattr(config, "method", "condlora") != "condlora":
        return False
    saved = list(saved)
    if any(name.endswith(".base_layer.weight") for name in saved):
        return False
    is_eva = getattr(config, "init_lora_weights", None) == "eva"
    return not is_eva and any("lora_" in name for name in saved)


def _config(model: PeftModel) -> PeftConfig:
    return model.peft_config["default"]
