"""Fine-tune one run or a grid: `python scripts/train.py task=rte adapter=lora` or `profile=embedded`."""

import sys
import traceback

from omegaconf import DictConfig

from condlora.cli import command, explain
from condlora.errors import RunTaken
from condlora.grid import left_by_others, preflight, require_done


def finish(overrides: list[str]) -> None:
    """Wait for runs that other launchers do, do those whose owner dies, then fail if one is not done."""
    for cfg in left_by_others(overrides):
        attempt(cfg)
    require_done(overrides)


def attempt(cfg: DictConfig) -> None:
    from condlora.finetune import run  # after preflight, which must answer within seconds

    name = f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}"
    try:
        run(cfg)
    except RunTaken as error:
        print(f"{name}: left to another launcher, {error}")
    except Exception as error:  # the other runs go on; `require_done` sets the exit status
        message = explain(error)
        if message is None:
            traceback.print_exc()
            message = "a defect of condlora, or of what it uses: please report the lines above."
        print(f"error: {name}: {message}", file=sys.stderr)


@command("train", before=preflight, after=finish)
def main(cfg: DictConfig) -> None:
    attempt(cfg)


if __name__ == "__main__":
    main()
