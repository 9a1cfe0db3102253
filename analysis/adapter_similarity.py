"""Table 3: similarity of LoRA's and CondLoRA's matrices in the same layer, task and seed.

Examples:
    python analysis/adapter_similarity.py profile=embedded
    python analysis/adapter_similarity.py profile=embedded baseline_draws=20
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.adapter_similarity import compare
    from analysis.present import typeset
    from analysis.present.adapter_similarity import table3, table_by_task
    from analysis.study.stacks import load_stacks

    result = compare(load_stacks(study.done), study.settings)
    for table in (table3(result), table_by_task(result)):
        typeset.write(table, study.folder / "tables")
    print(f"Table 3: {study.folder / 'tables' / 'table3.md'}")


if __name__ == "__main__":
    main()
