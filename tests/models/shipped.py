"""The shipped adapters, and what a toy backbone asks of some of them."""

import pytest
from omegaconf import OmegaConf

from scripts import method_table
from tests.tasks import ROOT

FILES = {path.stem: OmegaConf.load(path) for path in (ROOT / "configs/adapter").glob("*.yaml")}
METHODS = method_table.names()
TRAINED_HERE = [name for name in METHODS if "requires" not in FILES[name]]
# For a width of 16 and 128 positions.
FITTING = {
    "corda": ["adapter.examples=20"],
    "fourierft": ["adapter.config.n_frequency=50"],
    "oft": ["adapter.config.oft_block_size=8"],
    "p_tuning": ["protocol.max_length=100"],
    "prefix_tuning": ["protocol.max_length=100"],
    "prompt_tuning": ["protocol.max_length=100"],
    "lora_prompt": ["protocol.max_length=100"],
    "lora_prefix": ["protocol.max_length=100"],
    "vblora": ["adapter.config.vector_length=8"],
    "vera": ["adapter.config.r=64"],
    "road": ["adapter.config.group_size=8"],
    "c3a": ["adapter.config.block_size=8"],
    "adapterdrop": ["adapter.bottleneck.from_layer=1"],
}

# What PEFT says of these at each layer, and docs/methods.md once.
QUIET = [
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:lora with eva initialization"),
]
