"""Answers a prompt with a routed adapter of an export, with `transformers` and `peft` alone.

pip install torch transformers peft
python examples/routed_adapter.py --export exports/a --adapter clients/client_0-gate --prompt "Hi."
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# By the router's kind, its logits [B, T, S] to the shares of K experts [B, T, K].
SHARES = {"gate": lambda logits, K: logits.softmax(dim=-1)}


def load(folder: Path, base: str, dtype: torch.dtype = torch.float32) -> Any:
    """The base with all experts on it, of which every adapted map takes its own input's shares."""
    about = json.loads((folder / "router.json").read_text(encoding="utf-8"))
    router, (first, *others) = load_file(folder / "router.safetensors"), about["experts"]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = PeftModel.from_pretrained(model, str(folder / first), adapter_name=first)
    for name in others:
        model.load_adapter(str(folder / name), adapter_name=name)
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            layer.forward = routed(layer, router[name], about["kind"], about["experts"])
    return model.eval()


def routed(layer: Any, gate_SD: torch.Tensor, kind: str, experts: list[str]) -> Any:
    """Y = W x + sum over k of share_k(x) * scale_k * B_k A_k x, at one adapted map."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        share = SHARES[kind](x.float() @ gate_SD.T, len(experts)).to(x.dtype)
        deltas = [layer.scaling[e] * layer.lora_B[e](layer.lora_A[e](x)) for e in experts]
        return layer.base_layer(x) + sum(share[..., [k]] * d for k, d in enumerate(deltas))

    return forward


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answers a prompt with a routed adapter.")
    for option in ("--export", "--adapter", "--prompt"):
        parser.add_argument(option, required=True)
    parser.add_argument("--base", help="folder or hub id of the base, where the export has none")
    given = parser.parse_args()
    folder, base = Path(given.export) / given.adapter, given.base or f"{given.export}/base"
    about = json.loads((folder / "router.json").read_text(encoding="utf-8"))
    tokenizer, model = AutoTokenizer.from_pretrained(base), load(folder, base)
    asked = tokenizer(about["prompt"].replace("{instruction}", given.prompt), return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=about["max_new_tokens"], do_sample=False)
    print(tokenizer.decode(answer[0, asked.input_ids.shape[1] :], skip_special_tokens=True))
