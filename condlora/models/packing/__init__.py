"""Layers that compute on real tokens only: `runtime.padding=packed`.

A batch stays padded, (B, L), for embeddings, poolers, heads and losses. Before the first transformer layer its real tokens
are taken out of the hidden states, (B, L, h) -> (1, T, h), and after the last layer they are put back; the layers between,
with an adapter's products in them, see no padding. Only attention is between the tokens of one example: there queries,
keys and values of examples of similar length are put into (n, heads, l, d), l being the longest of these n (`Group`), and
the model's own mask, restricted to their positions, has the same effect as without packing, causal or windowed.

With `members=M` among the inputs, for M equal groups of rows (the runs that are trained jointly), each group has its tokens
to itself: (M, T, h), T being the largest number of real tokens of a group; the others end in some of their padding, to
which no real token attends.

The positions of the tokens are known without asking the device, which would wait for it: the collator counts them, see
`condlora.glue.batches.padder`.

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

# Model types that tests show to give the same logits; others may mix tokens outside attention.
FAMILIES = ("bert", "distilbert", "gpt2", "llama", "modernbert", "mpnet", "roberta")


def pack(model: nn.Module) -> nn.Module:
    """Have a classifier, with an adapter or without, compute on real tokens; returns it.

    It takes a padded batch as before, with `lengths`, a list of B int: the real tokens of each row; without them the
    device is asked, which waits for it. Logits and gradients are the same except for rounding and the draws of dropout,
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
    """Have a model that cannot be packed take the same batches, with their padding; returns it."""

    def ignore(_: nn.Module, inputs: tuple, settings: dict):
        return inputs, {k: v for k, v in settings.items() if k not in ("lengths", "members")}

    model.register_forward_pre_hook(ignore, with_kwargs=True)
    return model


def refusal(reason: str) -> ConfigError:
    return ConfigError(f"runtime.padding=packed {reason}: set runtime.padding=longest.")
