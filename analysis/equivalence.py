"""Tests whether CondLoRA scores as LoRA does: differences paired by task and seed.

Examples:
    python analysis/equivalence.py profile=embedded
    python analysis/equivalence.py profile=embedded margin_points=0.5
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present import typeset
    from analysis.present.equivalence import table
    from analysis.stats.equivalence import compare
    from analysis.stats.rules import load_rules
    from analysis.study.examples import load_examples
    from analysis.study.scores import scores

    thresholds, _ = load_rules(cfg.margin_points)
    examples, seed = load_examples(study.done), study.settings.baseline_seed
    found = compare(scores(study.done), examples, thresholds, seed=seed)
    typeset.write(table(found, thresholds), study.folder / "tables")
    print(f"Table 2's differences: {study.folder / 'tables' / 'table2_tests.md'}")


if __name__ == "__main__":
    main()
