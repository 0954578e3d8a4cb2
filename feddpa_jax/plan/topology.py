"""TPU slices that this machine does not have, for the compiler alone."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feddpa_jax.types import UserError


def prepare_environment() -> None:
    """Lets the TPU compiler run where there is no TPU; before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Another program that has loaded the library would otherwise shut this one out.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    _answer_for_the_machine()


def quiet_compiler() -> None:
    """Silences the TPU compiler's warnings where it is installed without a TPU."""
    if not any(Path("/dev").glob("accel*")) and not Path("/dev/vfio").is_dir():
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        _answer_for_the_machine()


def _answer_for_the_machine() -> None:
    """What the library would ask the machine's metadata server for, and print a trace about."""
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of a slice.

    Args:
      name: its generation and shape, such as "v5e:2x4" or "v5p:4x4x4".

    Raises:
      UserError: the compiler is not installed, or there is no such slice.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    if not name.strip():  # The compiler would take one of its own choice.
        raise UserError("topology: is empty; write GENERATION:SHAPE, as in v5e:2x4")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if "libtpu" in reason.lower() and "lockfile" not in reason:
            raise UserError(
                "topology: the TPU compiler is not installed; pip install 'feddpa_jax[tpu-plan]'"
            ) from None
        raise UserError(
            f"topology: {name!r} is no slice that the compiler knows ({reason}); write "
            "GENERATION:SHAPE, as in v5e:2x4, v5p:4x4x4 or v6e:4x4"
        ) from None
