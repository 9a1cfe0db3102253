"""Test and time this project on the machine's GPU, in ten minutes at most: `make gpu-check`.

Writes results/benchmark/<device>.csv (throughput), <device>_parts.csv and <device>_hours.csv.

Examples:
    python scripts/gpu_check.py
    python scripts/gpu_check.py parts.compiled=0 parts.mpnet=0
    python scripts/gpu_check.py device=cpu size=toy
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.gpu_check import require_machine
from condlora.commands.cli import command

if TYPE_CHECKING:
    from omegaconf import DictConfig


@command("gpu_check", before=require_machine)
def main(cfg: DictConfig) -> None:
    from benchmarks.gpu_check import check

    check(cfg)


if __name__ == "__main__":
    main()
