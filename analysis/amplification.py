"""How much an update amplifies directions of the weight it is added to (Hu et al., section 7.3).

Examples:
    python analysis/amplification.py profile=embedded
    python analysis/amplification.py profile=embedded results=results/other
    python analysis/amplification.py 'adapters=[folder-a]' base=FacebookAI/roberta-base
"""

from omegaconf import DictConfig

from analysis.study.selection import open_matrices
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_matrices(cfg, needs_base=True)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.amplification import amplify
    from analysis.present import typeset
    from analysis.present.amplification import details, draw, table
    from analysis.study.rank_selection import load_ranks

    result = amplify(load_ranks(study.done, study.load), study.settings)
    for item in (table(result), *details(result)):
        typeset.write(item, study.folder / "tables")
    print(f"Amplification: {draw(result, study.folder / 'figures')}")
    print(f"Its numbers: {study.folder / 'tables' / 'amplification.md'}")


if __name__ == "__main__":
    main()
