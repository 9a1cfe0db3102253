"""Fine-tune, evaluate and record: `run(cfg)` for one cell of the grid, `run_together(cfgs)` for several.

    start        lease, data, backbone, adapter, checkpoint; every error in the settings or the data is found here
    next_batch, finish_step    called by `condlora.training.loop` around each step of the optimizer
    complete     the saved adapter, loaded again, on validation and test; then the record, see `condlora.runs.record`

The loop is this project's own, on accelerate, and not transformers' Trainer: what happens between a batch and the
optimizer's step is what a reader of the paper wants to see. `configs/protocol/authors.yaml` says which of the
authors' settings a step follows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from contextlib import ExitStack, closing

import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel

from condlora.errors import Interrupted
from condlora.files import remove_scratch, write_atomically
from condlora.runs.continuing import continued_by, make_room
from condlora.runs.environment import PeakMemory, device_name
from condlora.runs.lease import Claim
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import (
    finished_record,
    new_record,
    now,
    run_folder,
    tidy,
    write_record,
)
from condlora.runs.settings import check_settings
from condlora.training import distributed
from condlora.training.bars import RunBar, say
from condlora.training.checkpoints import Checkpoints
from condlora.training.device import described_environment, make_accelerator
from condlora.training.ending import Ending, ends_on_error
from condlora.training.evaluation import test_kept
from condlora.training.loop import train
from condlora.training.selection import finite_loss, keep, keep_at_step, validate
from condlora.training.setup import (
    count_parameters,
    evaluation_interval,
    load,
    prepare_training,
    streams,
    training_data,
)
from condlora.training.signals import Interruption
from condlora.training.timing import merged_speed, speed_alone

CHECK_LOSS_EVERY = 10  # steps; reading the loss waits for the device


def run(cfg: DictConfig) -> dict:
    """Fine-tune one cell and return its record; a finished run is not repeated.

    An unfinished run resumes from its last checkpoint. A finished run of another recipe, a damaged one, or an unfinished
    one that cannot be continued is renamed and never overwritten, see `condlora.runs.continuing`.

    Raises:
        RunTaken: another process is training this cell.
        UserError: anything a user can cause; if training had begun, the record has status "failed" and the reason.
        Interrupted: a signal came; a checkpoint was written.
    """
    (outcome,) = run_together([cfg])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_together(cfgs: list[DictConfig]) -> list[dict | Exception]:
    """For each cell the record that `run` returns, or the error that it raises; compatible cells are trained jointly.

    Raises:
        Interrupted: a signal came; every run has written a checkpoint.
    """
    interruption = Interruption()
    with ExitStack() as stack:
        runs = [Run(cfg, interruption, members=len(cfgs)) for cfg in cfgs]
        for one in runs:
            stack.enter_context(closing(one))
            one.start()
        train(runs)
    for one in runs:
        if isinstance(one.outcome, Interrupted):
            raise one.outcome
    return [one.outcome for one in runs]


class Run(Ending):
    """One run, from its lease to its record.

    members: how many runs are trained in the same loop.
    """

    def __init__(self, cfg: DictConfig, interruption: Interruption, members: int):
        super().__init__()
        self.cfg, self.interruption, self.members = cfg, interruption, members
        self.kind: Hashable = None  # runs of one kind can be trained jointly
        self.while_training = ExitStack()

    @ends_on_error
    def start(self) -> None:
        """Take the lease, prepare, resume from the newest checkpoint; a run that is finished already ends here."""
        OmegaConf.set_readonly(self.cfg, True)
        self.folder, self.digest = run_folder(self.cfg), recipe_hash(recipe(self.cfg))
        check_settings(self.cfg)
        if self._is_finished():
            return
        if distributed.rank() > 0:
            own = distributed.with_own_folder(self.cfg, self.digest)
            self.cfg = self.resources.enter_context(own)
            self.folder = run_folder(self.cfg)
        self.claim = self.resources.enter_context(Claim(self.folder))
        if self._is_finished():  # another process may have finished it just before
            return
        model = self._prepare()
        self._begin(model)
        if self._is_over():
            self._complete()

    def _is_finished(self) -> bool:
        record = finished_record(self.folder, self.digest)
        if record is not None:
            tidy(self.folder)
            self.outcome = record
            self.close()
        return record is not None

    def _prepare(self) -> PeftModel:
        """Find every error in settings, data and backbone; only then write to the folder."""
        cfg, self.began = self.cfg, time.perf_counter()
        self.seeds = streams(cfg.seed, cfg.task.name)
        self.accelerator = make_accelerator(cfg)
        # It holds model and optimizer in reference cycles, which would pile up over a grid.
        self.resources.callback(self.accelerator.free_memory)
        environment = described_environment(self.accelerator)
        self.record = new_record(cfg, recipe(cfg), streams=self.seeds, environment=environment)
        self.record["fleet"] = self.members
        self.backbone, self.data, model = load(cfg, self.seeds, self.accelerator)
        environment["attention"] = model.config._attn_implementation  # packed or not
        self.record["data"] = self.data.description
        self.record["backbone"] = self.backbone.description
        self.record["parameters"] = count_parameters(model, self.backbone)
        notice = make_room(self.folder, self.record)
        if notice:
            say(notice)
        remove_scratch(self.folder)
        write_record(self.folder, self.record)
        self.is_recorded = True
        resolved = OmegaConf.to_yaml(cfg, resolve=True)
        write_atomically(self.folder / "config.yaml", lambda path: path.write_text(resolved))
        return model

    def _begin(self, model: PeftModel) -> None:
        """Put everything in the state before the next step, from the newest checkpoint if there is one."""
        cfg, seed = self.cfg, self.seeds["dropout"]
        self.memory = PeakMemory(self.accelerator.device)
        self.bar = self.while_training.enter_context(RunBar(cfg))
        self.while_training.enter_context(self.interruption)
        self.batches = training_data(cfg, self.data, self.seeds, self.accelerator)
        self.total_steps = cfg.protocol.max_steps or cfg.protocol.epochs * len(self.batches)
        self.evaluate_every = evaluation_interval(cfg.protocol, len(self.batches), self.total_steps)
        self.training = prepare_training(cfg, model, self.total_steps, self.accelerator)
        torch.manual_seed(seed)
        made_by = continued_by(self.record)
        self.checkpoints = Checkpoints(self.folder, cfg.runtime, made_by, self.claim)
        if self.checkpoints.restore(self.training):
            # Whoever watches the grid counts the steps since then.
            self.record["resumed_at_steps"] = list(self.training.progress.resumed_at_steps)
            write_record(self.folder, self.record)
        progress, name = self.training.progress, device_name(self.accelerator.device)
        if not self._is_over() and name not in progress.devices:
            progress.devices.append(name)
        distributed.seed_dropout(seed, progress.step)
        self.bar.expect(self.total_steps, progress.step)
        if progress.step == 0:
            self._keep_if_asked()
        self.since = time.perf_counter()

    @ends_on_error
    def next_batch(self) -> None:
        """Set `batch` to the batch of the next step."""
        self.batch = self.batches.next(self.training.progress)

    @ends_on_error
    def finish_step(self, loss: torch.Tensor) -> None:
        """What follows a step with this loss: count, evaluate, checkpoint, stop."""
        progress, interruption = self.training.progress, self.interruption
        progress.count(len(self.batch["labels"]), loss)
        self.bar.step()
        is_evaluated = progress.step % self.evaluate_every == 0
        interruption.asked = distributed.signal_of_any(interruption.asked, self.accelerator.device)
        pauses = is_evaluated or self._is_checkpoint_due()
        if pauses or progress.step % CHECK_LOSS_EVERY == 0:
            self.bar.show(loss=finite_loss(progress, self.cfg.protocol))
        progress.train_seconds += time.perf_counter() - self.since
        if is_evaluated:
            validate(self.cfg, self.data, self.training, self.folder)
            self.bar.show(score=progress.curve[-1][self.data.task.headline])
        self._keep_if_asked()
        if self._is_checkpoint_due():
            self.checkpoints.save(self.training)
            interruption.leave_if_asked()
        self.since = time.perf_counter()
        if self._is_over():
            self._complete()

    def _keep_if_asked(self) -> None:
        training = self.training
        if training.progress.step in self.cfg.runtime.keep_adapters_at:
            keep_at_step(training.model, training.accelerator, self.folder, training.progress.step)

    def _is_checkpoint_due(self) -> bool:
        step = self.training.progress.step
        return self.interruption.asked is not None or self.checkpoints.is_due(step)

    def _is_over(self) -> bool:
        progress = self.training.progress
        return progress.step >= self.total_steps or progress.stopped_early

    def _complete(self) -> None:
        """End the training, test the adapter that was kept, write the record."""
        accelerator, progress = self.accelerator, self.training.progress
        progress.epoch = math.ceil(progress.step / len(self.batches))
        if self.cfg.protocol.select == "last":
            keep(self.training.model, accelerator, self.folder, progress)
        self.checkpoints.save(self.training)  # a kill during the test costs no training
        if self.members > 1:
            rate = speed_alone(self.training, self.batches.endless())
            progress.examples_per_second_alone = rate
        if self.cfg.runtime.trackers:
            accelerator.end_training()
        self.while_training.close()
        what = (self.cfg, self.data, self.backbone, accelerator, self.folder)
        self.record |= test_kept(*what, progress)
        self.record["peak_memory_mib"] = self.memory.mib()
        self.record["merged_speed_over_backbone"] = merged_speed(*what)
        seconds = progress.earlier_seconds + time.perf_counter() - self.began
        self.record |= progress.summary() | {"total_seconds": seconds}
        self.record |= {"status": "done", "finished_at": now()}
        self.claim.check()
        self.outcome = write_record(self.folder, self.record)
        tidy(self.folder)
        accelerator.wait_for_everyone()  # the other processes are done when the first has written this
        say(result_line(self.cfg, self.outcome))
        self.close()

    def close(self) -> None:
        """Release signal handlers, memory and lease; calling it again does nothing."""
        self.while_training.close()
        self.training = self.batches = self.batch = self.data = self.backbone = None
        super().close()


def result_line(cfg: DictConfig, record: dict) -> str:
    """What a finished run prints."""
    score = record["test"][cfg.task.headline]
    return (
        f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}: test {cfg.task.headline} {score:.3f}, "
        f"{record['total_seconds']:.0f} s"
    )
