"""Three small pretrained models, each with data that it was not trained on, for the comparison of learning rates.

encoder: MiniLM (6 layers of 384), which comes pretrained; it classifies the sentences of SST-2 with a new head.
decoder: a Llama of 4 layers of 128 with grouped-query attention, trained here on the sentences of QNLI (Wikipedia), byte by
    byte; it then predicts the bytes of SST-2 (film reviews).
vision: a ViT of 4 layers of 64, trained here on the handwritten digits that scikit-learn ships; it then reads the same digits
    turned by 90 degrees and inverted, with the head that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf
from sklearn.datasets import load_digits
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from condlora.errors import ConfigError
from condlora.glue.sources import load_text
from condlora.glue.tasks import task_from_config
from condlora.grid.cells import compose_common
from condlora.models.backbones import load_backbone
from condlora.models.heads import initialise_head
from condlora.paths import CONFIGS

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A pretrained model and what it is adapted to.

    batch: a function of a generator that draws a batch of the new data. held_out: batches that are never trained on.
    head: paths of the modules that pretraining does not provide.
    """

    model: nn.Module
    targets: list[str]
    batch: Callable[[torch.Generator], Batch]
    held_out: list[Batch]
    head: tuple[str, ...] = ()


def encoder(wanted: DictConfig) -> Subject:
    cfg = compose_common(("backbone=minilm",))
    backbone = load_backbone(cfg.backbone, num_labels=2)
    torch.manual_seed(0)
    initialise_head(backbone.model, backbone.head)
    splits = _texts(wanted, "sst2")

    def tokens(rows: Batch) -> Batch:
        texts = backbone.tokenizer(
            rows["sentence"], truncation=True, padding=True, max_length=wanted.encoder_tokens, return_tensors="pt"
        )  # fmt: skip
        return {**texts, "labels": torch.tensor(rows["label"])}

    def batch(generator: torch.Generator) -> Batch:
        train = splits["train"]
        return tokens(train[torch.randint(len(train), (8,), generator=generator).tolist()])

    dev = splits["validation"]
    held_out = [tokens(dev[i : i + 109]) for i in range(0, 436, 109)]
    return Subject(backbone.model, ["query", "value"], batch, held_out, backbone.head)


def decoder(wanted: DictConfig) -> Subject:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    wikipedia = _bytes(_texts(wanted, "qnli")["train"]["sentence"])
    train(model, _windows(wikipedia, 16), steps=wanted.pretraining_steps, rate=3e-3)
    splits = _texts(wanted, "sst2")
    reviews, dev = (_bytes(splits[name]["sentence"]) for name in ("train", "validation"))
    held_out = [_windows(dev, 64)(torch.Generator().manual_seed(i)) for i in range(4)]
    return Subject(model, ["q_proj", "v_proj"], _windows(reviews, 8), held_out)


def vision(wanted: DictConfig) -> Subject:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept, other = order[:-400], order[-400:]

    def draw(images: torch.Tensor) -> Callable[[torch.Generator], Batch]:
        def batch(generator: torch.Generator) -> Batch:
            rows = kept[torch.randint(len(kept), (32,), generator=generator)]
            return {"pixel_values": images[rows], "labels": labels[rows]}

        return batch

    train(model, draw(images), steps=wanted.pretraining_steps, rate=1e-3)
    turned = 1 - images.rot90(dims=(2, 3))
    held_out = [{"pixel_values": turned[other], "labels": labels[other]}]
    return Subject(model, ["q_proj", "v_proj"], draw(turned), held_out)


SUBJECTS = {f.__name__: f for f in (encoder, decoder, vision)}


def train(
    model: nn.Module, batch: Callable[[torch.Generator], Batch], *, steps: int, rate: float, seed: int = 0
) -> bool:  # fmt: skip
    """Train what requires gradients; False if the loss is not finite, which ends the training.

    AdamW without weight decay; the rate rises over a tenth of the steps and falls linearly to zero; gradients are clipped to
    a norm of 1, as transformers' Trainer does.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    warm_up = steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        loss = model(**batch(generator)).loss
        if not loss.isfinite():
            return False
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return True


def _texts(wanted: DictConfig, task: str) -> dict:
    if not wanted.glue:
        raise ConfigError("learning_rates.glue is not set: set it to a folder of GLUE downloads.")
    described = task_from_config(OmegaConf.load(CONFIGS / "task" / f"{task}.yaml"))
    return load_text(OmegaConf.create({"source": "directory", "root": wanted.glue}), described)


def _bytes(texts: list[str]) -> torch.Tensor:
    return torch.tensor(list("\n".join(texts).encode()), dtype=torch.uint8)


def _windows(text: torch.Tensor, size: int) -> Callable[[torch.Generator], Batch]:
    """A function that draws `size` windows of 64 bytes."""

    def batch(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(text) - 64, (size,), generator=generator)
        ids = text[starts[:, None] + torch.arange(64)].long()
        return {"input_ids": ids, "labels": ids}

    return batch
