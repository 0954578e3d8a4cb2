"""The registry of model families: one registration has all that a family needs.

A family is a `model_type` of Hugging Face's `config.json`. `hf/families.py` registers those that
the package brings.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from feddpa_jax.hf.names import Table
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.registry import Registry

Types = tuple[type, ...]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Family(NamedTuple):
    """What a family's files mean.

    Attributes:
      architecture: its class in `transformers`, which `config.json` names.
      features: from the content of `config.json`, defaults filled in, to the fields of
        `ModelConfig` that not every family has alike (`rope`, `window`, `biased`, ...).
      names: the names of its parameters.
      reads: the fields of `config.json` that it has besides those of every family, with the types
        that `transformers` accepts.
      only: fields that are accepted with these values alone.
      defaults: what `transformers` assumes where a file is silent.
      writes: the fields of `config.json` that it writes besides those of every family.
      activation: the field that names the activation.
      whole_heads: whether the width must be a multiple of the number of heads.
    """

    architecture: str
    features: Callable[[Mapping[str, Any]], dict[str, Any]]
    names: Table
    reads: Mapping[str, Types] = _NOTHING
    only: Mapping[str, tuple[Any, ...]] = _NOTHING
    defaults: Mapping[str, Any] = _NOTHING
    writes: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    activation: str = "hidden_act"
    whole_heads: bool = False


def _family(given: Any) -> Family:
    if not isinstance(given, Family):
        raise TypeError("a model family is a Family")
    return given


FAMILIES: Registry[Family] = Registry(
    "model family",
    "model.path",
    group="feddpa_jax.families",
    modules=("feddpa_jax.hf.families",),
    wrap=_family,
)
