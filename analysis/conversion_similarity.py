"""Figure 1: similarity of the conversion matrices W0->A and W0->B of LoRA's layers.

Examples:
    python analysis/conversion_similarity.py profile=embedded
    python analysis/conversion_similarity.py profile=embedded i=4 j=4
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.conversion_similarity import figure1
    from analysis.present import typeset
    from analysis.present.conversion_similarity import draw, table, table_by_task
    from analysis.study.stacks import load_stacks

    result = figure1(load_stacks(study.done), study.settings)
    for item in (table(result), table_by_task(result)):
        typeset.write(item, study.folder / "tables")
    pictures = draw(result, study.folder / "figures")
    print(*(f"Figure 1: {path}" for path in pictures.values()), sep="\n")
    print(f"Its means: {study.folder / 'tables' / 'figure1_means.md'}")


if __name__ == "__main__":
    main()
