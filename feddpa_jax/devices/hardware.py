"""Device memory, peak rates and bandwidth."""

import os
from typing import Any, NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
    """A kind of accelerator, as its maker describes it.

    Attributes:
      memory_bytes: of its HBM.
      flops: peak rate of dense bfloat16 products, per second.
      bandwidth: of its HBM, bytes per second.
    """

    memory_bytes: int
    flops: float
    bandwidth: float


# By the beginning of JAX's device_kind, the longer first. TPUs: cloud.google.com/tpu/docs; GPUs:
# NVIDIA's data sheets, without sparsity.
_CHIPS = {
    "TPU v5 lite": Chip(16 * GIB, 197e12, 0.82e12),
    "TPU v6 lite": Chip(32 * GIB, 918e12, 1.64e12),
    "TPU v5": Chip(95 * GIB, 459e12, 2.765e12),
    "NVIDIA H100 PCIe": Chip(80 * GIB, 756e12, 2.0e12),
    "NVIDIA H100": Chip(80 * GIB, 989e12, 3.35e12),
    "NVIDIA H200": Chip(141 * GIB, 989e12, 4.8e12),
    "NVIDIA A100": Chip(80 * GIB, 312e12, 2.0e12),
}


def chip_of(device: Any) -> Chip | None:
    """The kind of a device; None for CPUs and kinds that are not known."""
    for kind, chip in _CHIPS.items():
        if device.device_kind.startswith(kind):
            return chip
    return None


def memory_of(device: Any) -> int | None:
    """Bytes that programs on a device may use; CPU devices share the machine's evenly."""
    if device.platform == "cpu":
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return machine // jax.local_device_count()
    try:
        return device.memory_stats()["bytes_limit"]
    except (jax.errors.JaxRuntimeError, TypeError, KeyError):
        # A device that is not there, or one that does not report its memory.
        chip = chip_of(device)
        return None if chip is None else chip.memory_bytes
