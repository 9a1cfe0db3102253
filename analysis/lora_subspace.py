"""Directions shared by two ranks or two seeds of one method (Hu et al., section 7.2).

Examples:
    python analysis/lora_subspace.py profile=embedded
    python analysis/lora_subspace.py profile=embedded results=results/other
    python analysis/lora_subspace.py 'adapters=[folder-a,folder-b]'
"""

from omegaconf import DictConfig

from analysis.study.selection import open_matrices
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_matrices(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.lora_subspace import compare
    from analysis.present import typeset
    from analysis.present.lora_subspace import draw, table, table_by_layer
    from analysis.study.rank_selection import load_ranks

    result = compare(load_ranks(study.done, study.load), study.settings)
    print(*result.notes, sep="\n", end="\n" * bool(result.notes))
    if not result.comparisons:
        return
    for item in (table(result), table_by_layer(result)):
        typeset.write(item, study.folder / "tables")
    for path in draw(result, study.folder / "figures").values():
        print(f"Subspaces: {path}")
    print(f"Their numbers: {study.folder / 'tables' / 'lora_subspace.md'}")


if __name__ == "__main__":
    main()
