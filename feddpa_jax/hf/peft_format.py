"""LoRA adapters as PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.

PEFT stores A as [R, in] and B as [out, R]; ours are [in, R] and [R, out]. A tensor's name is that
of the base's adapted map between "base_model.model." and ".lora_A.weight" or ".lora_B.weight".
Where that prefix is missing, `peft` loads nothing and says so in a warning alone.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import TARGETS, Adapter, kernel_path
from feddpa_jax.hf.names import TABLES, file_name
from feddpa_jax.hf.tensors import opened, read_json, stored_shape
from feddpa_jax.models.config import ModelConfig
from feddpa_jax.types import UserError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = {"a": ".lora_A.weight", "b": ".lora_B.weight"}
# Settings that change what an adapter computes, and the values under which they do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "trainable_token_indices": ([], {}, None),
    "layer_replication": ([], None),
    "target_parameters": ([], None),
    "alora_invocation_tokens": ([], None),
    "use_qalora": (False, None),
}


class PeftAdapter(NamedTuple):
    """An adapter from a PEFT folder.

    Attributes:
      adapter: the factors, float32.
      rank: R.
      alpha: LoRA alpha, such that the scale is alpha / rank.
      base: what the folder says it was trained on; empty if it says nothing.
    """

    adapter: Adapter
    rank: int
    alpha: float
    base: str

    @property
    def targets(self) -> tuple[str, ...]:
        """The adapted maps."""
        return tuple(self.adapter)


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder holds one adapter."""
    return (folder / CONFIG_FILE).is_file()


def _tensor_name(config: ModelConfig, target: str, layer: int, part: str) -> str:
    name, _ = file_name(kernel_path(target, layer), TABLES[config.family])
    return f"{_PREFIX}{name.removesuffix('.weight')}{_PARTS[part]}"


def write_adapter(
    folder: Path, adapter: Adapter, config: ModelConfig, *, alpha: float, dropout: float, base: str
) -> None:
    """Writes an adapter as `peft` does.

    Args:
      folder: made if need be.
      adapter: {target: {"a": [L, in, R], "b": [L, R, out]}}.
      config: the base's.
      alpha: LoRA alpha; the scale is alpha / R.
      dropout: of training, for those who train on.
      base: what `transformers` loads the base from.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _tensor_name(config, target, layer, part): np.ascontiguousarray(
            np.asarray(stack_LXY[layer], np.float32).T
        )
        for target, pair in adapter.items()
        for part, stack_LXY in pair.items()
        for layer in range(config.layers)
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": next(iter(adapter.values()))["a"].shape[-1],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
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
    text = json.dumps(settings, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


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
    settings = read_json(folder / CONFIG_FILE)
    rank, alpha = _check_settings(settings, str(folder / CONFIG_FILE))
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
    _check_names(names, places, settings.get("target_modules"), config, file)
    found = {places[name][0] for name in names}
    sizes = config.target_sizes()
    adapter: Adapter = {}
    for target in (target for target in TARGETS if target in found):
        size_in, size_out = sizes[target]
        stacks = {
            "a": np.empty((config.layers, size_in, rank), np.float32),
            "b": np.empty((config.layers, rank, size_out), np.float32),
        }
        for part, stack_LXY in stacks.items():
            for layer in range(config.layers):
                name = _tensor_name(config, target, layer, part)
                _check_shape(file, name, stack_LXY.shape[:0:-1], rank)
                with opened(file) as tensors:
                    stack_LXY[layer] = np.asarray(tensors.get_tensor(name), np.float32).T
            if not np.isfinite(stack_LXY).all():
                raise UserError(f"{file}: {target} holds values that are not finite")
        adapter[target] = {part: jnp.asarray(stack) for part, stack in stacks.items()}
    base = settings.get("base_model_name_or_path")
    return PeftAdapter(adapter, rank, alpha, base if isinstance(base, str) else "")


def _check_settings(settings: dict[str, Any], source: str) -> tuple[int, float]:
    """Rank and alpha; refuses what is more than LoRA."""
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{source}: peft_type is {settings.get('peft_type')!r}; only LORA is read")
    for name, plain in _PLAIN.items():
        if name in settings and settings[name] not in plain:
            raise UserError(
                f"{source}: {name} is {settings[name]!r}, which is not supported; "
                f"train the adapter with {name} = {plain[0]!r}"
            )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{source}: r is {rank!r}, not a positive integer")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not alpha > 0:
        raise UserError(f"{source}: lora_alpha is {alpha!r}, not a positive number")
    # rsLoRA's scale is alpha / sqrt(rank).
    return rank, float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)


def _check_names(
    names: Sequence[str],
    places: dict[str, tuple[str, str, int]],
    listed: Any,
    config: ModelConfig,
    file: Path,
) -> None:
    """Three distinct errors: a tensor of another model, an unknown one, a missing one."""
    for name in names:
        if name in places:
            continue
        layer = re.search(r"\.layers\.(\d+)\.", name)
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
    if isinstance(listed, list):
        leaves = {str(module).rpartition(".")[2] for module in listed}
        if leaves != targets:
            raise UserError(
                f"{file}: has tensors for {', '.join(sorted(targets))}, but {CONFIG_FILE} lists "
                f"{', '.join(sorted(leaves))} as target_modules"
            )
    missing = [name for name, (t, *_) in places.items() if t in targets and name not in set(names)]
    if missing:
        raise UserError(
            f"{file}: no tensor {missing[0]!r} ({len(missing)} missing in all); an adapter is "
            "needed on every layer"
        )


def _check_shape(file: Path, name: str, expected: tuple[int, ...], rank: int) -> None:
    found = stored_shape(file, name)
    if found != expected:
        of_rank = rank not in found
        reason = f"{CONFIG_FILE} says r = {rank}" if of_rank else "it was trained on another base"
        raise UserError(
            f"{file}: tensor {name!r} has shape {list(found)}, not {list(expected)}: {reason}"
        )
