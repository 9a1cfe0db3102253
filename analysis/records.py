"""Writes the records of a profile's runs to results/reference, to be committed: scores, curves, test predictions; no weights.

Of an experiment of several grids, as parity is, it writes those of each. Records of runs that have no folder are kept.

Examples:
    python analysis/records.py profile=embedded
    python analysis/records.py profile=parity runs=/data/runs
"""

from pathlib import Path

from omegaconf import DictConfig

from analysis.study.grids import renew_records
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    print(*renew_records(cfg.profile, Path(cfg.runs), Path(cfg.records)), sep="\n")


if __name__ == "__main__":
    main()
