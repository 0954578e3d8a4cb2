"""What may be changed in an export, and what is said of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file


def change_tensors(file: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def scale_one(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name in tensors if "layers.1" in name and "lora_B" in name)
    tensors[name] = tensors[name] * np.float32(1.001)


def rename_one(tensors: dict[str, np.ndarray]) -> None:
    name = sorted(tensors)[3]
    tensors[name.replace("base_model.model.", "base_model.")] = tensors.pop(name)


def scale_first(tensors: dict[str, np.ndarray]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = np.asarray(tensors[name] * 1.001, tensors[name].dtype)


def transpose_one(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name in tensors if "v_proj.lora_A" in name)
    tensors[name] = np.ascontiguousarray(tensors[name].T)


TAMPERINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "scaled": (
        lambda out: change_tensors(out / "clients/client_4/adapter_model.safetensors", scale_one),
        r"client_4: lora_B of \w+ differs from the run's \(by up to",
    ),
    "renamed": (
        lambda out: change_tensors(out / "global/adapter_model.safetensors", rename_one),
        "unknown tensor 'base_model.model.layers",
    ),
    "transposed": (
        lambda out: change_tensors(out / "global/adapter_model.safetensors", transpose_one),
        r"v_proj.lora_A.weight' has shape \[32, 2\], not \[2, 32\]",
    ),
    "alpha": (
        lambda out: change_json(out / "clients/client_4-mixed/adapter_config.json", lora_alpha=63),
        "lora_alpha is 63.0, the run's is 64.0",
    ),
    "rank": (
        lambda out: change_json(out / "global/adapter_config.json", r=4),
        "adapter_config.json says r = 4",
    ),
    "base_name": (
        lambda out: change_json(
            out / "global/adapter_config.json", base_model_name_or_path="other"
        ),
        'base_model_name_or_path is "other"',
    ),
    "targets": (
        lambda out: change_json(out / "global/adapter_config.json", target_modules=["q_proj"]),
        "has tensors for 'model.layers.0.mlp.down_proj', which target_modules",
    ),
    "merged": (
        lambda out: change_tensors(out / "merged/model.safetensors", scale_first),
        "merged: .* differs from the run's",
    ),
    "merged_config": (
        lambda out: change_json(out / "merged/config.json", rms_norm_eps=1e-3),
        "config.json: describes another model",
    ),
    "base": (
        lambda out: change_tensors(out / "base/model.safetensors", scale_first),
        "base: .* differs from the run's",
    ),
    "weighting": (
        lambda out: change_json(out / "clients/client_4/weighting.json", scale=0.6),
        r"the weighting's \['scale'\] differ",
    ),
    "support": (
        lambda out: change_tensors(
            out / "clients/client_4/weighting.safetensors",
            lambda tensors: tensors.update(support=tensors["support"] * np.float32(1.1)),
        ),
        "support embeddings differ",
    ),
    "missing": (
        lambda out: (out / "clients/client_4/adapter_model.safetensors").unlink(),
        "client_4: no adapter_model.safetensors",
    ),
    "cut": (
        lambda out: os.truncate(out / "global/adapter_model.safetensors", 900),
        "damaged or cut short",
    ),
    "tokenizer": (
        lambda out: flip(out / "base/tokenizer.json"),
        "base/tokenizer.json: has changed since it was written; export again,",
    ),
    "generation": (
        lambda out: (out / "merged/generation_config.json").unlink(),
        "merged/generation_config.json: is missing; export again,",
    ),
    "record_of_an_adapter": (
        lambda out: change_json(out / "clients/client_4/feddpa.json", base={}),
        "client_4/feddpa.json: has changed since it was written; export again,",
    ),
    "files": (lambda out: change_json(out / "feddpa.json", files=[]), "its files are damaged"),
    "options": (lambda out: change_json(out / "feddpa.json", options=5), "options are damaged"),
    "another_run": (
        lambda out: change_json(out / "feddpa.json", seed=3),
        "seed is 3, the run's is 0",
    ),
}


def flip(file: Path) -> None:
    """Changes a bit in the middle of a tokenizer: another token's text."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * 0.3)] ^= 1
    file.write_bytes(content)
