"""Does CondLoRA end where LoRA ends? The gap over training steps, the dial and the verdict, as far as the runs go.

Examples:
    python analysis/parity.py profile=parity
    python analysis/parity.py profile=parity runs=/data/runs
"""

from pathlib import Path

from omegaconf import DictConfig

from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present import typeset
    from analysis.present.parity import section
    from analysis.study.parity import load_grids

    profile = cfg.profile or "parity"
    folder = Path(cfg.results) / profile
    places = Path(cfg.runs), list(cfg.may_differ), Path(cfg.records)
    found = section(load_grids(profile, *places, fill=cfg.fill_from_records), folder / "figures")
    for item in found.shown:
        if isinstance(item, typeset.Table):
            typeset.write(item, folder / "tables")
    print("\n\n".join(found.text))
    print(f"Tables and figures: {folder}")


if __name__ == "__main__":
    main()
