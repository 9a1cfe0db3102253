"""Tests the hypothesis of CondLoRA on LoRA's runs: how much of A and B one linear map of W0 explains.

Examples:
    python analysis/linear_map.py profile=embedded
    python analysis/linear_map.py profile=embedded results=results/other
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.linear_map import linear_maps
    from analysis.present import typeset
    from analysis.present.linear_map import statement, table
    from analysis.stats.rules import load_rules
    from analysis.study.stacks import load_stacks

    result = linear_maps(load_stacks(study.done), study.settings)
    typeset.write(table(result), study.folder / "tables")
    thresholds, _ = load_rules(cfg.margin_points)
    print(
        *statement(result, thresholds),
        f"Table: {study.folder / 'tables' / 'linear_map.md'}",
        sep="\n",
    )


if __name__ == "__main__":
    main()
