"""Federated dual-adapter (FedDPA) fine-tuning of language models in JAX."""

import importlib
import sys
from types import ModuleType
from typing import Any

# Public names and where they are defined; they are imported when they are first used.
_NAMES = {
    "rules": ("feddpa_jax.weighting.rule", "RULES"),
    "templates": ("feddpa_jax.data.templates", "TEMPLATES"),
    "metrics": ("feddpa_jax.evaluate.metrics", "METRICS"),
    "families": ("feddpa_jax.hf.family", "FAMILIES"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inner = _NAMES[name]
    return getattr(importlib.import_module(module), inner)


class _Package(ModuleType):
    """The package, whose attribute `methods` is the registry and not the folder of that name."""

    @property
    def methods(self) -> Any:
        """The registry of federated methods."""
        return importlib.import_module("feddpa_jax.methods.method").METHODS

    @methods.setter
    def methods(self, module: ModuleType) -> None:
        """What the import system sets once it has imported the folder."""


sys.modules[__name__].__class__ = _Package
