"""The tiny backbone, and a folder with its encoder as a user would save it."""

import pytest
from omegaconf import OmegaConf

from condlora.models.backbones import load_backbone
from tests.tasks import ROOT


@pytest.fixture(scope="session")
def tiny():
    return load_backbone(OmegaConf.load(ROOT / "configs/backbone/tiny.yaml"), num_labels=2)


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """A folder with a pretrained encoder without a classifier, and its tokenizer. Copy it before a change."""
    path = tmp_path_factory.mktemp("saved")
    tiny.model.bert.save_pretrained(path)
    tiny.tokenizer.save_pretrained(path)
    return path
