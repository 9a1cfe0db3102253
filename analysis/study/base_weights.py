"""The frozen weights of a base model, read module by module from its safetensors; no model is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from condlora.errors import BackboneError, NetworkError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
FILES = ["model*.safetensors", INDEX]


def local_folder(name: str, files: list[str], what: str) -> Path:
    """The folder of that path, or the hub's files of that id in its cache, downloaded if they are not there.

    Raises NetworkError where `name` is no folder and could not be downloaded.
    """
    path = Path(name)
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        if not path.exists():
            raise BackboneError(f"There is no folder {name}: give {what} as a folder or a hub id.")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise NetworkError(
            f"{name} is no folder, is not cached and could not be downloaded from the hub ({type(error).__name__}): "
            f"check the name, go online once, or give {what} as a folder."
        ) from error


class BaseWeights:
    """The 2-D weights of a base model: a folder with model.safetensors (or its parts), or a hub id."""

    def __init__(self, base: str):
        self.folder = local_folder(base, FILES, "the base model")
        self.file_of = _files_by_name(self.folder)
        self._known: dict[str, torch.Tensor] = {}  # one tensor for all adapters of the base

    def weight(self, path: str, shape: tuple[int, int], is_transposed: bool) -> torch.Tensor:
        """W (out, in) of the module with this path in the adapted model, in the file's precision.

        The base may be saved without the path's first names ("roberta.") or with others before them. is_transposed: the
        file has (in, out), as GPT-2's.

        Raises BackboneError where there is no such weight, of another shape, or quantised.
        """
        name = self._find(path)
        if name not in self._known:
            from safetensors import safe_open

            with safe_open(self.file_of[name], framework="pt") as file:
                self._known[name] = file.get_tensor(name)
        W = self._known[name]
        if not W.is_floating_point():
            raise BackboneError(
                f"{name} of {self.folder} is quantised ({W.dtype}): give the base model in floating point."
            )
        W = W.T if is_transposed else W
        if tuple(W.shape) != tuple(shape):
            found, wanted = (" x ".join(map(str, size)) for size in (W.shape, shape))
            raise BackboneError(
                f"{name} of {self.folder} is {found} and the adapter's is {wanted}: give the adapter's own base model."
            )
        return W

    def _find(self, path: str) -> str:
        parts = path.split(".")
        layer = next(n for n, part in enumerate(parts) if part.isdigit())
        for start in range(layer + 1):
            name = ".".join(parts[start:]) + ".weight"
            if name in self.file_of:
                return name
        longer = [name for name in self.file_of if name.endswith(f".{path}.weight")]
        if len(longer) != 1:
            raise BackboneError(
                f"{self.folder} has no weight of {path}: give the adapter's own base model."
            )
        return longer[0]


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    from safetensors import SafetensorError, safe_open

    try:
        if (folder / INDEX).is_file():
            parts = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in parts.items()}
        path = folder / "model.safetensors"
        if not path.is_file():
            raise BackboneError(
                f"{folder} holds no model.safetensors: save the base model with safe_serialization=True."
            )
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"The weights in {folder} cannot be read ({type(error).__name__}): fetch them again."
        ) from error
