"""What the training benchmark trains on: backbones with random weights, and texts of GLUE's lengths."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from condlora.errors import ConfigError
from condlora.glue.batches import Encoded, encode
from condlora.glue.sources import load_text
from condlora.glue.tasks import task_from_config
from condlora.grid.cells import compose_cells
from condlora.models.backbones import Backbone, as_backbone, labels_of, random_model
from condlora.paths import CONFIGS
from condlora.training.data import Data
from condlora.training.device import find_device
from condlora.training.setup import num_labels

TOKENS = "tokens_"  # in place of a task's name: examples of this many tokens each
TRAINERS = (
    "trainer_512",
    "trainer_dynamic",
)  # padded as the authors pad; by DataCollatorWithPadding
OURS = ("max_length", "longest", "packed")
FLEET = "fleet_"  # followed by the number of runs trained jointly
COMPILED = "compiled"  # as "longest", with torch.compile, compiled once for all lengths
BUCKETS = "buckets"  # as "compiled", once for each of a few lengths, and with CUDA graphs
LONG = ("trainer_512", "max_length")  # every row is padded to the maximum length
SEED = 0


def batch_size(wanted: DictConfig, variant: str) -> int:
    return wanted.batch_at_512 if variant in LONG else wanted.batch


def cell(wanted: DictConfig, model: str, task: str, method: str, padding: str) -> DictConfig:
    """The config that scripts/train.py would compose, with random weights in the shape of a backbone of configs/."""
    overrides = (
        f"backbone={model}", "data=synthetic", f"task={task_of(task)}", f"adapter={method}", f"seed={SEED}",
        f"protocol.precision={wanted.precision}", f"protocol.max_length={wanted.max_length}",
        f"runtime.padding={padding}", f"runtime.threads={wanted.threads or 'null'}", f"runtime.device={wanted.device}",
    )  # fmt: skip
    (composed,) = compose_cells(overrides)
    cfg = OmegaConf.create(OmegaConf.to_container(composed, resolve=True))
    cfg.backbone.source, cfg.backbone.weights_seed = "random", SEED
    cfg.backbone.architecture = wanted.shapes[model]
    return cfg


def backbone_of(cfg: DictConfig) -> Backbone:
    """The backbone of `cell`'s config. Its tokenizer knows no word: the benchmark makes tokens itself."""
    settings = OmegaConf.to_container(cfg.backbone, resolve=True)
    return _backbone(json.dumps(settings, sort_keys=True), num_labels(cfg))


@functools.lru_cache(maxsize=1)  # the largest has half a gigabyte
def _backbone(settings: str, outputs: int) -> Backbone:
    cfg = OmegaConf.create(json.loads(settings))
    model, missing = random_model(cfg, labels_of(outputs))
    pad = model.config.pad_token_id or 0
    words = WordLevel({"[PAD]": pad, "[UNK]": pad + 1}, unk_token="[UNK]")
    ends = TemplateProcessing(pair="$A [UNK] $B", special_tokens=[("[UNK]", pad + 1)])
    tokenizer = Tokenizer(words)
    tokenizer.post_processor = ends  # as texts of a pair are kept apart
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    )
    return as_backbone(cfg, model, missing, fast)


def task_of(name: str) -> str:
    """The task that gives the head and the batches: SST-2 for examples of one length."""
    return "sst2" if name.startswith(TOKENS) else name


def data_of(cfg: DictConfig, backbone: Backbone, lengths: np.ndarray) -> Data:
    """Random tokens and labels; example i has lengths[i] tokens."""
    generator = torch.Generator().manual_seed(SEED)
    high = min(1000, backbone.model.config.vocab_size)
    rows = [
        {
            "input_ids": torch.randint(10, high, (n,), generator=generator).tolist(),
            "attention_mask": [1] * n,
        }
        for n in lengths
    ]
    task = task_from_config(cfg.task)
    dtype = torch.float32 if task.is_regression else torch.int64
    labels = torch.randint(0, 2, (len(rows),), generator=generator).to(dtype)
    train = Encoded.from_rows(rows, labels, device=find_device(cfg.runtime.device))
    return Data(task, backbone.tokenizer, [], train, train, train, 0.0, 1.0, {})


def sample(wanted: DictConfig, task: str, size: int) -> np.ndarray:
    """Token counts, (size,) int64 in ascending order, with the quantiles of the task's training examples."""
    where = (np.arange(size) + 0.5) / size
    if task.startswith(TOKENS):
        found = np.full(size, int(task.removeprefix(TOKENS)))
    elif wanted.glue:
        found = np.quantile(token_counts(wanted.glue, wanted.tokenizer, task), where)
    else:
        found = np.interp(where, np.array(wanted.levels) / 100, wanted.quantiles[task])
    return found.round().astype(np.int64).clip(max=wanted.max_length)


@functools.lru_cache
def token_counts(glue: str, tokenizer: str | None, task: str) -> tuple[int, ...]:
    """Token count of each training example in a GLUE download folder.

    Raises:
        ConfigError: the folder `tokenizer` has no tokenizer.json.
    """
    path = Path(tokenizer or "", "tokenizer.json")
    if not path.is_file():
        raise ConfigError(
            f"training.tokenizer={tokenizer} has no tokenizer.json: set it to a folder that has one."
        )
    cfg = OmegaConf.load(CONFIGS / "task" / f"{task}.yaml")
    described = task_from_config(cfg)
    text = load_text(OmegaConf.create({"source": "directory", "root": glue}), described)["train"]
    reader = PreTrainedTokenizerFast(tokenizer_file=str(path))
    return tuple(encode(text, described, reader, max_length=512).lengths)
