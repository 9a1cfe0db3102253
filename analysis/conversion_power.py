"""What each statistic can detect: planted worlds on a backbone's own W0, from its weights alone.

Examples:
    python analysis/conversion_power.py
    python analysis/conversion_power.py backbone=roberta-base
    python analysis/conversion_power.py 'adapters=[folder-a]' base=FacebookAI/roberta-base

If one map of W0 explained a share rho of A or B, which of the reported statistics would show it, and from which rho on?
Also Figure 1's statistic under the null hypothesis that nothing was learned, in closed form.
"""

from pathlib import Path

from omegaconf import DictConfig

from analysis.study.selection import open_matrices
from condlora.commands.cli import command


@command("conversion_power")
def main(cfg: DictConfig) -> None:
    import time

    began = time.perf_counter()
    study = open_matrices(cfg, needs_base=True) if cfg.adapters or cfg.base else None
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.maths.power import measure
    from analysis.maths.weights import load_weights, weights_of
    from analysis.present.power import draw, tables
    from analysis.present.typeset import write
    from analysis.study.stacks import load_stacks

    if study is None:
        name, layers, weights = load_weights(cfg.backbone)
        folder = Path(cfg.results) / name
    else:
        layers, weights = weights_of(load_stacks(study.done, study.load), str(cfg.base))
        folder = study.folder
    result = measure(weights, cfg, layers)
    for table in tables(result, cfg):
        write(table, folder / "tables")
    print(f"Power: {folder / 'tables' / 'power.md'} and {draw(result, cfg, folder / 'figures')}")
    print(f"Seconds: {time.perf_counter() - began:.0f}")


if __name__ == "__main__":
    main()
