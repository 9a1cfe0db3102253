"""The shipped task configs, for tests."""

from pathlib import Path

from omegaconf import OmegaConf

from condlora.glue.tasks import Task, task_from_config

ROOT = Path(__file__).resolve().parents[1]
GLUE_TASKS = sorted(
    path.stem for path in (ROOT / "configs" / "task").glob("*.yaml") if path.stem != "custom"
)


def load_task(name: str) -> Task:
    return task_from_config(OmegaConf.load(ROOT / "configs" / "task" / f"{name}.yaml"))
