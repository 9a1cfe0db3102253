"""Which runs can be trained jointly: those on an equal frozen backbone that train low-rank updates and heads of one shape."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper

from condlora.training.joint import ADAPTER, LowRank
from condlora.training.step import Member
from condlora.tuner.layer import Linear as CondLoraLinear


def find_kinds(runs: Sequence[Member]) -> None:
    """Set `kind` of each run; runs of equal kind can be trained jointly and share one frozen backbone from now on."""
    known: dict[Hashable, list[PeftModel]] = {}  # of each structure one model for each backbone
    for number, run in enumerate(runs):
        model = run.training.unwrapped
        own = structure(model)
        if own is None:
            run.kind = ("alone", number)
            continue
        models = known.setdefault(own, [])
        for place, other in enumerate(models):
            if share_frozen(other, model):
                run.kind = (own, place)
                break
        else:
            run.kind = (own, len(models))
            models.append(model)


def compatible(runs: Iterable[Member]) -> Iterator[list[Member]]:
    """The groups whose next step can be joint: one kind, one batch size, and no more runs than fit into memory."""
    groups: dict[Hashable, list[Member]] = {}
    for run in runs:
        groups.setdefault((run.kind, len(run.batch["labels"])), []).append(run)
    for group in groups.values():
        limits = [run.training.most_together for run in group]
        size = min((limit for limit in limits if limit), default=len(group))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def share_frozen(model: PeftModel, other: PeftModel) -> bool:
    """If the frozen backbone parameters of both are equal, let `other` use those of `model`; returns whether they are."""
    mine, theirs = dict(of_backbone(model)), dict(of_backbone(other))
    if not all(torch.equal(parameter, mine[name]) for name, parameter in theirs.items()):
        return False
    for name in theirs:
        owner, _, own = name.rpartition(".")
        setattr(other.get_submodule(owner), own, mine[name])
    return True


def of_backbone(model: PeftModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters, with their names, that belong neither to an adapter nor to a head."""
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if not {"modules_to_save", "original_module"}.intersection(parts) and not any(
            part.startswith(("lora_", "condlora_")) for part in parts
        ):
            yield name, parameter


def structure(model: PeftModel) -> Hashable | None:
    """What models must have in common to be trained jointly; None for a model that can only be trained alone.

    A model can be trained jointly if it trains nothing but low-rank updates of linear layers, with or without dropout
    before them, and a head without buffers.
    """
    config = model.peft_config[ADAPTER]
    if config.is_prompt_learning or getattr(model, "base_weights", []):
        return None
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, LowRank):
            if not is_plain(module):
                return None
            dropout = getattr(module.lora_dropout[ADAPTER], "p", 0.0)
            layers.append((path, module.r[ADAPTER], dropout))
        elif isinstance(module, ModulesToSaveWrapper):
            if any(True for _ in module.buffers()):  # the joint pass would use one run's for all
                return None
            layers.append((path, "head"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if not all(any(name.startswith(f"{path}.") for path, *_ in layers) for name in trained):
        return None
    return (type(model.get_base_model()), model.config.num_labels, tuple(layers))


def is_plain(layer: LowRank) -> bool:
    """Whether training the layer adds scaling B A to its frozen weight and nothing else."""
    if type(layer) is LoraLinear:
        return not layer.lora_variant and not layer.lora_bias[ADAPTER]
    return (
        type(layer) is CondLoraLinear
        and not layer.use_dora[ADAPTER]
        and layer.method[ADAPTER].can_train_jointly
    )
