"""Tiny random models of six architectures, with what CondLoRA adapts in each."""

import copy
import functools
import json
from dataclasses import dataclass

import torch
import transformers
from peft import get_peft_model

from condlora import CondLoraConfig

IDS = torch.arange(1, 25).reshape(3, 8)


@functools.cache
def _built(model, config, settings):
    """A model, which copies are taken of, and the state of torch's generator after it was drawn."""
    torch.manual_seed(0)
    model = getattr(transformers, model)(getattr(transformers, config)(**json.loads(settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), torch.get_rng_state()


@dataclass(frozen=True)
class Family:
    """`square` and `rectangular` name modules of those weight shapes; `head` what a classifier adds."""

    model: str
    config: str
    settings: dict
    square: tuple[str, ...]
    rectangular: tuple[str, ...]
    task_type: str
    head: str | None = None

    def build(self, **settings):
        """The same model at every call, its zeros and ones perturbed, in evaluation mode, and torch's generator after it."""
        model, generator = _built(self.model, self.config, json.dumps(self.settings | settings))
        torch.set_rng_state(generator)
        return copy.deepcopy(model)

    def inputs(self):
        is_seq2seq = self.task_type == "SEQ_2_SEQ_LM"
        return {"input_ids": IDS} | ({"decoder_input_ids": IDS.flip(1)} if is_seq2seq else {})


_ENCODER = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "num_labels": 3,
}  # fmt: skip

FAMILIES = {
    "bert": Family(
        "BertForSequenceClassification", "BertConfig", _ENCODER,
        ("query", "value"), ("intermediate.dense",), "SEQ_CLS", "classifier",
    ),
    "roberta": Family(
        "RobertaForSequenceClassification", "RobertaConfig", _ENCODER,
        ("query", "value"), ("intermediate.dense",), "SEQ_CLS", "classifier",
    ),
    "deberta": Family(
        "DebertaV2ForSequenceClassification", "DebertaV2Config",
        _ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        ("query_proj", "value_proj"), ("intermediate.dense",), "SEQ_CLS", "classifier",
    ),
    "gpt2": Family(
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40},
        ("attn.c_proj",), ("c_attn", "c_fc"), "CAUSAL_LM",
    ),
    "llama": Family(
        "LlamaForCausalLM", "LlamaConfig",
        {
            "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40,
        },
        ("q_proj", "o_proj"), ("k_proj", "v_proj", "up_proj"), "CAUSAL_LM",
    ),
    "t5": Family(
        "T5ForConditionalGeneration", "T5Config",
        {
            "vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        ("q", "v"), ("wi", "wo"), "SEQ_2_SEQ_LM",
    ),
}  # fmt: skip


def adapted(family: str, form: str = "code", *, base=None, adapter_name="default", **settings):
    """A family's model with CondLoRA on its square modules, or its rectangular ones for "consistent"."""
    one = FAMILIES[family]
    targets = one.rectangular if form == "consistent" else one.square
    defaults = {
        "r": 4, "lora_alpha": 8, "form": form, "target_modules": list(targets),
        "init_weights": False, "task_type": one.task_type,
    }  # fmt: skip
    base = one.build() if base is None else base
    config = CondLoraConfig(**(defaults | settings))
    return get_peft_model(base, config, adapter_name=adapter_name).eval()


def perturb(model, scale=0.1):
    """Move every trainable tensor, so that one which is drawn anew on loading shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    return model


def logits(model, family: str = "bert", **kwargs):
    with torch.no_grad():
        return model(**FAMILIES[family].inputs(), **kwargs).logits


# Every family on square weights as the paper, on rectangular ones, and on all linear layers at once.
CASES = [(name, form) for name in FAMILIES for form in ("code", "literal", "consistent")]
