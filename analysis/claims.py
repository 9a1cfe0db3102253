"""Tests every claim of results/paper/claims.yaml on the finished runs and prints the verdicts.

Examples:
    python analysis/claims.py profile=embedded
    python analysis/claims.py profile=embedded margin_points=0.5
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.together import analyses, together
    from analysis.present.claims import write
    from analysis.stats.claims import MATRICES, collect, evaluate, in_order
    from analysis.stats.rules import load_rules
    from analysis.study.records import missing_adapters
    from analysis.study.stacks import load_stacks, with_adapters

    thresholds, stated = load_rules(cfg.margin_points)
    stacks = load_stacks(with_adapters(study.done))
    matrices = together(analyses(stacks, study.settings, MATRICES))
    claims = evaluate(collect(study, matrices, thresholds), thresholds, stated)
    for claim in in_order(claims):
        print(f"{claim.verdict:>13}  {claim.statement}")
    if lacking := missing_adapters(study.done):
        print(lacking)
    print(f"Claims: {write(claims, study.folder / 'claims.json')}")


if __name__ == "__main__":
    main()
