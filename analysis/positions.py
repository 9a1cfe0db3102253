"""Where adapters differ: similarity and update norm for every layer and kind of module.

Examples:
    python analysis/positions.py profile=embedded
    python analysis/positions.py profile=embedded results=results/other
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.positions import locate
    from analysis.present import typeset
    from analysis.present.positions import draw, table
    from analysis.study.rank_selection import load_ranks

    result = locate(load_ranks(study.done), study.settings)
    typeset.write(table(result), study.folder / "tables")
    print(f"Layers and modules: {draw(result, study.folder / 'figures')}")


if __name__ == "__main__":
    main()
