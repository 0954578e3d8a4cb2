"""The device mesh: clients spread over one axis, the frozen base over the other.

Mesh axes are `clients` and `model`. Everything that belongs to clients (adapters, optimizer state,
rows) starts with an axis that is split over `clients`; nothing crosses that axis but the average.
The base is whole on every device, or split over `model`:

- "tensor": each layer's first maps by output, its last maps by input, embedding and head by
  vocabulary (Shoeybi et al., *Megatron-LM*, arXiv 1909.08053); activations are summed.
- "full": every parameter by its largest axis; a layer is gathered where it is used, and the rows of
  a block are split over `model` (Zhao et al., *PyTorch FSDP*, arXiv 2304.11277).
"""

import functools
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from feddpa_jax.types import UserError

CLIENTS, MODEL = "clients", "model"

_BY_OUTPUT = re.compile(
    r".*\.(q_proj|k_proj|v_proj|gate_proj|up_proj)\.(kernel|bias)|lm_head\.kernel"
)
_BY_INPUT = re.compile(r".*\.(o_proj|down_proj)\.kernel|embed\.embedding")


def make_mesh(clients: int | None = None, model: int = 1, devices: Any = None) -> Mesh:
    """The mesh of `clients` x `model` devices.

    Args:
      clients: size of the axis `clients`; None for all devices that are left.
      model: size of the axis `model`.
      devices: all there are if None.

    Raises:
      UserError: there are fewer devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if clients is None:
        clients = max(1, len(devices) // model)
    if clients * model > len(devices):
        raise UserError(
            f"mesh: {clients} x {model} devices (mesh.clients x mesh.model) are asked for, and "
            f"there are {len(devices)}; lower one of them"
        )
    grid = np.array(devices[: clients * model]).reshape(clients, model)
    without = {device.process_index for device in devices[clients * model :]} - {
        device.process_index for device in grid.flat
    }
    if without:
        raise UserError(
            f"mesh: {clients} x {model} devices (mesh.clients x mesh.model) leave process "
            f"{min(without)} without any; use all {len(devices)}, or fewer processes"
        )
    return Mesh(grid, (CLIENTS, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def single_mesh() -> Mesh:
    """A mesh of one device."""
    return make_mesh(1, 1)


def put(tree: Any, mesh: Mesh, *spec: str | None) -> Any:
    """Host arrays on the mesh, split as `spec` says; also where it spans several processes."""
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that a base's parameters lie on, if it splits clients over devices of this process.

    Args:
      params: as of `put_base`.
    """
    sharding = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.is_fully_addressable:
        return None
    mesh = sharding.mesh
    return mesh if isinstance(mesh, Mesh) and mesh.shape.get(CLIENTS, 1) > 1 else None


def shards_of(mesh: Mesh | None) -> int:
    """How many devices share out the rows of all clients; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape[CLIENTS]


def gather(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the mesh as host arrays, on every process."""
    if jax.process_count() > 1:
        tree = _replicate(mesh)(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree)
    return jax.device_get(tree)


@functools.cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def base_spec(path: str, shape: tuple[int, ...], mode: str, size: int) -> PartitionSpec:
    """How a parameter of the base is split over `model`; axes that do not divide stay whole.

    The arrays of a quantized map have its groups of inputs first and its outputs last.

    >>> list(base_spec("layers.0.mlp.down_proj.kernel", (64, 32), "tensor", 4))
    ['model']
    """
    axis = None
    if mode == "tensor":
        if _BY_OUTPUT.fullmatch(path):
            axis = len(shape) - 1
        elif _BY_INPUT.fullmatch(path):
            axis = 0
    elif mode == "full":
        axis = int(np.argmax(shape))
    if axis is None or size == 1 or shape[axis] % size:
        return PartitionSpec()
    return PartitionSpec(*[None] * axis, MODEL)


def put_base(params: dict[str, Any], mesh: Mesh, mode: str) -> dict[str, Any]:
    """The base's parameters on the mesh; of shapes alone, how they would lie there."""

    def one(path: Any, leaf: Any) -> Any:
        # What a quantized map is held in is split like the map.
        dotted = ".".join(str(part.key) for part in path if isinstance(part, DictKey))
        # A stack's leaves start with its rounds, which every device has.
        rounds = 1 if dotted.startswith("stack.") else 0
        own = base_spec(dotted, leaf.shape[rounds:], mode, mesh.shape[MODEL])
        spec = PartitionSpec(*[None] * rounds, *own) if own else own
        if isinstance(leaf, jax.ShapeDtypeStruct):
            sharding = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return put(leaf, mesh, *spec)

    return jax.tree_util.tree_map_with_path(one, params)
