"""CondLoRA on a decoder of your own: adapt, train, save, load, merge, export, serve as plain LoRA.

    python examples/condlora_any_model.py

A tiny random Llama and a tiny random GPT-2 stand in for yours; nothing is downloaded. The export is loaded
in a second process that cannot import condlora.
"""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from condlora import CondLoraConfig, export_lora

warnings.filterwarnings("ignore", category=FutureWarning)  # between PEFT and transformers
IDS = torch.arange(1, 33).reshape(2, 16)

# Stock PEFT alone: `None` in sys.modules makes an import fail.
SERVE = """
import sys; sys.modules["condlora"] = None
import torch; from peft import PeftModel; from transformers import AutoModelForCausalLM
base, adapter, ids, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
torch.save(model(torch.load(ids, weights_only=True)).logits.detach(), out)
"""


def main() -> None:
    same = {"vocab_size": 64, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    llama = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        **same,
    )
    gpt2 = GPT2Config(n_embd=32, n_layer=4, n_head=4, **same)
    torch.manual_seed(0)
    # k and v of a Llama are narrower than its hidden size: rectangular weights need the consistent form.
    adapt(LlamaForCausalLM(llama), form="consistent", target_modules=["q_proj", "v_proj"])
    adapt(GPT2LMHeadModel(gpt2), form="code", target_modules=["attn.c_proj"])


def adapt(base, **settings) -> None:
    name = type(base).__name__
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base.save_pretrained(folder / "base")
        reload = type(base).from_pretrained
        model = get_peft_model(base, CondLoraConfig(r=4, task_type="CAUSAL_LM", **settings))
        losses = train(model)
        expected = logits(model)

        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
        loaded = PeftModel.from_pretrained(reload(folder / "base"), folder / "adapter")
        compare("saved and loaded", logits(loaded), expected)

        export_lora(model, folder / "lora")
        compare("exported, without condlora", served(folder), expected)
        compare("merged into the base model", logits(model.merge_and_unload()), expected)
    print(f"{name}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps\n")


def train(model) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2)
    losses = []
    for _ in range(10):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


def served(folder: Path) -> torch.Tensor:
    torch.save(IDS, folder / "ids.pt")
    paths = [str(folder / part) for part in ("base", "lora", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", SERVE, *paths], check=True)
    return torch.load(folder / "logits.pt", weights_only=True)


def compare(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (found - expected).abs().max().item()
    print(f"{what}: logits differ by at most {difference:.1e}")
    if difference > 1e-4:
        raise SystemExit("error: these should be the same model")


if __name__ == "__main__":
    main()
