"""What a command checks before anything is loaded: the machine, the hub, the data folder, every setting of every run."""

from __future__ import annotations

from omegaconf import DictConfig

from condlora.errors import DeviceError, NetworkError
from condlora.grid.cells import compose_cells, compose_common
from condlora.runs.recipe import recipe
from condlora.runs.settings import check_settings


def preflight(overrides: list[str]) -> None:
    """Refuse within seconds what cannot run: a missing GPU, hub or data folder, an unfinished recipe, a wrong value.

    Raises:
        DeviceError, NetworkError: with all that is missing in one sentence. ConfigError: see `recipe` and
            `condlora.runs.settings`.
        DataError: see `condlora.glue.sources.data_folder`.
    """
    common = compose_common(tuple(overrides))
    no_gpu = "cuda" in common.profile.requires and not _has_cuda()
    unreachable = _unreachable(common)
    missing = ["a CUDA GPU"] * no_gpu
    if unreachable:
        missing.append(f"the Hugging Face hub (for {' and '.join(unreachable)})")
    if missing:
        needs = f"needs {' and '.join(missing)}, not found here"
        raise (DeviceError if no_gpu else NetworkError)(
            f"This run {needs}: use backbone=minilm with data=synthetic or data=directory, which need neither."
            if common.profile.name == "adhoc"
            else f"PROFILE={common.profile.name} {needs}: use PROFILE=embedded, which needs neither."
        )
    if common.data.source == "directory":
        from condlora.glue.sources import data_folder  # it loads datasets: a second

        data_folder(common.data)
    for cfg in compose_cells(tuple(overrides)):
        recipe(cfg)
        check_settings(cfg)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _unreachable(cfg: DictConfig) -> list[str]:
    """Repositories the config needs that are neither cached nor reachable."""
    wanted = []
    if cfg.backbone.source == "hub":
        wanted.append((cfg.backbone.model, cfg.backbone.revision, "model"))
    if cfg.data.source == "hub" or (cfg.data.source == "dataset" and cfg.data.revision):
        wanted.append((cfg.data.dataset, cfg.data.revision, "dataset"))
    return [repo for repo, revision, kind in wanted if not _is_available(repo, revision, kind)]


def _is_available(repo: str, revision: str, kind: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(
            repo, revision=revision, repo_type=kind, local_files_only=True
        )
        return True
    except Exception:  # not cached, in any of the ways the library says so
        pass
    try:
        huggingface_hub.HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=5)
        return True
    except Exception:  # offline, blocked, unknown: all the same to who waits
        return False
