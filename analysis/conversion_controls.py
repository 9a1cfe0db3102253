"""Controls of Figure 1: similarity of conversion matrices with one ingredient changed at a time.

Examples:
    python analysis/conversion_controls.py profile=embedded
    python analysis/conversion_controls.py profile=embedded baseline_draws=40
"""

from omegaconf import DictConfig

from analysis.study.selection import open_matrices
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_matrices(cfg, needs_base=True)
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.conversion_controls import controls
    from analysis.present import typeset
    from analysis.present.conversion_controls import section
    from analysis.present.conversion_origin import RECIPE
    from analysis.stats.rules import load_rules
    from analysis.study.stacks import load_stacks

    result = controls(load_stacks(study.done, study.load), study.settings)
    found = section(result, load_rules(cfg.margin_points)[0], study.folder / "figures")
    for item in (*found.shown, *found.details):
        if isinstance(item, typeset.Table):
            typeset.write(item, study.folder / "tables")
    print(*found.text, "", RECIPE, sep="\n")
    print(f"Figure 1's controls: {study.folder / 'tables' / 'figure1_controls.md'}")


if __name__ == "__main__":
    main()
