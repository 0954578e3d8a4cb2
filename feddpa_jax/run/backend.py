"""Which attention a run trains with, from its configuration and the devices at hand."""

from jax.sharding import Mesh

from feddpa_jax.config import Config
from feddpa_jax.devices.mesh import MODEL
from feddpa_jax.models.attention import LANES, Backend, backend_for
from feddpa_jax.models.decoder import Model
from feddpa_jax.types import UserError


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
