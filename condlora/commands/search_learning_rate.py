"""Choose each task's and method's learning rate on validation: `python scripts/search_learning_rate.py profile=...`.

A search that was stopped goes on where it was; see configs/search/settings.yaml and condlora/search.py.
"""

from omegaconf import DictConfig

from condlora.commands.cli import command


@command("search/settings")
def main(cfg: DictConfig) -> None:
    from condlora.search import rates_file, search  # it loads the training code: seconds

    table = search(cfg)
    chosen = table[table["chosen"]].drop_duplicates(["task", "adapter"])
    print(chosen.pivot(index="task", columns="adapter", values="learning_rate").to_string())
    print(f"{cfg.results}/{cfg.profile}/search.csv: {len(table)} trials")
    if cfg.profile != "adhoc":
        print(f"{rates_file(cfg)}: the chosen rates")
