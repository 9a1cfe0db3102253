"""Time what the project promises: `python scripts/benchmark.py`, settings in configs/benchmark.yaml.

Writes one table per measure to <results>/benchmark/. Timings are not tests: a busy machine misses the limits.
"""

from pathlib import Path

from omegaconf import DictConfig

from condlora.commands.cli import command


@command("benchmark")
def main(cfg: DictConfig) -> None:
    from benchmarks.measures import DRAWN, measure  # imports torch: seconds

    folder = Path(cfg.results) / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in measure(cfg):
        path = folder / f"{name}.csv"
        table.to_csv(path, index=False)
        about = ["processor", "torch", "commit", "dirty"]  # the same in every row
        print(table.drop(columns=about).to_string(index=False), f"\n{path}")
        if name in DRAWN:
            print(*DRAWN[name](table, folder), sep="\n")


if __name__ == "__main__":
    main()
