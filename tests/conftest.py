"""What all tests share: tiny models and runs, the golden tensors, and which tests are skipped where."""

import functools
import gc
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a thread pool costs more than it gives


def pytest_collection_finish():
    """Generate each synthetic task once per process, time runs by few steps, and keep the imports out of every collection of
    garbage."""
    prepare = sys.modules.get("condlora.training.data")
    if prepare is not None:
        prepare._prepare = functools.lru_cache(maxsize=32)(prepare._prepare.__wrapped__)
    timing = sys.modules.get("condlora.training.timing")
    if timing is not None:
        timing.TIMED_ROUNDS, timing.WARM_UP_STEPS, timing.TIMED_STEPS = 1, 1, 2
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Skip what needs hardware or an extra that is not there; see the markers in pyproject.toml."""
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = pytest.mark.skip(reason="no CUDA device is available")
    for item in items:
        for name, skip in missing.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


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
    from tests.tasks import compose_tiny

    def compose(*overrides):
        named = any(o.startswith("runs=") for o in overrides)
        return compose_tiny(*(() if named else (f"runs={tmp_path}/runs",)), *overrides)

    return compose


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    """A function (*overrides) -> a runs folder with the finished runs that they name, trained once per process."""
    from condlora.training.run import run
    from tests.tasks import compose_tiny

    @functools.cache
    def train(*overrides):
        runs = tmp_path_factory.mktemp("finished")
        for cfg in compose_tiny(*overrides, f"runs={runs}"):
            run(cfg)
        return runs

    return train


@pytest.fixture
def finished_cells(finished_once, tiny_cells, tmp_path):
    """A function (*overrides) -> `tiny_cells` whose runs are finished; each test has copies of its own."""

    def finish(*overrides):
        shutil.copytree(finished_once(*overrides), tmp_path / "runs", dirs_exist_ok=True)
        return tiny_cells(*overrides)

    return finish
