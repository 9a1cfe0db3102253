"""Fixtures shared by all tests: a tiny model and the golden tensors."""

import json
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a thread pool costs more than it gives

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden() -> Path:
    """The folder of tensors computed by the authors' released code, see its README."""
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


@pytest.fixture
def tiny_bert():
    """A function () -> the same 3-layer BERT classifier with random weights, its biases and norms nontrivial."""
    from transformers import BertConfig, BertForSequenceClassification

    def build(**settings):
        torch.manual_seed(0)
        defaults = {
            "vocab_size": 50,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
            "num_labels": 3,
        }
        model = BertForSequenceClassification(BertConfig(**(defaults | settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return build


@pytest.fixture
def tiny_cells(tmp_path):
    """A function (*overrides) -> configs of the shipped train.yaml, shrunk to a toy backbone and a few steps."""
    from condlora.grid.cells import compose_cells

    def compose(*overrides):
        shrunk = (
            "backbone=tiny",
            "data=synthetic",
            "protocol=embedded",
            "protocol.max_steps=6",
            "protocol.evaluate_every=3",
            "runtime.threads=1",
            f"runs={tmp_path}/runs",
        )
        chosen = {o.split("=")[0] for o in overrides}
        kept = tuple(o for o in shrunk if o.split("=")[0] not in chosen)
        return compose_cells((*kept, *overrides))

    return compose
