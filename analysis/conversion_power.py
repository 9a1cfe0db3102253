"""What each statistic can detect: planted worlds on a backbone's own W0, from its weights alone.

Examples:
    python analysis/conversion_power.py
    python analysis/conversion_power.py backbone=roberta-base

If one map of W0 explained a share rho of A or B, which of the reported statistics would show it, and from which rho on?
Also Figure 1's statistic under the null hypothesis that nothing was learned, in closed form.
"""

from pathlib import Path

from omegaconf import DictConfig

from condlora.commands.cli import command


@command("conversion_power")
def main(cfg: DictConfig) -> None:
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.power import measure
    from analysis.maths.weights import load_weights
    from analysis.present.power import draw, tables
    from analysis.present.typeset import write

    layers, weights = load_weights(cfg.backbone)
    result = measure(weights, cfg, layers)
    folder = Path(cfg.results) / cfg.backbone.name
    for table in tables(result, cfg):
        write(table, folder / "tables")
    print(f"Power: {folder / 'tables' / 'power.md'} and {draw(result, cfg, folder / 'figures')}")


if __name__ == "__main__":
    main()
