"""Table 2: scores on the eight GLUE tasks, with mean, standard deviation and number of seeds.

Examples:
    python analysis/glue_scores.py profile=embedded
    python analysis/glue_scores.py profile=embedded margin_points=0.5
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present import typeset
    from analysis.present.glue_scores import draw_differences, table2
    from analysis.stats.rules import load_rules
    from analysis.study.scores import scores

    runs = scores(study.done)
    typeset.write(table2(runs), study.folder / "tables")
    draw_differences(runs, study.folder / "figures", load_rules(cfg.margin_points)[0].margin_points)
    print(f"Table 2: {study.folder / 'tables' / 'table2.md'}")


if __name__ == "__main__":
    main()
