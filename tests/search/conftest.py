"""A search over the tiny backbone, and a stand-in for its runs."""

import pandas as pd
import pytest
from omegaconf import OmegaConf

from condlora.errors import UndefinedScore
from condlora.files import write_atomically
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import SCHEMA_VERSION, run_folder, write_record
from condlora.training import run as finetune
from tests.tasks import FEW_ROWS

RATES = (1e-3, 2e-3, 4e-3)
TINY = (
    "task=rte", "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "protocol.max_steps=4",
    "protocol.evaluate_every=2", "runtime.threads=1",
)  # fmt: skip


def settings(folder, *overrides, rates=RATES, seed=100, **rule):
    words = [*TINY, "adapter=lora", *overrides]
    plain = {"profile": "adhoc", "overrides": words, "learning_rates": list(rates)}
    plain |= {"further": 0, "repeats": 1, "extend": 0, "refine": False, "around": None} | rule
    plain |= {
        "seed": seed,
        "jobs": 1,
        "runs": f"{folder}/runs",
        "results": f"{folder}/results",
        "rates": f"{folder}/rates",
    }
    return OmegaConf.create(plain)


@pytest.fixture
def stand_in(monkeypatch):
    """A function (rate -> validation scores or an error, test score) that replaces fine-tuning; lists the runs."""

    def install(curve, test=0.5):
        done = []

        def run_together(cfgs):
            return [outcome(cfg) for cfg in cfgs]

        def outcome(cfg):
            folder, rate = run_folder(cfg), cfg.protocol.learning_rate
            plain, metric = recipe(cfg), cfg.task.headline
            scores = curve(rate)
            done.append(rate)
            record = {"recipe_hash": recipe_hash(plain), "status": "failed"}
            record["schema_version"] = SCHEMA_VERSION
            record |= dict.fromkeys(("started_at", "finished_at"), "2026-01-01T00:00:00+00:00")
            write_record(folder, record | {"steps": 4, "test": {metric: test}})
            if isinstance(scores, Exception):
                return scores
            table = pd.DataFrame({"step": range(len(scores)), metric: scores})
            write_atomically(folder / "curve.csv", lambda path: table.to_csv(path, index=False))
            return record if test is not None else UndefinedScore("no test score")

        monkeypatch.setattr(finetune, "run_together", run_together)
        return done

    return install
