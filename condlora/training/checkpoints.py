"""Checkpoints of a run: all that training changes, so that a run killed at any instant ends as if it had not been.

    checkpoints/step-00000120/
        tensors.safetensors    trainable parameters, the optimizer's moments, the method's own state, the random generators
        adapter/               the adapter chosen so far, if one was
        state.json             counts and curve, schedule, what made it, and the SHA-256 of every other file

The frozen base is no part of it. A checkpoint is put in place in one step, read back, and only then does the
one before it go; a damaged one is passed over for the one before. Where training is in its data follows from
the number of steps, as each epoch's order is drawn from its own seed (`condlora.glue.batches`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import nn

from condlora.errors import Interrupted
from condlora.files import remove_scratch, sha256, write_atomically
from condlora.models import methods
from condlora.runs.lease import Claim
from condlora.training.bars import say


@dataclass
class Progress:
    """What the loop knows at a step; `best_score` is the headline metric on validation.

    loss_sum: of the loss_steps steps since the last evaluation, a float32 value.
    """

    step: int = 0
    epoch: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    best_batch_size: int | None = None  # with which it was evaluated
    evaluations_without_improvement: int = 0
    stopped_early: bool = False
    curve: list[dict] = field(default_factory=list)
    loss_sum: float | torch.Tensor = 0.0
    loss_steps: int = 0
    train_seconds: float = 0.0
    train_examples: int = 0
    parts_per_batch: int = 1  # more where a batch did not fit into the device's memory
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    checkpoint_bytes: int = 0
    examples_per_second_alone: float | None = None  # of a run in a fleet
    earlier_seconds: float = 0.0  # of the processes before this one
    resumed_at_steps: list[int] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)  # by name, each that took steps


@dataclass
class Training:
    """Everything that changes from step to step. scaler: of fp16, else None."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None
    progress: Progress
    trainable: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}


class Checkpoints:
    """The checkpoints of one run folder.

    made_by: what must be equal for a checkpoint to be continued: recipe, data, weights, software, kind of device. On
    the same processor it is continued to the same bits. A checkpoint of anything else is not continued.
    """

    def __init__(self, folder: Path, cfg: DictConfig, made_by: dict, claim: Claim):
        self.folder, self.adapter = folder / "checkpoints", folder / "adapter"
        self.made_by = json.loads(json.dumps(made_by))
        self.claim = claim
        self.minutes, self.steps = cfg.checkpoint_minutes, cfg.checkpoint_steps
        self.started_at = self.written_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """By steps or by minutes since the last, whichever is set."""
        if self.steps and step % self.steps == 0:
            return True
        return bool(self.minutes) and time.monotonic() - self.written_at >= 60 * self.minutes

    def save(self, training: Training) -> None:
        """Write a checkpoint, prove it, and remove those before it.

        A disk that is full or fails costs the checkpoint and not the run: the one before it is kept.

        Raises:
            RunTaken: the run is another process's by now.
        """
        self.claim.check()
        started, progress = time.perf_counter(), training.progress
        path = self.folder / f"step-{progress.step:08d}"
        progress.loss_sum = float(progress.loss_sum)
        try:
            write_atomically(path, lambda fresh: self._fill(fresh, training))
            self._read(path)
            for other in self._paths():
                if other != path:
                    shutil.rmtree(other)
            progress.checkpoint_bytes = sum(f.stat().st_size for f in path.rglob("*"))
        except (OSError, ValueError) as error:
            say(f"warning: no checkpoint at step {progress.step} ({error}); training goes on")
        progress.checkpoint_seconds += time.perf_counter() - started
        self.written_at = time.monotonic()

    def _fill(self, path: Path, training: Training) -> None:
        path.mkdir()
        save_file(_tensors(training), path / "tensors.safetensors")
        if training.progress.best_step:
            shutil.copytree(self.adapter, path / "adapter")
        state = {
            "made_by": self.made_by,
            "progress": asdict(training.progress) | {"earlier_seconds": self._seconds(training)},
            "schedule": training.schedule.state_dict(),
            "groups": training.optimizer.state_dict()["param_groups"],
            "scaler": training.scaler and training.scaler.state_dict(),
            "files": {str(f.relative_to(path)): sha256(f) for f in path.rglob("*") if f.is_file()},
        }
        text = json.dumps(state, indent=1)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (path / "state.json").write_text(f"{digest}\n{text}")

    def _seconds(self, training: Training) -> float:
        return training.progress.earlier_seconds + time.monotonic() - self.started_at

    def restore(self, training: Training) -> bool:
        """Continue from the newest sound checkpoint of this very run; False if there is none."""
        remove_scratch(self.folder)
        for path in reversed(self._paths()):
            try:
                state = self._read(path)
            except (OSError, ValueError) as error:
                say(f"warning: {path} is damaged ({error}); the one before it is used")
                continue
            if state["made_by"] != self.made_by:
                differ = [k for k, v in state["made_by"].items() if v != self.made_by.get(k)]
                say(f"{path} was made with another {', '.join(differ)}: training begins again")
                return False
            self._load(path, state, training)
            return True
        return False

    def _load(self, path: Path, state: dict, training: Training) -> None:
        tensors = load_file(path / "tensors.safetensors")
        _load_tensors(training, tensors, state["groups"])
        training.schedule.load_state_dict(state["schedule"])
        if training.scaler is not None:
            training.scaler.load_state_dict(state["scaler"])
        vars(training.progress).update(state["progress"])
        training.progress.resumed_at_steps.append(training.progress.step)
        if (path / "adapter").is_dir():
            write_atomically(self.adapter, lambda fresh: shutil.copytree(path / "adapter", fresh))

    def _read(self, path: Path) -> dict:
        """The state of a checkpoint; a ValueError names a file that is not as it was written."""
        digest, _, text = (path / "state.json").read_text().partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError("state.json does not match its checksum")
        state = json.loads(text)
        for name, expected in state["files"].items():
            if sha256(path / name) != expected:
                raise ValueError(f"{name} does not match its checksum")
        return state

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def tidy(folder: Path) -> None:
    """Remove from a finished run's folder its checkpoints and what a kill left half-written."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    remove_scratch(folder)


def _tensors(training: Training) -> dict[str, torch.Tensor]:
    """Parameters, optimizer and generators by name, on the CPU."""
    found = {f"parameter.{name}": p.detach() for name, p in training.trainable.items()}
    for index, moments in training.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    found |= {f"method.{name}": t for name, t in methods.state(training.model).items()}
    found["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            found[f"random.cuda.{index}"] = state
    return {name: t.to("cpu", copy=True).contiguous() for name, t in found.items()}


def _load_tensors(training: Training, tensors: dict[str, torch.Tensor], groups: list[dict]) -> None:
    with torch.no_grad():
        for name, parameter in training.trainable.items():
            parameter.copy_(tensors[f"parameter.{name}"])
    moments: dict[int, dict] = {}
    own = {n.removeprefix("method."): t for n, t in tensors.items() if n.startswith("method.")}
    methods.load_state(training.model, own)
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, key = rest.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
    training.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(
            [tensors[f"random.cuda.{i}"] for i in range(torch.cuda.device_count())]
        )


class Interruption:
    """SIGINT and SIGTERM within it ask for an orderly end at the next step; a second one acts at once.

    One that is ignored stays so: shells have their background jobs ignore SIGINT, which is meant for others. The runs of
    a fleet share one: it is entered by each, and is over when all have left it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked: int | None = None
        self.before: dict = {}
        self.inside = 0

    def __enter__(self) -> Interruption:
        self.inside += 1
        if self.inside > 1 or self.asked is not None:
            return self
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            heeded = [n for n in self.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._ask) for number in heeded}
        return self

    def _ask(self, number: int, _) -> None:
        self.asked = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self.inside -= 1
        if not self.inside:
            self._give_back()

    def leave_if_asked(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.asked is not None:
            raise Interrupted(self.asked)
