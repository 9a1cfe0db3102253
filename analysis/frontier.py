"""Mean score of every method against its parameters, training time and memory.

Examples:
    python analysis/frontier.py profile=embedded
    python analysis/frontier.py profile=embedded results=results/other
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present import typeset
    from analysis.present.frontier import draw, table
    from analysis.stats.frontier import frontier
    from analysis.stats.rules import load_rules

    found, notes = frontier(study.done, load_rules(cfg.margin_points)[0].confidence)
    typeset.write(table(found, notes), study.folder / "tables")
    print(f"Frontier: {draw(found, study.folder / 'figures')}")


if __name__ == "__main__":
    main()
