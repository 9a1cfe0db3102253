"""Fine-tune, evaluate and record one cell of the grid: `run(cfg)`, read from top to bottom.

    prepare   data, backbone, adapter; everything that can be wrong is found here
    train     the loop, with evaluation, choice of the best checkpoint and early stopping; it asks for each step on a
              batch by a `yield`, so that those of several runs can be taken as one: see `condlora.training.joint`
    test      the saved adapter, loaded afresh, on validation and test
    record    one JSON, see `condlora.runs.record`

The loop is our own, on accelerate, and not transformers' Trainer: what happens between reading a batch and
the optimizer's step is what a reader of the paper wants to see. Which of the authors' settings a step mirrors
is said in `configs/protocol/authors.yaml`.

Three random streams derive from a run's seed: "initialisation" (head, then adapter), "data" (order of
examples) and "dropout". None depends on the adapter, so LoRA and CondLoRA of one seed start from the same
head and see the same batches: their comparison is paired.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Generator
from itertools import chain, islice, repeat
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from condlora.errors import (
    ConfigError,
    DeviceError,
    DivergedError,
    Interrupted,
    RunFolderError,
    RunTaken,
    UndefinedScore,
)
from condlora.files import remove_scratch, write_atomically
from condlora.glue.batches import padder, training_batches
from condlora.glue.prepare import Data, prepare
from condlora.models import methods
from condlora.models.adapters import add_adapter, save_adapter
from condlora.models.backbones import Backbone, fresh_model, load_backbone
from condlora.models.warm_start import start_from
from condlora.runs.environment import PeakMemory, device_name
from condlora.runs.lease import Claim
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import (
    failure,
    finished_record,
    new_record,
    now,
    run_folder,
    set_aside,
    write_record,
)
from condlora.runs.settings import check_settings
from condlora.training import distributed as spread
from condlora.training.bars import RunBar, say
from condlora.training.checkpoints import Checkpoints, Interruption, Progress, Training, tidy
from condlora.training.device import (
    choose_attention,
    described_environment,
    make_accelerator,
    round_frozen,
    same_for_checkpoints,
)
from condlora.training.evaluation import (
    batch_size,
    collator,
    fit_to_batches,
    merged_speed,
    predict,
    score,
    test_saved,
)
from condlora.training.joint import Request, drive, take_step
from condlora.training.optimizer import adamw

WARM_UP_STEPS, TIMED_STEPS = 3, 20  # of a fleet's run when it is timed alone
OTHER_ROUNDING = 0.01  # of a score, where the run was continued with other batches of evaluation
CHECK_LOSS_EVERY = 10  # steps; reading the loss waits for the device


def run(cfg: DictConfig) -> dict:
    """Fine-tune one cell and return its record; a cell that is done already is not done again.

    A finished run of another recipe or a damaged one is set aside under another name, never overwritten; an
    unfinished one goes on from its last checkpoint.

    Raises:
        RunTaken: another process is doing it.
        UserError: anything a user can cause; where training had begun, the record says "failed" and why.
    """
    (outcome,) = run_together([cfg])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_together(cfgs: list[DictConfig]) -> list[dict | Exception]:
    """What `run` returns or raises for each of several cells, trained as one fleet: see `condlora.training.joint`."""
    interruption = Interruption()
    runs = [run_steps(cfg, interruption, fleet=len(cfgs)) for cfg in cfgs]
    return drive(runs, gradients)


Steps = Generator[Request, torch.Tensor, dict]


def run_steps(cfg: DictConfig, interruption: Interruption, fleet: int = 1) -> Steps:
    """`run`, handing out each batch on which it wants a step; returns the record.

    fleet: runs that are trained together, for the record.
    """
    OmegaConf.set_readonly(cfg, True)
    folder, digest = run_folder(cfg), recipe_hash(recipe(cfg))
    check_settings(cfg)
    finished = finished_record(folder, digest)
    if finished is None and spread.rank() > 0:
        with spread.beside_the_first(cfg, digest) as own, Claim(run_folder(own)) as claim:
            return (yield from fine_tune(own, claim, interruption, fleet))
    if finished is None:
        with Claim(folder) as claim:
            # Again, as another may have finished it just before.
            finished = finished_record(folder, digest)
            return finished or (yield from fine_tune(cfg, claim, interruption, fleet))
    tidy(folder)
    return finished


def fine_tune(cfg: DictConfig, claim: Claim, interruption: Interruption, fleet: int) -> Steps:
    """Prepare, train, test and record, under a claim; see `run_steps`."""
    started = time.perf_counter()
    folder, plain = run_folder(cfg), recipe(cfg)
    digest = recipe_hash(plain)
    seeds = streams(cfg.seed, cfg.task.name)
    accelerator = make_accelerator(cfg)
    record = new_record(cfg, plain, streams=seeds, environment=described_environment(accelerator))
    record["fleet"] = fleet
    try:
        backbone = load_backbone(cfg.backbone, num_labels=num_labels(cfg))
        check_length(cfg, backbone)
        choose_attention(cfg, backbone, accelerator)
        data = prepare(cfg, accelerator.device)
        model = initialise(cfg, backbone, seeds, data)
        record["environment"]["attention"] = model.config._attn_implementation  # packed or not
    except Exception as error:
        if not folder.exists():
            write_record(folder, record | failure(error))
        raise
    set_aside(folder, digest)
    remove_scratch(folder)
    record |= {
        "data": data.description,
        "backbone": backbone.description,
        "parameters": count_parameters(model, backbone),
    }
    same = ("recipe_hash", "streams", "data", "backbone", "environment")
    made_by = {key: record[key] for key in same}
    made_by["environment"] = same_for_checkpoints(record["environment"])
    checkpoints = Checkpoints(folder, cfg.runtime, made_by, claim)
    write_record(folder, record)
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    write_atomically(folder / "config.yaml", lambda path: path.write_text(resolved))
    try:
        memory = PeakMemory(accelerator.device)
        with RunBar(cfg) as bar, interruption:
            progress = yield from train(
                cfg, data, model, accelerator, folder, seeds, bar, checkpoints, interruption, fleet
            )
        record |= test(cfg, data, backbone, accelerator, folder, progress)
        record["peak_memory_mib"] = memory.mib()
        speed = merged_speed(cfg, data, backbone, accelerator, folder)
        record["merged_speed_over_backbone"] = speed
    except RunTaken:
        raise  # the folder is another's now
    except (Exception, Interrupted) as error:
        write_record(folder, record | failure(error))
        raise
    finally:
        accelerator.free_memory()  # it holds model and optimizer in cycles, which would pile up over a grid
    record |= summary(progress) | {
        "total_seconds": progress.earlier_seconds + time.perf_counter() - started,
        "status": "done",
        "finished_at": now(),
    }
    claim.check()
    record = write_record(folder, record)
    tidy(folder)
    accelerator.wait_for_everyone()  # the other processes are done when the first has written this
    say(
        f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}: test {cfg.task.headline} "
        f"{record['test'][cfg.task.headline]:.3f}, {record['total_seconds']:.0f} s"
    )
    return record


# Prepare


def num_labels(cfg: DictConfig) -> int:
    """Outputs of the head."""
    return 1 if cfg.task.labels is None else len(cfg.task.labels)


def check_length(cfg: DictConfig, backbone: Backbone) -> None:
    """Raise a ConfigError if the protocol's examples are longer than the backbone can read."""
    limit = backbone.max_length
    limit -= cfg.adapter.config.get("num_virtual_tokens", 0)  # an adapter's own take positions too
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
    """Backbone with a new head, drawn first and so the same for every adapter, and a new adapter.

    data: for methods that start from it; they see the examples in the order training will. Where the adapter's config
    says so, the adapter is another run's; see `condlora.models.warm_start`.
    """

    def batches(size: int) -> DataLoader:
        # Not the run's collator: runtime.padding must not change results.
        collate = padder(data.tokenizer, padding="longest", max_length=cfg.protocol.max_length)
        return training_batches(data.train, collate, batch_size=size, seed=seeds["data"])

    torch.manual_seed(seeds["initialisation"])
    model = add_adapter(fresh_model(backbone), cfg.adapter, backbone.head, batches)
    if cfg.adapter.get("init_from"):
        start_from(model, cfg.adapter, backbone)
    return fit_to_batches(model, cfg)


def count_parameters(model: PeftModel, backbone: Backbone) -> dict[str, int]:
    """Trainable parameters: of the adapter (Table 4 counts these), of the head, and all there are."""
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    head = sum(size for name, size in trainable.items() if ".modules_to_save." in name)
    total = sum(p.numel() for p in backbone.model.parameters())
    adapter = sum(trainable.values()) - head
    return {"trainable": adapter + head, "adapter": adapter, "head": head, "backbone": total}


# Train


def train(
    cfg: DictConfig,
    data: Data,
    model: PeftModel,
    accelerator: Accelerator,
    folder: Path,
    seeds: dict[str, int],
    bar: RunBar,
    checkpoints: Checkpoints,
    interruption: Interruption,
    fleet: int,
) -> Generator[Request, torch.Tensor, Progress]:
    """The training loop, from the newest checkpoint if there is one.

    Leaves the chosen adapter in `folder/adapter` and the curve in `folder/curve.csv`. A batch is handed out for a step
    of the optimizer; its loss comes back.

    Raises:
        DivergedError: the loss is not finite.
        UndefinedScore: no evaluation gave the headline metric a value.
        Interrupted: a signal came.
    """
    protocol = cfg.protocol
    collate = collator(cfg, data)
    batches = training_batches(
        data.train, collate, batch_size=protocol.batch_size, seed=seeds["data"]
    )
    total_steps = protocol.max_steps or protocol.epochs * len(batches)
    evaluate_every = evaluation_interval(protocol, len(batches), total_steps)
    training, batches = prepare_training(cfg, model, batches, total_steps, accelerator)
    progress = training.progress
    torch.manual_seed(seeds["dropout"])
    checkpoints.restore(training)
    name = device_name(accelerator.device)
    if progress.step < total_steps and name not in progress.devices:
        progress.devices.append(name)
    if spread.processes() > 1:  # or all would draw the same, each for its own rows
        torch.manual_seed(seeds["dropout"] + spread.rank() + spread.processes() * progress.step)
    bar.expect(total_steps, progress.step)
    started = time.perf_counter()
    while progress.step < total_steps and not progress.stopped_early:
        batches.set_epoch(progress.epoch)
        done = progress.step - progress.epoch * len(batches)
        for batch in islice(batches, done, None):
            batch = with_targets(batch, data)
            loss = yield Request(training, batch, accelerator, protocol.max_grad_norm)
            end_step(training, len(batch["labels"]), loss, accelerator)
            bar.step()
            is_evaluated = progress.step % evaluate_every == 0
            interruption.asked = spread.asked_of_any(interruption.asked, accelerator.device)
            pauses = is_evaluated or interruption.asked or checkpoints.is_due(progress.step)
            if pauses or progress.step % CHECK_LOSS_EVERY == 0:
                bar.show(loss=finite_loss(progress, protocol))
            progress.train_seconds += time.perf_counter() - started
            if is_evaluated:
                evaluate(cfg, data, training.model, accelerator, folder, progress)
                bar.show(score=progress.curve[-1][data.task.headline])
            if interruption.asked or checkpoints.is_due(progress.step):
                checkpoints.save(training)
                interruption.leave_if_asked()
            started = time.perf_counter()
            if progress.step == total_steps or progress.stopped_early:
                break
        progress.epoch += 1
    if protocol.select == "last":
        keep(training.model, accelerator, folder, progress)
    checkpoints.save(training)  # a kill while it is tested costs no training
    if fleet > 1:
        progress.examples_per_second_alone = speed_alone(training, batches, data, accelerator)
    if cfg.runtime.trackers:
        accelerator.end_training()
    if progress.best_step == 0:
        raise UndefinedScore(
            f"{data.task.headline} was undefined at every evaluation of {cfg.task.name}: the model says one thing "
            "for all examples; train longer (protocol.max_steps, protocol.epochs) or change protocol.learning_rate."
        )
    return progress


def evaluation_interval(protocol: DictConfig, epoch_steps: int, total_steps: int) -> int:
    """Steps between two evaluations: a share of the run where the protocol has `evaluations`, else at most an epoch.

    Raises:
        ConfigError: the run cannot be divided into equal parts, so that its last step would not be evaluated.
    """
    evaluations = protocol.get("evaluations")
    if evaluations is None:
        return min(protocol.evaluate_every or math.inf, epoch_steps, total_steps)
    if total_steps % evaluations:
        raise ConfigError(
            f"protocol.evaluations={evaluations} does not divide the run's {total_steps} steps: change one of them."
        )
    return total_steps // evaluations


def prepare_training(
    cfg: DictConfig,
    model: PeftModel,
    batches: DataLoader,
    total_steps: int,
    accelerator: Accelerator,
) -> tuple[Training, DataLoader]:
    """AdamW and its schedule for the trainable parameters, all on the run's device."""
    protocol = cfg.protocol
    methods.begin(model, cfg.adapter, total_steps)
    groups = methods.parameter_groups(model, cfg.adapter, protocol.learning_rate)
    optimizer = adamw(groups, protocol.learning_rate, protocol.weight_decay, accelerator.device)
    schedule = get_linear_schedule_with_warmup(
        optimizer, math.ceil(protocol.warmup_ratio * total_steps), total_steps
    )
    # Every process takes its rows itself and sums the gradients, see `condlora.training.distributed`.
    model = round_frozen(model, accelerator)
    model = accelerator.prepare_model(model, evaluation_mode=spread.processes() > 1)
    optimizer = accelerator.prepare_optimizer(optimizer)
    batches = prepare_data_loader(
        batches,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        non_blocking=True,
    )
    if cfg.runtime.trackers:
        accelerator.init_trackers("condlora", config={"recipe": str(recipe(cfg))})
    return Training(model, optimizer, schedule, accelerator.scaler, Progress()), batches


def with_targets(batch: dict, data: Data) -> dict:
    """The batch with the labels that the loss compares with: a regression's standardised, where the protocol says so."""
    if not data.task.is_regression:
        return batch
    return batch | {"labels": (batch["labels"] - data.target_mean) / data.target_sd}


def speed_alone(
    training: Training, batches: DataLoader, data: Data, accelerator: Accelerator
) -> float:
    """Examples a second of TIMED_STEPS more steps without companions: those of a fleet say nothing of one run.

    They come after what the run saves, and leave the generators as they were.
    """
    endless = chain.from_iterable(repeat(batches))

    def steps(count: int) -> int:
        examples = 0
        for batch in islice(endless, count):
            request = Request(training, with_targets(batch, data), accelerator, math.inf)
            loss = gradients(request)
            take_step([request])
            training.optimizer.zero_grad()
            examples += len(batch["labels"])
        loss.item()  # waits for the device
        return examples

    device = accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        steps(WARM_UP_STEPS)
        started = time.perf_counter()
        return steps(TIMED_STEPS) / (time.perf_counter() - started)


def end_step(
    training: Training, examples: int, loss: torch.Tensor, accelerator: Accelerator
) -> None:
    """What follows the optimizer's step on a batch of so many examples and of this loss."""
    progress = training.progress
    training.schedule.step()
    progress.step += 1
    methods.after_step(accelerator.unwrap_model(training.model), progress.step)
    training.optimizer.zero_grad()
    progress.train_examples += examples
    # Not read here, which would wait for the device; float32 as a checkpoint holds it.
    progress.loss_sum = progress.loss_sum + loss
    progress.loss_steps += 1


def gradients(request: Request) -> torch.Tensor:
    """Add a batch's gradients; returns its loss, see `add_gradients`.

    A batch that does not fit into the device's memory is split in halves whose gradients are added up, to the same
    effective batch; the run goes on with the parts that fit.

    Raises:
        DeviceError: not even one example fits.
    """
    training, batch, accelerator = request.training, request.batch, request.accelerator
    progress = training.progress
    training.model.train()
    while True:
        try:
            return add_gradients(training, batch, accelerator)
        except torch.OutOfMemoryError as error:
            if progress.parts_per_batch >= len(batch["labels"]):
                raise DeviceError(
                    "One example does not fit into the device's memory: lower protocol.max_length."
                ) from error
        training.optimizer.zero_grad()
        progress.parts_per_batch *= 2
        say(f"out of memory: batches are split into {progress.parts_per_batch} parts from now on")


def add_gradients(training: Training, batch: dict, accelerator: Accelerator) -> torch.Tensor:
    """Add the gradients of the batch's mean loss, part by part; returns the loss, detached, float32.

    Of several processes each adds those of its rows, and all get the sums.
    """
    size, loss = len(batch["labels"]), torch.zeros((), device=accelerator.device)
    own = spread.own_rows(size)
    for rows in own.chunk(training.progress.parts_per_batch) if len(own) else ():
        part = {name: values[rows[0] : rows[-1] + 1] for name, values in batch.items()}
        share = training.model(**part).loss * (len(rows) / size)
        accelerator.backward(share)
        loss += share.detach()
    return spread.sum_over_processes(training.trainable.values(), loss)


def finite_loss(progress: Progress, protocol: DictConfig) -> float:
    """The mean loss since the last evaluation; once one step's loss is NaN or infinite, so is the mean."""
    value = float(progress.loss_sum) / progress.loss_steps
    if not math.isfinite(value):
        raise DivergedError(
            f"The loss is {value} at step {progress.step}: lower protocol.learning_rate (now "
            f"{protocol.learning_rate:g})."
        )
    return value


def evaluate(
    cfg: DictConfig,
    data: Data,
    model: PeftModel,
    accelerator: Accelerator,
    folder: Path,
    progress: Progress,
) -> None:
    """Score on validation, extend the curve, keep the adapter if it is the best so far, count patience."""
    started, mean_loss = time.perf_counter(), finite_loss(progress, cfg.protocol)
    progress.loss_sum, progress.loss_steps = 0.0, 0
    predictions = predict(cfg, data, data.validation, model, accelerator)
    try:
        scores = score(cfg, data.task, predictions, data.validation)
    except UndefinedScore:
        # A model that still says one thing for all: no number, and never the best.
        scores = dict.fromkeys(data.task.metrics)
    headline = scores[data.task.headline]
    may_be_kept = methods.may_be_kept(accelerator.unwrap_model(model), progress.step)
    improved = (
        may_be_kept
        and headline is not None
        and (progress.best_score is None or headline > progress.best_score)
    )
    if improved:
        progress.best_score = headline
    if improved or cfg.protocol.select == "last":
        progress.best_batch_size = batch_size(cfg, accelerator.device)
    if improved and cfg.protocol.select == "best":
        keep(model, accelerator, folder, progress)
    progress.evaluations_without_improvement = (
        0 if improved or not may_be_kept else progress.evaluations_without_improvement + 1
    )
    patience = cfg.protocol.early_stopping_patience
    progress.stopped_early = (
        patience is not None and progress.evaluations_without_improvement >= patience
    )
    row = {"step": progress.step, "epoch": progress.epoch, "train_loss": mean_loss, **scores}
    progress.curve.append(row)
    curve = pd.DataFrame(progress.curve)
    write_atomically(folder / "curve.csv", lambda path: curve.to_csv(path, index=False))
    accelerator.log({k: v for k, v in row.items() if v is not None}, step=progress.step)
    progress.evaluation_seconds += time.perf_counter() - started


def keep(model: PeftModel, accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Save adapter and head as the run's result so far."""
    progress.best_step, progress.best_epoch = progress.step, progress.epoch
    unwrapped = accelerator.unwrap_model(model)
    with accelerator.autocast():  # P-tuning's prompts are computed when they are saved
        write_atomically(folder / "adapter", lambda path: save_adapter(unwrapped, path))


# Test


def test(
    cfg: DictConfig,
    data: Data,
    backbone: Backbone,
    accelerator: Accelerator,
    folder: Path,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Scores of the saved adapter on validation and test.

    Raises:
        RunFolderError: on validation it does not score what training saw.
        UndefinedScore: a metric has no value.
    """
    started = time.perf_counter()
    scores = test_saved(cfg, data, backbone, accelerator, folder)
    seen = next((row for row in progress.curve if row["step"] == progress.best_step), {})
    is_same_batch = progress.best_batch_size in (None, batch_size(cfg, accelerator.device))
    for metric in scores["validation"].keys() & seen.keys():
        value = seen[metric]
        if abs(scores["validation"][metric] - value) > (0 if is_same_batch else OTHER_ROUNDING):
            raise RunFolderError(
                f"The saved adapter in {folder} scores {scores['validation'][metric]} {metric} on validation where "
                f"training saw {value}: do not use this run, and report it with its config."
            )
    progress.evaluation_seconds += time.perf_counter() - started
    return scores


def summary(progress: Progress) -> dict:
    """The record's fields that the loop knows."""
    return {
        "best": {"step": progress.best_step, "epoch": progress.best_epoch},
        "steps": progress.step,
        "epochs": progress.epoch,
        "stopped_early": progress.stopped_early,
        "devices": progress.devices,
        "train_seconds": progress.train_seconds,
        "train_examples_per_second": progress.examples_per_second_alone
        or progress.train_examples / progress.train_seconds,
        "evaluation_seconds": progress.evaluation_seconds,
        "parts_per_batch": progress.parts_per_batch,
        "checkpoint_seconds": progress.checkpoint_seconds,
        "checkpoint_bytes": progress.checkpoint_bytes,
        "resumed_at_steps": progress.resumed_at_steps,
    }
