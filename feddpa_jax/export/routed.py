"""Routed adapters on disk: their experts as PEFT folders, and the router beside them.

PEFT cannot express a router on a map's own input. `router.safetensors` holds its weights, a tensor
for each adapted module by the module's name in `transformers`, [S, D], and its bias if it has one,
NAME.bias, [S]; `router.json` says which
kind it is (`adapters/router.py`) and which folders are its experts, in their order.
`examples/routed_adapter.py` applies them with `transformers` and `peft` alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.adapters.router import ROUTERS, present, router_of
from feddpa_jax.files.escape import json_text
from feddpa_jax.hf.peft_settings import adapted_module
from feddpa_jax.hf.tensors import opened, read_json, write_tensors
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.types import UserError

ROUTER_FILE, ROUTER_SETTINGS = "router.safetensors", "router.json"


class Router(NamedTuple):
    """What shares out an adapter's experts, at every adapted map.

    Attributes:
      kind: of `ROUTERS`.
      weights: {target: [L, D, S]}.
      biases: {target: [L, S]}; none where they are zero.
    """

    kind: str
    weights: dict[str, np.ndarray]
    biases: dict[str, np.ndarray]


class RoutedOut(NamedTuple):
    """A routed adapter's router; its experts are adapters of their own.

    Attributes:
      router: which it is.
      experts: the names of the experts' folders below its own, in their order.
      client: whose it is; None if all clients share it.
      mode: the inference mode that answers with it.
    """

    router: Router
    experts: tuple[str, ...]
    client: str | None
    mode: str

    @property
    def private(self) -> bool:
        """Whether it holds what a client learned alone."""
        return self.client is not None


def is_routed(adapter: Mapping[str, Any] | None) -> bool:
    """Whether an adapter has a router."""
    return adapter is not None and any(router_of(leaves) for leaves in adapter.values())


def split_experts(adapter: Adapter) -> tuple[Router, list[Adapter]]:
    """A routed adapter's router and its experts; those that no slot leads to are left out.

    Args:
      adapter: {target: {"a": [L, D, R], "b": [L, R, E], kind: [L, D, S]}}, and "bias" [L, S].

    Raises:
      UserError: not all targets are routed, and in the same way.
    """
    kinds = {router_of(leaves) for leaves in adapter.values()}
    kind = kinds.pop()
    if kind is None or kinds:
        raise UserError("export: some adapted maps are routed and others are not, or otherwise")
    slots_S, experts_K = _present(kind, adapter)
    weights, biases = {}, {}
    for target, leaves in adapter.items():
        weights[target] = np.asarray(leaves[kind], np.float32)[..., slots_S]
        bias_LS = np.asarray(leaves.get("bias", np.zeros(1)), np.float32)
        if "bias" in leaves and bias_LS[:, slots_S].any():
            biases[target] = bias_LS[:, slots_S]
    experts: list[Adapter] = []
    for k in np.flatnonzero(experts_K).tolist():
        expert = {}
        for target, leaves in adapter.items():
            rank = leaves["a"].shape[-1] // len(experts_K)
            own = slice(k * rank, (k + 1) * rank)
            expert[target] = {"a": leaves["a"][..., own], "b": leaves["b"][:, own]}
        experts.append(expert)
    return Router(kind, weights, biases), experts


def _present(kind: str, adapter: Adapter) -> tuple[np.ndarray, np.ndarray]:
    """The slots that there are at any map, and the experts that they lead to."""
    first = next(iter(adapter.values()))[kind]
    slots = first.shape[-1]
    logits = jax.ShapeDtypeStruct((1, 1, slots), jnp.float32)
    count = jax.eval_shape(ROUTERS[kind], logits).shape[-1]
    biases = [np.asarray(own["bias"]) for own in adapter.values() if "bias" in own]
    if not biases or any(not np.array_equal(one, biases[0]) for one in biases):
        return np.ones(slots, bool), np.ones(count, bool)
    if (biases[0] != biases[0][0]).any():
        return np.ones(slots, bool), np.ones(count, bool)
    return present(kind, biases[0][0])


def write_router(
    folder: Path, out: RoutedOut, config: ModelConfig, settings: Mapping[str, Any]
) -> None:
    """Writes a router into its folder.

    Args:
      folder: there already, with the experts' folders.
      out: the router.
      config: the base's.
      settings: what else `router.json` says, for who applies it.
    """
    write_tensors(folder / ROUTER_FILE, _tensors(out, config), private=out.private)
    about = {**_about(out), **settings}
    (folder / ROUTER_SETTINGS).write_text(json_text(about, indent=2) + "\n", encoding="utf-8")


def check_router(folder: Path, out: RoutedOut, config: ModelConfig) -> None:
    """Compares a router's files with what they should hold.

    Raises:
      UserError: the first difference, with its file.
    """
    found = read_json(folder / ROUTER_SETTINGS)
    for name, value in json.loads(json.dumps(_about(out))).items():
        if found.get(name) != value:
            raise UserError(
                f"{folder / ROUTER_SETTINGS}: {name} is {json.dumps(found.get(name))}, the run's "
                f"is {json.dumps(value)}; export again"
            )
    file, wanted = folder / ROUTER_FILE, _tensors(out, config)
    with opened(file) as tensors:
        names = set(tensors.keys())
        for name in sorted(names ^ wanted.keys()):
            what = "unknown" if name in names else "no"
            raise UserError(f"{file}: {what} tensor {name!r}; export again")
        for name, array in wanted.items():
            if tensors.get_tensor(name).tobytes() != array.tobytes():
                raise UserError(f"{file}: {name} differs from the run's; export again")


def _about(out: RoutedOut) -> dict[str, Any]:
    return {"kind": out.router.kind, "experts": list(out.experts)}


def _tensors(out: RoutedOut, config: ModelConfig) -> dict[str, np.ndarray]:
    found = {}
    for suffix, by_target in (("", out.router.weights), (".bias", out.router.biases)):
        for target, leaf_L in by_target.items():
            for layer in range(config.layers):
                name = adapted_module(target, layer, config) + suffix
                found[name] = np.ascontiguousarray(leaf_L[layer].T)
    return found
