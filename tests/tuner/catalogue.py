"""Tiny random models of many architectures, with the call that each takes: text, vision, speech, experts, state space.

Each is (class, config, inputs): names in transformers, its settings, and what `inputs_of` makes.
"""

from __future__ import annotations

import torch
import transformers

_TEXT = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = _TEXT | {"num_key_value_heads": 2}
_GPT = {
    "vocab_size": 50,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SEQ = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_T5 = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_IMAGE = {
    "image_size": 16, "patch_size": 4, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_labels": 3,
}  # fmt: skip
_MAMBA = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "state_size": 4,
    "pad_token_id": 0,
}

ARCHITECTURES: dict[str, tuple[str, str, dict, str]] = {
    "BERT": ("BertForSequenceClassification", "BertConfig", _TEXT | {"num_labels": 3}, "labels"),
    "RoBERTa": ("RobertaForSequenceClassification", "RobertaConfig", _TEXT | {"num_labels": 3}, "labels"),
    "ELECTRA": ("ElectraForTokenClassification", "ElectraConfig", _TEXT | {"embedding_size": 16, "num_labels": 3}, "token labels"),
    "DeBERTa-v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", _TEXT | {"num_labels": 3}, "labels"),
    "DistilBERT": ("DistilBertModel", "DistilBertConfig", {"vocab_size": 50, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40}, "ids"),
    "ModernBERT": ("ModernBertModel", "ModernBertConfig", _TEXT, "ids"),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT, "lm"),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, "lm"),
    "GPT-J": ("GPTJForCausalLM", "GPTJConfig", _GPT | {"rotary_dim": 4}, "lm"),
    "OPT": ("OPTForCausalLM", "OPTConfig", _TEXT | {"ffn_dim": 24, "word_embed_proj_dim": 16}, "lm"),
    "BLOOM": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2}, "lm"),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, "lm"),
    "Mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED, "lm"),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, "lm"),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 8}, "lm"),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", _GROUPED | {"head_dim": 8}, "lm"),
    "Phi": ("PhiForCausalLM", "PhiConfig", _TEXT, "lm"),
    "Falcon": ("FalconForCausalLM", "FalconConfig", _TEXT, "lm"),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", _GROUPED | {"num_local_experts": 2}, "lm"),
    "Qwen2-MoE": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", _GROUPED | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}, "lm"),
    "T5": ("T5ForConditionalGeneration", "T5Config", _T5, "seq2seq"),
    "BART": ("BartForConditionalGeneration", "BartConfig", _SEQ, "seq2seq"),
    "ViT": ("ViTForImageClassification", "ViTConfig", _IMAGE, "image"),
    "Swin": ("SwinForImageClassification", "SwinConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "num_labels": 3}, "large image"),
    "ConvNext": ("ConvNextForImageClassification", "ConvNextConfig", {"image_size": 32, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2], "num_labels": 3}, "large image"),
    "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _SEQ | {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 40, "suppress_tokens": None, "begin_suppress_tokens": None}, "speech"),
    "Wav2Vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [4, 4], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}, "wave"),
    "Mamba": ("MambaForCausalLM", "MambaConfig", _MAMBA, "lm"),
}  # fmt: skip

# Where PEFT has no default targets for an architecture, those a user would name.
TARGETS = {
    "DistilBERT": ["q_lin", "v_lin"], "ModernBERT": ["Wqkv"], "Qwen2-MoE": ["q_proj", "v_proj"],
    "ViT": "all-linear", "Swin": ["q_proj", "v_proj"], "ConvNext": ["pwconv1", "pwconv2"],
    "Whisper": ["q_proj", "v_proj"], "Wav2Vec2": ["q_proj", "v_proj"], "Mamba": ["x_proj", "in_proj"],
}  # fmt: skip


def build(name: str) -> torch.nn.Module:
    """The same model at every call, its zeros and ones perturbed, in evaluation mode."""
    model_class, config_class, settings, _ = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    kind = ARCHITECTURES[name][3]
    ids = torch.arange(3, 27).reshape(3, 8)
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 2])
    return {
        "ids": {"input_ids": ids},
        "lm": {"input_ids": ids, "labels": ids},
        "labels": {"input_ids": ids, "labels": labels},
        "token labels": {"input_ids": ids, "labels": ids % 3},
        "seq2seq": {"input_ids": ids, "labels": ids.flip(1)},
        "image": {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator), "labels": labels},
        "large image": {
            "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
            "labels": labels,
        },
        "speech": {"input_features": torch.randn(3, 8, 24, generator=generator), "labels": ids},
        "wave": {"input_values": torch.randn(3, 400, generator=generator), "labels": ids[:, :3]},
    }[kind]


def output_of(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The logits, or for a model without a head its last hidden state."""
    with torch.no_grad():
        outputs = model(**inputs_of(name))
    logits = getattr(outputs, "logits", None)
    return outputs.last_hidden_state if logits is None else logits
