"""How a run trains its base, from its configuration and the devices at hand."""

import dataclasses

from jax.sharding import Mesh

from feddpa_jax.config import Config
from feddpa_jax.devices.hardware import chip_of
from feddpa_jax.devices.mesh import MODEL, put_base
from feddpa_jax.models.attention import LANES, Backend, backend_for
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.layer_stack import stacked
from feddpa_jax.training.memory import held_bytes
from feddpa_jax.types import UserError

# Bytes that a loop's layer moves for each that it would hold one by one, forward and backward; by
# the TPU compiler's count of Llama-2-7B's (BENCHMARKS.md, plans for TPU v5p).
_MOVED = 14


def base_on(mesh: Mesh, config: Config, model: Model) -> Model:
    """The base as a run trains it: on the mesh, with its attention, in a loop where that serves.

    Args:
      mesh: the devices.
      config: the configuration.
      model: the base, or its shapes.

    Raises:
      UserError: `model.attention` asks for a kernel that the devices do not have.
    """
    attention = attention_on(mesh, config, model)
    params = stacked(model.params, model.config) if loops(mesh, config, model) else model.params
    params = put_base(params, mesh, config.mesh.base)
    return dataclasses.replace(model, params=params, attention=attention)


def loops(mesh: Mesh, config: Config, model: Model) -> bool:
    """Whether training runs layers of one kind in a loop.

    A loop is compiled once for all its layers. It moves more bytes than layers one by one, which
    takes no time where a layer's products take longer: in wide models.

    Args: as of `base_on`.
    """
    device = mesh.devices.flat[0]
    chip, sizes = chip_of(device), model.config
    if config.model.layers != "auto" or device.platform != "tpu" or chip is None:
        return config.model.layers == "looped"
    moved = _MOVED * held_bytes(sizes, "none", "bfloat16")
    return sizes.frozen_flops / sizes.layers / chip.flops > moved / chip.bandwidth


def attention_on(mesh: Mesh, config: Config, model: Model) -> Backend:
    """How a mesh's devices compute attention in training.

    Args:
      mesh: the devices.
      config: the configuration.
      model: the base.

    Raises:
      UserError: `model.attention` asks for a kernel that they do not have.
    """
    asked, device = config.model.attention, mesh.devices.flat[0]
    capability = getattr(device, "compute_capability", None)
    suited = backend_for(
        *(device.platform, model.dtype, model.config.head_dim),
        capability=capability,
        split=mesh.shape[MODEL] > 1,
    )
    if asked == "auto":
        # Heads that do not fill a TPU's lanes are padded, which costs more than the scores do
        # (BENCHMARKS.md, plans for TPU v5p).
        padded = suited == "splash" and model.config.head_dim % LANES > 0
        return "explicit" if padded else suited
    if asked not in ("explicit", suited):
        raise UserError(
            f"model.attention: {asked} does not serve {device.platform} devices"
            f"{f' of compute capability {capability}' if capability else ''} in {model.dtype} with "
            f"mesh.model {mesh.shape[MODEL]} and heads of {model.config.head_dim}; use auto or "
            "explicit"
        )
    return asked
