"""Answers a prompt with a routed adapter of an export, with `transformers` and `peft` alone.

python examples/routed_adapter.py --export exports/a --adapter clients/client_0-gate --prompt "Hi."
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def shares(kind: str, logits: torch.Tensor, K: int) -> torch.Tensor:
    """The router's logits [B, T, S] as the shares of K experts, [B, T, K]."""
    weight = logits.softmax(dim=-1)
    if kind == "gate":
        return weight
    weight = weight * (weight >= weight.topk(K, dim=-1).values[..., -1:])
    total = weight.sum(-1, keepdim=True) if kind == "top_of_one" else 1.0
    return torch.cat([weight[..., :K].sum(-1, keepdim=True), weight[..., K:]], dim=-1) / total


def load(folder: Path, base: str) -> tuple[Any, Any]:
    """The base with all experts, of which every map takes its input's shares; and router.json."""
    about = json.loads((folder / "router.json").read_text(encoding="utf-8"))
    router, experts = load_file(folder / "router.safetensors"), about["experts"]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(folder / experts[0]), adapter_name=experts[0])
    for name in experts[1:]:
        model.load_adapter(str(folder / name), adapter_name=name)

    def routed(layer: Any, name: str, x: torch.Tensor) -> torch.Tensor:
        logits = x @ router[name].T + router.get(f"{name}.bias", 0.0)
        share = shares(about["kind"], logits, len(experts))
        deltas = [layer.scaling[e] * layer.lora_B[e](layer.lora_A[e](x)) for e in experts]
        return layer.base_layer(x) + sum(share[..., [k]] * d for k, d in enumerate(deltas))

    for name, layer in list[Any](model.base_model.model.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.forward = partial(routed, layer, name)
    return model.eval(), about


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--export", "--adapter", "--prompt", "--base"):
        parser.add_argument(option, required=option != "--base")
    given = parser.parse_args()
    base = given.base or f"{given.export}/base"
    model, about = load(Path(given.export) / given.adapter, base)
    text, tokenizer = about["prompt"], AutoTokenizer.from_pretrained(base)
    prompt = tokenizer(text.replace("{instruction}", given.prompt), return_tensors="pt")
    answer = model.generate(
        **prompt,
        max_new_tokens=about["max_new_tokens"],
        eos_token_id=about["stop_ids"],
        do_sample=False,
    )
    print(tokenizer.decode(answer[0, prompt.input_ids.shape[1] :], skip_special_tokens=True))
