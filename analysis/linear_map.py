"""Tests the hypothesis of CondLoRA on LoRA's runs: how much of A and B one linear map of W0 explains.

Examples:
    python analysis/linear_map.py profile=embedded
    python analysis/linear_map.py profile=embedded results=results/other
    python analysis/linear_map.py 'adapters=[folder-a,folder-b]' base=FacebookAI/roberta-base
"""

from omegaconf import DictConfig

from analysis.study.selection import open_matrices
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_matrices(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.explained_share import explained_shares
    from analysis.maths.linear_map import linear_maps
    from analysis.present import explained_share, typeset
    from analysis.present.linear_map import statement, table
    from analysis.stats.rules import load_rules
    from analysis.study.rank_selection import load_ranks, shown_rank

    stacks, tables = load_ranks(study.done, study.load), study.folder / "tables"
    r = shown_rank(stacks)  # the shares are given at all ranks
    result = linear_maps([stack for stack in stacks if stack.A.shape[-2] == r], study.settings)
    typeset.write(table(result), tables)
    thresholds, _ = load_rules(cfg.margin_points)
    print(*statement(result, thresholds), f"Table: {tables / 'linear_map.md'}", sep="\n")
    shares = explained_shares(stacks, study.settings)
    if not len(shares.values):
        return
    for item in explained_share.tables(shares, thresholds.confidence):
        typeset.write(item, tables)
    print(explained_share.statement(shares, thresholds.confidence))
    print(f"Table: {tables / 'shares.md'}")
    for path in explained_share.draw(
        shares, thresholds.confidence, study.folder / "figures"
    ).values():
        print(f"Figure: {path}")


if __name__ == "__main__":
    main()
