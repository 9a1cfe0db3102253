"""Checkpoints of a run: everything that training changes, so that a run killed at any instant ends with the same bits.

    checkpoints/step-00000120/
        tensors.safetensors    trainable parameters, the optimizer's moments, the method's own state, the random generators
        adapter/               the adapter kept so far, if there is one
        state.json             counts and curve, schedule, what made it, and the SHA-256 of every other file

The frozen backbone is not saved. A checkpoint is put in place in one step and read back, and only then is the one
before it removed; if one is damaged, the one before it is used. The position in the data follows from the number of
steps, as each epoch's order is drawn from its own seed (`condlora.glue.batches`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from condlora.files import remove_scratch, sha256, write_atomically
from condlora.runs.lease import Claim
from condlora.training.bars import say
from condlora.training.state import Training


class Checkpoints:
    """The checkpoints of one run folder.

    made_by: what must be equal for a checkpoint to be continued: recipe, data, weights, software, kind of device. On the
    same processor it is continued to the same bits.
    """

    def __init__(self, folder: Path, cfg: DictConfig, made_by: dict, claim: Claim):
        self.folder, self.adapter = folder / "checkpoints", folder / "adapter"
        self.made_by = json.loads(json.dumps(made_by))
        self.claim = claim
        self.minutes, self.steps = cfg.checkpoint_minutes, cfg.checkpoint_steps
        self.started_at = self.written_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether `checkpoint_steps` divides the step, or `checkpoint_minutes` have passed since the last checkpoint."""
        if self.steps and step % self.steps == 0:
            return True
        return bool(self.minutes) and time.monotonic() - self.written_at >= 60 * self.minutes

    def save(self, training: Training) -> None:
        """Write a checkpoint, verify it, and remove those before it.

        A full or failing disk costs this checkpoint and not the run: the checkpoint before it is kept.

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
        except (OSError, ValueError, SafetensorError) as error:
            say(f"warning: no checkpoint at step {progress.step} ({error}); training continues")
        progress.checkpoint_seconds += time.perf_counter() - started
        self.written_at = time.monotonic()

    def _fill(self, path: Path, training: Training) -> None:
        path.mkdir()
        save_file(training.tensors(), path / "tensors.safetensors")
        if training.progress.best_step:
            shutil.copytree(self.adapter, path / "adapter")
        state = {
            "made_by": self.made_by,
            "progress": asdict(training.progress) | {"earlier_seconds": self._seconds(training)},
            **training.settings(),
            "files": {str(f.relative_to(path)): sha256(f) for f in path.rglob("*") if f.is_file()},
        }
        text = json.dumps(state, indent=1)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (path / "state.json").write_text(f"{digest}\n{text}")

    def _seconds(self, training: Training) -> float:
        return training.progress.earlier_seconds + time.monotonic() - self.started_at

    def restore(self, training: Training) -> bool:
        """Load the newest intact checkpoint of this run; False if there is none."""
        remove_scratch(self.folder)
        for path in reversed(self._paths()):
            try:
                state = self._read(path)
            except (OSError, ValueError) as error:
                say(f"warning: {path} is damaged ({error}); using the checkpoint before it")
                continue
            if state["made_by"] != self.made_by:
                differ = [k for k, v in state["made_by"].items() if v != self.made_by.get(k)]
                say(
                    f"{path} was made with another {', '.join(differ)}: training starts from step 0"
                )
                return False
            self._load(path, state, training)
            return True
        return False

    def _load(self, path: Path, state: dict, training: Training) -> None:
        training.load(load_file(path / "tensors.safetensors"), state)
        vars(training.progress).update(state["progress"])
        training.progress.resumed_at_steps.append(training.progress.step)
        if (path / "adapter").is_dir():
            write_atomically(self.adapter, lambda fresh: shutil.copytree(path / "adapter", fresh))

    def _read(self, path: Path) -> dict:
        """The state of a checkpoint; a ValueError names a file that has changed since it was written."""
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
