"""Where the trials of a task and method are kept: a file of Optuna's (SQLite), used by one worker at a time.

    <runs>/search/<profile>-<task>-<adapter>.db    the trials, in one study for each plan

A worker opens the file for a moment, alone (`condlora.runs.lease.alone`). So the file is created once, a trial is entered
once, and SQLite's own locks, which shared disks often lack, are never needed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import optuna
from omegaconf import DictConfig
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.pool import NullPool

from condlora.runs.lease import alone

Key = tuple[str, int]  # a trial's recipe hash and seed
Known = dict[Key, FrozenTrial]


def key_of(trial: FrozenTrial) -> Key:
    return trial.user_attrs["recipe_hash"], trial.user_attrs["seed"]


class Trials:
    """The trials of the cell's task and method, of all plans. study: the name of the plan's own study."""

    def __init__(self, cell: DictConfig, study: str):
        folder = Path(cell.runs).parent
        self.file = folder / f"{cell.profile.name}-{cell.task.name}-{cell.adapter.name}.db"
        self.claims, self.study = folder / ".claims", study

    def known(self) -> Known:
        """All trials so far."""
        with self._open() as storage:
            return _known(storage)

    def enter(self, trials: Known) -> Known:
        """Enter those that the plan's study lacks; returns all trials then."""
        with self._open() as storage:
            study = optuna.create_study(
                study_name=self.study, storage=storage, direction="maximize", load_if_exists=True
            )
            there = {key_of(trial) for trial in study.trials}
            for key, trial in trials.items():
                if key not in there:
                    study.add_trial(trial)
            return _known(storage)

    def claim_file(self, key: Key) -> Path:
        """Where the claim on a trial is kept, from before its run until it is entered."""
        return self.claims / f"{key[0]}-{key[1]}.json"

    @contextlib.contextmanager
    def _open(self) -> Iterator[RDBStorage]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.claims.mkdir(parents=True, exist_ok=True)
        with alone(self.claims / f"{self.file.name}.json"):
            storage = _storage(self.file)
            try:
                yield storage
            finally:
                storage.remove_session()


@functools.cache
def _storage(file: Path) -> RDBStorage:
    """Comparing versions takes a fifth of a second, so it is kept; it opens the file at each use, which others change."""
    return RDBStorage(f"sqlite:///{file}", engine_kwargs={"poolclass": NullPool})


def _known(storage: RDBStorage) -> Known:
    return {
        key_of(trial): trial
        for study in storage.get_all_studies()
        for trial in storage.get_all_trials(study._study_id, deepcopy=False)
    }
