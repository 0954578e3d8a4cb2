"""environment.json: what a run was computed with."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

import feddpa_jax
from feddpa_jax.run.revision import code_revision

_PACKAGES = ("feddpa_jax", "jax", "jaxlib", "flax", "optax", "safetensors", "numpy")


def describe_environment() -> dict[str, Any]:
    """Versions, devices and the code's git revision."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "packages": versions,
        "git_revision": code_revision(Path(feddpa_jax.__path__[0])),
    }
