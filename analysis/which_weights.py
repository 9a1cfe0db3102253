"""Which attention weights LoRA should adapt, at equal numbers of trained parameters (Hu et al. 2022, table 5).

Examples:
    python analysis/which_weights.py profile=which_weights
    python analysis/which_weights.py profile=which_weights results=results/other
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present import typeset
    from analysis.present.which_weights import table

    found = table(study.done)
    typeset.write(found, study.folder / "tables")
    print(f"Which weights: {study.folder / 'tables' / 'which_weights.md'}")


if __name__ == "__main__":
    main()
