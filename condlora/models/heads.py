"""The classification head on a backbone, and the settings in which model and tokenizer must agree."""

from __future__ import annotations

import inspect

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from condlora.errors import BackboneError


def find_head(model: PreTrainedModel, missing: list[str], name: str) -> tuple[str, ...]:
    """Paths of the modules to initialise and train whole, in the model's order.

    These are the modules outside the encoder that the weights file lacks (`missing`: names of parameters), and the one
    with the output layer, which a classifier's file has for another task. What the file does provide is kept: of
    ModernBERT's two modules outside the encoder the first is pretrained. Of the encoder only a pooler may be missing.

    Raises:
        BackboneError: more of the encoder is missing.
    """
    encoder = model.base_model_prefix
    inside = [key for key in missing if key.startswith(f"{encoder}.")]
    lost = [key for key in inside if not key.startswith(f"{encoder}.pooler.")]
    if lost:
        raise BackboneError(
            f"The weights of {name} lack {lost[0]}{f' and {len(lost) - 1} more' * (len(lost) > 1)}: fetch them again."
        )
    uninitialised = {key.split(".")[0] for key in set(missing) - set(inside)}
    outputs = {
        child
        for child, module in model.named_children()
        if child != encoder
        and any(p.shape[0] == model.config.num_labels for p in module.parameters())
    }
    outside = tuple(c for c, _ in model.named_children() if c in uninitialised | outputs)
    return (f"{encoder}.pooler",) * bool(inside) + outside


def initialise_head(model: PreTrainedModel, head: tuple[str, ...]) -> None:
    """Draw the weights of a head from torch's global generator, in place."""
    for path in head:
        for module in model.get_submodule(path).modules():
            model._init_weights(module)


def fit_to_each_other(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Set the tokenizer's outputs to the model's inputs, and the padding token in the model's config.

    Decoders have no padding token, and GPT-2's tokenizer puts nothing between the two texts of a pair. Their end-of-text
    token serves as both, like the delimiter of Radford et al. 2018 (GPT, section 3.3). A decoder is padded on the right:
    the head reads the last token that is not padding, which does not attend to what follows, and each token keeps its
    position.

    A model with a single token type gets no token types, since it has no embedding for that of a pair's second text.

    Raises:
        BackboneError: there is no such token, or the tokenizer has tokens that the model has no embeddings for.
    """
    accepted = set(inspect.signature(model.forward).parameters)
    if getattr(model.config, "type_vocab_size", 2) < 2:
        accepted.discard("token_type_ids")
    tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n in accepted]
    check_vocabulary(model, tokenizer, name)
    joins_pairs_bare = tokenizer.num_special_tokens_to_add(pair=True) == 0
    if (tokenizer.pad_token is None or joins_pairs_bare) and tokenizer.eos_token is None:
        raise BackboneError(
            f"The tokenizer of {name} has neither a padding nor an end-of-text token: set pad_token and eos_token in "
            "its tokenizer_config.json."
        )
    if model.config.pad_token_id is None:
        tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if joins_pairs_bare:
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A",
            pair=f"$A {end} $B",
            special_tokens=[(end, tokenizer.eos_token_id)],
        )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise a BackboneError if the tokenizer has tokens that the model has no embeddings for."""
    size = model.get_input_embeddings().num_embeddings
    unknown = {token: index for token, index in tokenizer.get_vocab().items() if index >= size}
    if unknown:
        first = min(unknown, key=unknown.get)
        others = f" and {len(unknown) - 1} more" * (len(unknown) > 1)
        raise BackboneError(
            f"The tokenizer of {name} has tokens that the model has no embeddings for ({first!r} is number "
            f"{unknown[first]} of {size}{others}): resize the model's embeddings and save it, or remove these tokens."
        )


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest number of tokens that a model reads, by its tokenizer's limit and its positions.

    RoBERTa and similar models count positions from the padding token's index on, so the first few are never used.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return tokenizer.model_max_length
    unused = [
        module.padding_idx + 1
        for path, module in model.named_modules()
        if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return min(tokenizer.model_max_length, positions - max(unused, default=0))
