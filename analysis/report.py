"""Runs all analyses on a profile's finished runs and writes the report, results/<profile>/report.html.

Examples:
    python analysis/report.py profile=embedded
    python analysis/report.py profile=embedded margin_points=0.5
    python analysis/report.py profile=embedded against=mpnet_conversion
"""

from pathlib import Path

from omegaconf import DictConfig

from analysis.study.records import missing_adapters
from analysis.study.reference import find_reference
from analysis.study.selection import open_study
from analysis.study.versions import other_versions
from condlora.commands.cli import command


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    reference = find_reference(Path(cfg.results), study.profile, cfg.against)
    runs, records = Path(cfg.runs), Path(cfg.records)
    if cfg.against is None and missing_adapters(study.done):
        reference = None  # committed records are not compared with the results made from them
    # Imported here: these take seconds, and a wrong setting is reported without them.
    from analysis.present.report import build
    from analysis.study.grids import has_parts
    from analysis.study.parity import load_grids

    grids = None
    if has_parts(study.profile):
        may_differ, fill = list(cfg.may_differ), cfg.fill_from_records
        grids = load_grids(study.profile, runs, may_differ, records, fill=fill)
    versions = other_versions(study.done, study.profile, cfg.against, runs, records)
    print(f"Report: {build(study, cfg.margin_points, reference, grids, versions)}")


if __name__ == "__main__":
    main()
