"""Figure 1: similarity of the conversion matrices W0->A and W0->B of LoRA's layers.

Examples:
    python analysis/conversion_similarity.py profile=embedded
    python analysis/conversion_similarity.py profile=embedded i=4 j=4
    python analysis/conversion_similarity.py 'adapters=[folder-a,folder-b]' base=FacebookAI/roberta-base

Also the similarity of A and B themselves, which needs no base model.
"""

from omegaconf import DictConfig

from analysis.study.selection import open_matrices
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_matrices(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.conversion_similarity import figure1
    from analysis.maths.span_similarity import spans
    from analysis.present import span_similarity, typeset
    from analysis.present.conversion_similarity import draw, table, table_by_task
    from analysis.stats.span_tests import span_tests
    from analysis.study.stacks import load_stacks

    stacks = load_stacks(study.done, study.load)
    tables, figures = study.folder / "tables", study.folder / "figures"
    found = spans(stacks, study.settings)
    typeset.write(span_similarity.table(span_tests(found, cfg.baseline_seed)), tables)
    for path in span_similarity.draw(found, figures).values():
        print(f"A and B themselves: {path}")
    print(f"Their means and tests: {tables / 'spans.md'}")
    result = figure1(stacks, study.settings)
    print(*result.notes, sep="\n", end="\n" * bool(result.notes))
    if not result.modules:
        return
    for item in (table(result), table_by_task(result)):
        typeset.write(item, tables)
    for path in draw(result, figures).values():
        print(f"Figure 1: {path}")
    print(f"Its means: {tables / 'figure1_means.md'}")


if __name__ == "__main__":
    main()
