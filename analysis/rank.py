"""Scores, parameters and similarities of LoRA and CondLoRA over the rank r.

Examples:
    python analysis/rank.py profile=embedded
    python analysis/rank.py profile=embedded results=results/other
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present import rank_similarity, typeset
    from analysis.present.rank import draw, table
    from analysis.stats.rank_runs import by_rank
    from analysis.study.rank_selection import load_ranks

    result = by_rank(study.done, load_ranks(study.done), study.settings)
    for item in (table(result), rank_similarity.table(result.similarity)):
        typeset.write(item, study.folder / "tables")
    for path in draw(result, study.folder / "figures").values():
        print(f"Rank: {path}")
    print(f"Rank: {study.folder / 'tables' / 'rank.md'}")


if __name__ == "__main__":
    main()
