"""Fixtures shared by all tests: a tiny model, and the golden tensors where they are at hand."""

import json
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a thread pool costs more than it gives

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"


@pytest.fixture
def golden() -> Path:
    """The folder of tensors computed by the authors' released code; absent outside the project's CI."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden tensors at {GOLDEN}: they are not part of the repository")
    return GOLDEN


@pytest.fixture
def golden_model(golden):
    """A function dtype -> the 4-layer RoBERTa classifier that the golden tensors were computed with."""
    from safetensors.torch import load_file
    from transformers import RobertaConfig, RobertaForSequenceClassification

    settings = json.loads((golden / "manifest.json").read_text())["tiny_model"]["config"]

    def build(dtype=torch.float32):
        model = RobertaForSequenceClassification(RobertaConfig(**settings))
        model.load_state_dict(load_file(golden / "tiny_base.safetensors"), strict=True)
        return model.to(dtype).eval()

    return build
