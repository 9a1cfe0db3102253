"""Fine-tune one run or a grid: `python scripts/train.py task=rte adapter=lora` or `profile=embedded`."""

import sys

from omegaconf import DictConfig

from condlora.cli import command
from condlora.errors import UserError
from condlora.grid import preflight, require_done


@command("train", before=preflight, after=require_done)
def main(cfg: DictConfig) -> None:
    from condlora.finetune import run  # after preflight, which must answer within seconds

    try:
        run(cfg)
    except (
        UserError
    ) as error:  # the other runs of the grid go on; `require_done` sets the exit status
        name = f"{cfg.task.name} {cfg.adapter.name} seed {cfg.seed}"
        print(f"error: {name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
