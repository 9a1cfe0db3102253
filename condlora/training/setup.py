"""What a run trains, before its first step: streams of random numbers, model, optimizer, schedule and batches.

Three random streams derive from a run's seed: "initialisation" (head, then adapter), "data" (order of the examples) and
"dropout". None depends on the adapter, so LoRA and CondLoRA of one seed start with the same head and see the same
batches: their comparison is paired.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import islice

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from omegaconf import DictConfig
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from condlora.errors import ConfigError
from condlora.glue.batches import padder, training_batches
from condlora.models.adapters import start
from condlora.models.backbones import Backbone, load_backbone
from condlora.models.baselines import baseline_of
from condlora.models.warm_start import start_from
from condlora.runs.recipe import recipe
from condlora.training import distributed
from condlora.training.data import Data, prepare
from condlora.training.device import choose_attention, round_frozen
from condlora.training.evaluation import collator, fit_to_batches
from condlora.training.optimizer import adamw
from condlora.training.state import Progress, Training


def num_labels(cfg: DictConfig) -> int:
    """Outputs of the head."""
    return 1 if cfg.task.labels is None else len(cfg.task.labels)


def check_length(cfg: DictConfig, backbone: Backbone) -> None:
    """Raise a ConfigError if the protocol's maximum length exceeds the backbone's."""
    limit = backbone.max_length
    limit -= cfg.adapter.config.get("num_virtual_tokens", 0)  # they take positions too
    if cfg.protocol.max_length > limit:
        raise ConfigError(
            f"protocol.max_length is {cfg.protocol.max_length}, and {cfg.backbone.name} reads at most "
            f"{limit} tokens: set protocol.max_length={limit}."
        )


def streams(seed: int, task: str) -> dict[str, int]:
    """Seeds of the three random streams of a run, from its seed and task."""
    return {
        name: int.from_bytes(hashlib.sha256(f"{name}/{task}/{seed}".encode()).digest()[:4], "big")
        for name in ("initialisation", "data", "dropout")
    }


def initialise(
    cfg: DictConfig, backbone: Backbone, seeds: dict[str, int], data: Data | None = None
) -> PeftModel:
    """The backbone with a new head, drawn first and so the same for every adapter, and a new adapter.

    data: for methods that are initialised from training examples; they see them in the order of training. If the
    adapter's config says so, the adapter starts from another run's, see `condlora.models.warm_start`.
    """

    def batches(size: int) -> DataLoader:
        # Not the run's collator: runtime.padding must not change results.
        collate = padder(data.tokenizer, padding="longest", max_length=cfg.protocol.max_length)
        return training_batches(data.train, collate, batch_size=size, seed=seeds["data"])

    model = start(cfg.adapter, backbone, seeds["initialisation"], batches)
    if cfg.adapter.get("init_from"):
        start_from(model, cfg.adapter, backbone)
    return fit_to_batches(model, cfg)


def load(
    cfg: DictConfig, seeds: dict[str, int], accelerator: Accelerator
) -> tuple[Backbone, Data, PeftModel]:
    """Backbone, data and the adapted model of a run; nothing is written.

    Raises:
        UserError: the settings do not fit the backbone, the data or the device.
    """
    backbone = load_backbone(cfg.backbone, num_labels=num_labels(cfg))
    check_length(cfg, backbone)
    choose_attention(cfg, backbone, accelerator)
    data = prepare(cfg, accelerator.device)
    return backbone, data, initialise(cfg, backbone, seeds, data)


def count_parameters(model: PeftModel, backbone: Backbone) -> dict[str, int]:
    """Numbers of parameters: trainable in the adapter (as in the paper's Table 4), in the head, and all of the backbone."""
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    head = sum(size for name, size in trainable.items() if ".modules_to_save." in name)
    total = sum(p.numel() for p in backbone.model.parameters())
    adapter = sum(trainable.values()) - head
    return {"trainable": adapter + head, "adapter": adapter, "head": head, "backbone": total}


def prepare_training(
    cfg: DictConfig, model: PeftModel, total_steps: int, accelerator: Accelerator
) -> Training:
    """The model on the run's device, with AdamW and its schedule for the trainable parameters."""
    protocol = cfg.protocol
    baseline_of(model).begin(total_steps)
    groups = baseline_of(model).parameter_groups(protocol.learning_rate)
    optimizer = adamw(groups, protocol.learning_rate, protocol.weight_decay, accelerator.device)
    schedule = get_linear_schedule_with_warmup(
        optimizer, math.ceil(protocol.warmup_ratio * total_steps), total_steps
    )
    # Every process takes its rows itself and sums the gradients, see `condlora.training.distributed`.
    model = round_frozen(model, accelerator)
    model = accelerator.prepare_model(model, evaluation_mode=distributed.processes() > 1)
    optimizer = accelerator.prepare_optimizer(optimizer)
    if cfg.runtime.trackers:
        accelerator.init_trackers("condlora", config={"recipe": str(recipe(cfg))})
    return Training(model, optimizer, schedule, accelerator, protocol.max_grad_norm)


def evaluation_interval(protocol: DictConfig, epoch_steps: int, total_steps: int) -> int:
    """Steps between two evaluations: a share of the run if the protocol has `evaluations`, else at most an epoch.

    Raises:
        ConfigError: the run cannot be divided into equal parts, so its last step would not be evaluated.
    """
    evaluations = protocol.get("evaluations")
    if evaluations is None:
        return min(protocol.evaluate_every or math.inf, epoch_steps, total_steps)
    if total_steps % evaluations:
        raise ConfigError(
            f"protocol.evaluations={evaluations} does not divide the run's {total_steps} steps: change one of them."
        )
    return total_steps // evaluations


def training_data(
    cfg: DictConfig, data: Data, seeds: dict[str, int], accelerator: Accelerator
) -> Batches:
    """The run's training batches, on its device."""
    loader = training_batches(
        data.train,
        collator(cfg, data),
        batch_size=cfg.protocol.batch_size,
        seed=seeds["data"],
    )
    loader = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        non_blocking=True,
    )
    return Batches(loader, data)


class Batches:
    """Training batches in the order of the data stream; the labels of a regression are those that the loss uses."""

    def __init__(self, loader: DataLoader, data: Data):
        self.loader, self.data = loader, data
        self.upcoming: Iterator[dict] = iter(())

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.loader)

    def next(self, progress: Progress) -> dict:
        """The batch of the step after `progress.step`; call it once for each step. Sets `progress.epoch`."""
        batch = next(self.upcoming, None)
        if batch is None:  # begin the next epoch, or resume one in the middle
            progress.epoch, done = divmod(progress.step, len(self))
            self.loader.set_epoch(progress.epoch)
            self.upcoming = islice(self.loader, done, None)
            batch = next(self.upcoming)
        return with_targets(batch, self.data)

    def endless(self) -> Iterator[dict]:
        """Batches without end, for timing."""
        while True:
            for batch in self.loader:
                yield with_targets(batch, self.data)


def with_targets(batch: dict, data: Data) -> dict:
    """The batch with the labels that the loss uses: those of a regression standardised, if the protocol says so."""
    if not data.task.is_regression:
        return batch
    return batch | {"labels": (batch["labels"] - data.target_mean) / data.target_sd}
