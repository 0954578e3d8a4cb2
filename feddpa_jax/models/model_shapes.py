"""A model of shapes alone, for plans and estimates."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from feddpa_jax.models.decoder import Model, from_parameters, parameter_shapes
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.quantization.quantized import zeros


def model_shapes(
    config: ModelConfig,
    dtype: DTypeLike = jnp.float32,
    layouts: Mapping[str, str] = MappingProxyType({}),
) -> Model:
    """A model whose parameters are shapes alone (`jax.ShapeDtypeStruct`).

    Args:
      config: the sizes.
      dtype: as of `from_parameters`.
      layouts: by path, what quantized maps are laid out in.
    """

    def one(path: str, shape: tuple[int, ...]) -> Any:
        layout = layouts.get(path)
        return jnp.zeros(shape) if layout is None else zeros(layout, (shape[0], shape[1]), dtype)

    shapes = parameter_shapes(config)
    return jax.eval_shape(
        lambda: from_parameters(config, {p: one(p, s) for p, s in shapes.items()}, dtype)
    )
