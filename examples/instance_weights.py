"""Answers a prompt from an export of feddpa_jax, with `transformers` and `peft` alone.

The client's instance-wise mix, as `feddpa generate` makes it: embed the prompt, compare it with the
client's support, scale the two adapters, generate.

    pip install torch transformers peft
    python examples/instance_weights.py --export exports/a --client client_0 --prompt "Say hello."
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


def main() -> None:
    """Reads the arguments and prints the weights and the answer."""
    parser = argparse.ArgumentParser(description="Answers a prompt from an export.")
    parser.add_argument("--export", type=Path, required=True, help="folder of `feddpa export`")
    parser.add_argument("--base", help="folder or hub id of the base, where the export has none")
    parser.add_argument("--client", required=True, help="whose adapters answer")
    parser.add_argument("--prompt", required=True, help="the instruction")
    parser.add_argument("--input", default="", help="its context, if any")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    folder = arguments.export / "clients" / arguments.client
    settings = json.loads((folder / "weighting.json").read_text(encoding="utf-8"))
    support_MD = load_file(folder / "weighting.safetensors")["support"]

    dtype = getattr(torch, arguments.dtype)
    model, tokenizer = load(arguments.export, folder, arguments.base, dtype)
    text = settings["prompt_with_input" if arguments.input else "prompt"]
    text = text.replace("{instruction}", arguments.prompt).replace("{input}", arguments.input)
    tokens_1T = encode(tokenizer, text)

    mixed = settings.get("embed_weight", 0.5)
    mixes = {"base": (0.0, 0.0), "global": (1.0, 0.0), "local": (0.0, 1.0)}
    mixes["mixed"] = (1.0 - mixed, mixed)
    mix(model, *mixes[settings["embed_with"]])
    query_D = embed(model, tokens_1T, settings["pooling"], settings["layer"])
    score = similarity(settings["rule"], query_D, support_MD)
    scaled = min(max(settings["scale"] * score, 0.0), 1.0)
    l = scaled if settings["scales"] == "local" else 1.0 - scaled
    g = 1.0 - l
    weights = f"global weight {g:.4f}, local weight {l:.4f}, similarity {score:.4f}"
    print(f"{arguments.client}, instance: {weights}")

    mix(model, g, l)
    with torch.no_grad():
        answer = model.generate(
            input_ids=tokens_1T,
            attention_mask=torch.ones_like(tokens_1T),
            max_new_tokens=settings["max_new_tokens"],
            num_beams=settings["beams"],
            eos_token_id=settings["stop_ids"],
            do_sample=False,
        )
    # Some tokenizers take the first space off what they decode; the prompt's is not the answer's.
    whole, prompt = (
        tokenizer.decode(tokens_T, skip_special_tokens=True)
        for tokens_T in (answer[0], tokens_1T[0])
    )
    print(whole[len(prompt) :])


def load(export: Path, folder: Path, base: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """The base with the global and the client's local adapter on it, and its tokenizer."""
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    # A base that comes with the export lies in it; one from the hub is named.
    if base is None and (export / "base" / "config.json").is_file():
        base = str(export / "base")
    base = base or adapter["base_model_name_or_path"]
    if base is None:
        raise SystemExit("--base: name the folder of the model that the README.md there names")
    frozen = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model: Any = PeftModel.from_pretrained(frozen, str(folder), adapter_name="local")
    # Some methods have a shared adapter for each client, and some none: the base stands for it.
    own = folder.with_name(f"{folder.name}-shared")
    shared = own if own.is_dir() else export / "global"
    if shared.is_dir():
        model.load_adapter(str(shared), adapter_name="global")
        model.base_model.set_adapter(["global", "local"])
    return model.eval(), AutoTokenizer.from_pretrained(base)


def encode(tokenizer: Any, text: str) -> torch.Tensor:
    """A prompt's ids, [1, T]; without the token that some tokenizers end every text with."""
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids = list(encoded.input_ids)
    while encoded.special_tokens_mask[len(ids) - 1]:
        ids.pop()
    return torch.tensor([ids])


def mix(model: Any, g: float, l: float) -> None:
    """Sets the weights of the two adapters: g global, l local."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("global", g)
            layer.set_scale("local", l)


def embed(model: Any, tokens_1T: torch.Tensor, pooling: str, layer: int | None) -> torch.Tensor:
    """The prompt's embedding: the hidden state at its last token, or the mean, after a layer."""
    with torch.no_grad():
        states = (
            model.get_base_model()
            .model(input_ids=tokens_1T, output_hidden_states=True)
            .hidden_states
        )
    hidden_TD = states[-1 if layer is None else layer][0].float()
    return hidden_TD[-1] if pooling == "last" else hidden_TD.mean(dim=0)


def similarity(rule: str, query_D: torch.Tensor, support_MD: torch.Tensor) -> float:
    """How much an instance resembles the client's data, by one of the built-in rules."""
    if rule == "constant":
        return 1.0
    if rule == "l2":
        distance_M = (support_MD - query_D).square().mean(dim=-1).sqrt()
        return (1.0 / (1.0 + distance_M)).mean().item()
    if rule == "pearson":
        query_D = query_D - query_D.mean()
        support_MD = support_MD - support_MD.mean(dim=-1, keepdim=True)
    elif rule != "cosine":
        raise SystemExit(f"weighting.json: the rule {rule!r} is not one of this script's")
    return torch.cosine_similarity(support_MD, query_D[None], dim=-1).mean().item()


if __name__ == "__main__":
    main()
