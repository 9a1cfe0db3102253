"""Layers that compute on real tokens only: `runtime.padding=packed`.

A batch stays padded, (B, L), for embeddings, poolers, heads and losses. Before the first transformer layer the real tokens
are taken out of the hidden states, (B, L, h) -> (1, T, h), and after the last layer they are put back. So the layers, with
the products of an adapter, compute nothing on padding. Attention is within one example: queries, keys and values of
examples of similar length are put into (n, heads, l, d), where l is the longest of these n (`Group`). The model's own mask,
restricted to their positions, has the same effect as without packing, causal or windowed.

With `members=M` among the inputs, for M equal groups of rows (runs that are trained jointly), each group has its own row of
tokens: (M, T, h), where T is the largest number of real tokens of a group. The other groups are filled with some of their
padding, to which no real token attends.

The collator counts the tokens of each row, see `condlora.glue.batches.padder`, since reading them from the device would wait
for it.

    places      where a batch's tokens are, and moving them
    attention   models that use transformers' attention interface
    relative    MPNet, which does not, and adds a bias for relative positions
"""

from __future__ import annotations

import functools

from torch import nn
from transformers import PreTrainedModel

from condlora.errors import ConfigError
from condlora.models.packing import attention, relative
from condlora.models.packing.places import describe

# Model types for which tests show equal logits; other models may mix tokens outside attention.
FAMILIES = ("bert", "distilbert", "gpt2", "llama", "modernbert", "mpnet", "roberta")


def pack(model: nn.Module) -> nn.Module:
    """Change a classifier, with or without an adapter, to compute on real tokens only; returns it.

    It takes a padded batch as before, with `lengths`, a list of B int: the number of real tokens of each row. Without
    `lengths` they are read from the device, which waits for it. Logits and gradients are the same except for rounding and the draws of dropout,
    as long as the head does not read padding (BERT's reads the first token, which is padding if that is on the left: it
    finds zeros there).

    Raises:
        ConfigError: this does not hold for the model, its attention or its adapter.
    """
    classifier = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    config, implementation = classifier.config, classifier.config._attn_implementation
    if config.model_type not in FAMILIES:
        raise refusal(f"does not support {config.model_type}, only {', '.join(FAMILIES)}")
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        raise refusal("does not support adapters that add tokens")
    if implementation not in ("sdpa", "eager"):
        raise refusal(f"does not support runtime.attention={implementation}")
    is_rotary = hasattr(classifier.base_model, "rotary_emb")
    model.register_forward_pre_hook(
        functools.partial(describe, is_rotary=is_rotary), with_kwargs=True
    )
    if config.model_type == "mpnet":
        relative.prepare(model, classifier)
    else:
        attention.prepare(classifier)
    return model


def leave_padded(model: nn.Module) -> nn.Module:
    """Let a model that cannot be packed accept the same batches, which it computes with their padding; returns it."""

    def ignore(_: nn.Module, inputs: tuple, settings: dict):
        return inputs, {k: v for k, v in settings.items() if k not in ("lengths", "members")}

    model.register_forward_pre_hook(ignore, with_kwargs=True)
    return model


def refusal(reason: str) -> ConfigError:
    return ConfigError(f"runtime.padding=packed {reason}: set runtime.padding=longest.")
