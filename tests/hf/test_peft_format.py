"""PEFT folders that must not be read: the reason on one line."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.hf.peft_format import read_adapter, write_adapter
from feddpa_jax.testing import tiny_config
from feddpa_jax.types import UserError

CONFIG = tiny_config()
KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {target: CONFIG.target_sizes()[target] for target in ("q_proj", "up_proj")}
    adapter = init_adapter(jax.random.key(0), sizes, layers=CONFIG.layers, rank=2)
    write_adapter(tmp_path / "a", adapter, CONFIG, alpha=4.5, dropout=0.0, base="some/base")
    return tmp_path / "a"


def test_names_and_layouts(folder: Path):
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * CONFIG.layers
    assert tensors[KEY].shape == (2, 32) and tensors[KEY].dtype == np.float32
    up = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    assert tensors[up].shape == (64, 2) and not tensors[up].any()
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["lora_alpha"] == 4.5 and settings["target_modules"] == ["q_proj", "up_proj"]


def test_every_layers_factors_are_turned_and_come_back(tmp_path: Path):
    """A is stored [R, in], B [out, R], each layer's own; read back they are what they were."""
    sizes = CONFIG.target_sizes()["up_proj"]
    draw = np.random.default_rng(0)
    a_LDR = draw.normal(size=(CONFIG.layers, sizes[0], 2)).astype(np.float32)
    b_LRE = draw.normal(size=(CONFIG.layers, 2, sizes[1])).astype(np.float32)
    adapter = {"up_proj": {"a": a_LDR, "b": b_LRE}}
    write_adapter(tmp_path / "b", adapter, CONFIG, alpha=5, dropout=0.25, base="x")  # type: ignore[arg-type]
    found = load_file(tmp_path / "b" / "adapter_model.safetensors")
    for layer in range(CONFIG.layers):
        name = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        np.testing.assert_array_equal(found[f"{name}.lora_A.weight"], a_LDR[layer].T)
        np.testing.assert_array_equal(found[f"{name}.lora_B.weight"], b_LRE[layer].T)
    again = read_adapter(tmp_path / "b", CONFIG)
    assert (again.rank, again.alpha, again.base, again.targets) == (2, 5.0, "x", ("up_proj",))
    np.testing.assert_array_equal(again.adapter["up_proj"]["a"], a_LDR)
    np.testing.assert_array_equal(again.adapter["up_proj"]["b"], b_LRE)
    stored = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"], stored["lora_dropout"]) == (2, 5, 0.25)


def test_a_rank_stabilized_alpha(folder: Path):
    """Its scale is 4.5 / sqrt(2), as that of alpha 4.5 sqrt(2) over rank 2."""
    assert read_adapter(folder, CONFIG).alpha == 4.5
    settings(use_rslora=True)(folder)
    assert read_adapter(folder, CONFIG).alpha == pytest.approx(4.5 * 2**0.5)


def settings(**values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], Any]:
    def changed(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        found = load_file(file)
        change(found)
        save_file(found, file)

    return changed


def as_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def other_layer(found: dict[str, np.ndarray]) -> None:
    found[KEY.replace("layers.1", "layers.9")] = found.pop(KEY)


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "kind": (
        settings(peft_type="IA3"),
        'peft_type is "IA3", which is not supported; only LORA is read',
    ),
    "dora": (settings(use_dora=True), "use_dora is true, which is not supported; merge it"),
    "bias": (settings(bias="all"), 'bias is "all", which is not supported'),
    "pattern": (
        settings(rank_pattern={"q_proj": 4}),
        r"q_proj.lora_A.weight' has shape \[2, 32\], not \[4, 32\]: .* says r = 4",
    ),
    "alphas": (
        settings(alpha_pattern={"model.layers.1.*q_proj": 9}),
        "gives q_proj another rank or alpha in some layers, which is not supported; merge",
    ),
    "saved": (settings(modules_to_save=["lm_head"]), "modules_to_save is"),
    "rank": (settings(r="8"), 'r is "8", which is not supported; it must be a positive integer'),
    "no_alpha": (
        settings(lora_alpha=None),
        "lora_alpha is null, .*; it must be a positive number",
    ),
    "other_rank": (
        settings(r=3),
        r"has shape \[2, 32\], not \[3, 32\]: adapter_config.json says r",
    ),
    "targets": (
        settings(target_modules=["q_proj"]),
        "has tensors for 'model.layers.0.mlp.up_proj', which target_modules, exclude_modules and",
    ),
    "more_targets": (
        settings(target_modules=["q_proj", "up_proj", "v_proj"]),
        "has tensors for q_proj, up_proj, but none for 'model.layers.0.self_attn.v_proj', .* "
        r"\(they select q_proj, up_proj, v_proj\)",
    ),
    "pickle": (as_pickle, r"no adapter_model.safetensors \(a .bin file is a pickle.*safetensors"),
    "empty": (tensors(dict.clear), "holds no tensor"),
    "layer": (tensors(other_layer), "is for layer 9, but this base has 2: .* another base"),
    "missing": (
        tensors(lambda found: found.pop(KEY)),
        r"no tensor .*layers.1.*\(1 missing .*: merge this one",
    ),
    "width": (
        tensors(lambda found: found.update({KEY: np.zeros((2, 48), np.float32)})),
        r"has shape \[2, 48\], not \[2, 32\]: it was trained on another base",
    ),
    "dtype": (
        tensors(lambda found: found.update({KEY: np.zeros((2, 32), np.int32)})),
        "dtype I32; supported: F32, BF16, F16",
    ),
    "infinite": (
        tensors(lambda found: found.update({KEY: np.full((2, 32), np.inf, np.float32)})),
        "q_proj holds values that are not finite",
    ),
    "json": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        "line 1: broken JSON",
    ),
    "no_config": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "no adapter_config.json",
    ),
    "cut": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x10"),
        "damaged or cut short",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(folder: Path, name: str):
    change, message = CASES[name]
    assert read_adapter(folder, CONFIG).rank == 2
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_adapter(folder, CONFIG)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder; name a PEFT folder"):
        read_adapter(tmp_path / "none", CONFIG)


def test_a_rank_is_compared_before_memory_is_taken(folder: Path):
    settings(r=2**31 - 1)(folder)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"has shape .*: adapter_config.json says r = 21"):
            read_adapter(folder, CONFIG)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    settings(r=10**12)(folder)
    with pytest.raises(UserError, match="r is 1000000000000, which is not supported"):
        read_adapter(folder, CONFIG)
