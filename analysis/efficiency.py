"""Table 4: trainable parameters, training speed, memory and time.

Examples:
    python analysis/efficiency.py profile=embedded
    python analysis/efficiency.py profile=embedded results=results/other
"""

from omegaconf import DictConfig

from analysis.study.selection import open_study
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present import typeset
    from analysis.present.efficiency import table4, table_by_task
    from analysis.study.costs import costs

    runs = costs(study.done)
    for table in (table4(runs), table_by_task(runs)):
        typeset.write(table, study.folder / "tables")
    print(f"Table 4: {study.folder / 'tables' / 'table4.md'}")


if __name__ == "__main__":
    main()
