"""Choose the learning rate of each task and method of a profile on validation.

Examples:
    python scripts/search_learning_rate.py profile=minilm_glue
    python scripts/search_learning_rate.py profile=kinship 'learning_rates=[1e-3,4e-3,1.6e-2]' further=2 jobs=2

The same command resumes a search that was stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

from condlora.commands.cli import command


@command("search/settings")
def main(cfg: DictConfig) -> None:
    # Here, as they load the training code: seconds.
    from condlora.search.files import rates_file
    from condlora.search.run import search

    table = search(cfg)
    chosen = table[table["chosen"]].drop_duplicates(["task", "adapter"])
    print(chosen.pivot(index="task", columns="adapter", values="learning_rate").to_string())
    print(f"{cfg.results}/{cfg.profile}/search.csv: {len(table)} trials")
    if cfg.profile != "adhoc":
        print(f"{rates_file(cfg)}: the chosen rates")
