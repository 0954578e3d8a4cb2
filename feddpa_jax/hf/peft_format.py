"""LoRA adapters as PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.

PEFT stores A as [R, in] and B as [out, R]; ours are [in, R] and [R, out]. A tensor's name is that
of the base's adapted map between "base_model.model." and ".lora_A.weight" or ".lora_B.weight".
Where that prefix is missing, `peft` loads nothing and says so in a warning alone.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import TARGETS, Adapter
from feddpa_jax.hf.peft_settings import (
    LoraSettings,
    adapted_module,
    module_names,
    read_settings,
)
from feddpa_jax.hf.tensors import opened, read_json, stored_shape, write_tensors
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.types import UserError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Beside them in an export: the run that the adapter is from, and its base's fingerprint.
_PREFIX = "base_model.model."
_PARTS = {"a": ".lora_A.weight", "b": ".lora_B.weight"}


class PeftAdapter(NamedTuple):
    """An adapter from a PEFT folder.

    Attributes:
      adapter: the factors, float32.
      rank: R, the largest of all targets'.
      alpha: LoRA alpha there, such that the scale is alpha / rank.
      base: what the folder says it was trained on; empty if it says nothing.
      scales: alpha / rank of every target.
    """

    adapter: Adapter
    rank: int
    alpha: float
    base: str
    scales: dict[str, float]

    @property
    def targets(self) -> tuple[str, ...]:
        """The adapted maps."""
        return tuple(self.adapter)


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder holds one adapter."""
    return (folder / CONFIG_FILE).is_file()


def _tensor_name(config: ModelConfig, target: str, layer: int, part: str) -> str:
    return f"{_PREFIX}{adapted_module(target, layer, config)}{_PARTS[part]}"


def write_adapter(
    folder: Path,
    adapter: Adapter,
    config: ModelConfig,
    *,
    alpha: float,
    dropout: float,
    base: str | None,
    private: bool = False,
) -> None:
    """Writes an adapter as `peft` does.

    Args:
      folder: made if need be.
      adapter: {target: {"a": [L, in, R], "b": [L, R, out]}}; R may differ by target.
      config: the base's.
      alpha: LoRA alpha at the largest R; all targets have its scale, alpha / R.
      dropout: of training, for those who train on.
      base: the hub id of the base; None if it is from elsewhere.
      private: whether the tensors are for their owner alone (mode 0600).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _tensor_name(config, target, layer, part): np.ascontiguousarray(
            np.asarray(stack_LXY[layer], np.float32).T
        )
        for target, pair in adapter.items()
        for part, stack_LXY in pair.items()
        for layer in range(config.layers)
    }
    write_tensors(folder / WEIGHTS_FILE, tensors, private=private)
    ranks = {target: pair["a"].shape[-1] for target, pair in adapter.items()}
    rank = max(ranks.values())
    smaller = {target: own for target, own in ranks.items() if own != rank}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": smaller,
        "alpha_pattern": {target: _plain(alpha * (own / rank)) for target, own in smaller.items()},
        "lora_dropout": dropout,
        "target_modules": list(adapter),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    if not smaller:
        settings = {n: value for n, value in settings.items() if not n.endswith("_pattern")}
    text = json.dumps(settings, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _plain(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha


def read_adapter(folder: Path, config: ModelConfig) -> PeftAdapter:
    """Reads a LoRA adapter that `peft` or `write_adapter` wrote.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      config: the base's.

    Raises:
      UserError: no adapter, a damaged one, one for another base, or one that does more than LoRA.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a PEFT folder with {CONFIG_FILE}")
    settings = read_settings(read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        reason = f"no {WEIGHTS_FILE}"
        if any(folder.glob("*.bin")):
            reason += " (a .bin file is a pickle, which is never read)"
        raise UserError(f"{folder}: {reason}; save the adapter as safetensors")
    with opened(file) as tensors:
        names = list(tensors.keys())
    places = {
        _tensor_name(config, target, layer, part): (target, part, layer)
        for target in TARGETS
        for layer in range(config.layers)
        for part in _PARTS
    }
    _check_names(names, places, settings, config, file)
    sizes, there = config.target_sizes(), {places[name][0] for name in names}
    own = {t: _of_target(t, settings, config, folder) for t in TARGETS if t in there}
    # All shapes before the first array: the rank is only what a file says.
    for name in names:
        target, part, _ = places[name]
        (size_in, size_out), (rank, _) = sizes[target], own[target]
        _check_shape(file, name, (rank, size_in) if part == "a" else (size_out, rank), rank)
    adapter = {
        target: _read_target(file, target, config, rank) for target, (rank, _) in own.items()
    }
    rank, alpha = max(own.values())
    scales = {target: alpha / rank for target, (rank, alpha) in own.items()}
    return PeftAdapter(adapter, rank, alpha, settings.base, scales)


def _of_target(
    target: str, settings: LoraSettings, config: ModelConfig, folder: Path
) -> tuple[int, float]:
    """The rank and alpha of a map, which all layers share."""
    found = {settings.of(adapted_module(target, layer, config)) for layer in range(config.layers)}
    if len(found) > 1:
        raise UserError(
            f"{folder / CONFIG_FILE}: gives {target} another rank or alpha in some layers, which "
            "is not supported; merge the adapter into its base, or train it again"
        )
    return found.pop()


def _read_target(file: Path, target: str, config: ModelConfig, rank: int) -> dict[str, jax.Array]:
    size_in, size_out = config.target_sizes()[target]
    stacks = {
        "a": np.empty((config.layers, size_in, rank), np.float32),
        "b": np.empty((config.layers, rank, size_out), np.float32),
    }
    for part, stack_LXY in stacks.items():
        for layer in range(config.layers):
            with opened(file) as tensors:
                tensor = tensors.get_tensor(_tensor_name(config, target, layer, part))
            stack_LXY[layer] = np.asarray(tensor, np.float32).T
        if not np.isfinite(stack_LXY).all():
            raise UserError(f"{file}: {target} holds values that are not finite")
    return {part: jnp.asarray(stack) for part, stack in stacks.items()}


def _check_names(
    names: Sequence[str],
    places: dict[str, tuple[str, str, int]],
    settings: LoraSettings,
    config: ModelConfig,
    file: Path,
) -> None:
    """Three distinct errors: a tensor of another model, an unknown one, a missing one."""
    for name in names:
        if name in places:
            continue
        layer = re.search(r"\.layers\.([0-9]{1,9})\.", name)
        if layer and int(layer[1]) >= config.layers:
            raise UserError(
                f"{file}: tensor {name!r} is for layer {layer[1]}, but this base has "
                f"{config.layers}: it was trained on another base"
            )
        raise UserError(
            f"{file}: unknown tensor {name!r}; it should look like {next(iter(places))!r}"
        )
    if not names:
        raise UserError(f"{file}: holds no tensor")
    targets = {places[name][0] for name in names}
    adapted = {adapted_module(places[name][0], places[name][2], config) for name in names}
    selected = {module for module in module_names(config) if settings.selects(module)}
    if selected - adapted:
        chosen = sorted({module.rpartition(".")[2] for module in selected})
        raise UserError(
            f"{file}: has tensors for {', '.join(sorted(targets))}, but none for "
            f"{min(selected - adapted)!r}, which the target_modules of {CONFIG_FILE} select (they "
            f"select {', '.join(chosen)}); get both files of one adapter"
        )
    if adapted - selected:
        raise UserError(
            f"{file}: has tensors for {min(adapted - selected)!r}, which target_modules, "
            f"exclude_modules and layers_to_transform of {CONFIG_FILE} leave out, so that peft "
            "ignores them; get both files of one adapter"
        )
    present = set(names)
    missing = [name for name, (t, *_) in places.items() if t in targets and name not in present]
    if missing:
        raise UserError(
            f"{file}: no tensor {missing[0]!r} ({len(missing)} missing in all); an adapter is "
            "needed on every layer: merge this one into its base, or train it again"
        )


def _check_shape(file: Path, name: str, expected: tuple[int, ...], rank: int) -> None:
    found = stored_shape(file, name)
    if found != expected:
        of_rank = rank not in found
        reason = f"{CONFIG_FILE} says r = {rank}" if of_rank else "it was trained on another base"
        raise UserError(
            f"{file}: tensor {name!r} has shape {list(found)}, not {list(expected)}: {reason}"
        )
