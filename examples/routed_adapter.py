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


def load(folder: Path, base: str) -> tuple[Any, Any, Any]:
    """The base with all experts, whose maps take their input's shares; router.json; tokenizer."""
    about = json.loads((folder / "router.json").read_text(encoding="utf-8"))
    router, experts = load_file(folder / "router.safetensors"), about["experts"]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(folder / experts[0]), adapter_name=experts[0])
    for name in experts[1:]:
        model.load_adapter(str(folder / name), adapter_name=name)

    def routed(layer: Any, name: str, x: torch.Tensor) -> torch.Tensor:
        w = shares(
            about["kind"], x @ router[name].T + router.get(name + ".bias", 0.0), len(experts)
        )
        deltas = [layer.scaling[e] * layer.lora_B[e](layer.lora_A[e](x)) for e in experts]
        return layer.base_layer(x) + sum(w[..., [k]] * d for k, d in enumerate(deltas))

    for name, layer in list[Any](model.base_model.model.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.forward = partial(routed, layer, name)
    return model.eval(), about, AutoTokenizer.from_pretrained(base)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--export", "--adapter", "--prompt", "--base"):
        parser.add_argument(option, required=option != "--base")
    own = parser.parse_args()
    model, about, tokenizer = load(Path(own.export, own.adapter), own.base or f"{own.export}/base")
    prompt = tokenizer(about["prompt"].replace("{instruction}", own.prompt), return_tensors="pt")
    ends = {"max_new_tokens": about["max_new_tokens"], "eos_token_id": about["stop_ids"]}
    answer = model.generate(**prompt, **ends, do_sample=False)
    print(tokenizer.decode(answer[0, prompt.input_ids.shape[1] :], skip_special_tokens=True))
