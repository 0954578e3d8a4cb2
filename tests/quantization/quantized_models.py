"""Models with quantized maps, and the same with those maps in floating point."""

import dataclasses

import jax
import numpy as np

from feddpa_jax.hf.placing import Placer
from feddpa_jax.models.decoder import Model, from_parameters
from feddpa_jax.quantization.quantized import Quantized, dequantize


def quantized(model: Model, layout: str) -> Model:
    """A model with its layers' maps quantized, as loading one does."""
    put = Placer(str(model.dtype), layout)
    held = {
        path: leaf
        if put.layout(path) is None
        else put(path, leaf.shape, [np.asarray(leaf).T], True)
        for path, leaf in model.parameters().items()
    }
    return from_parameters(model.config, held, model.dtype)


def plain(model: Model) -> Model:
    """The weights that a quantized model stands for."""

    def one(leaf):
        return dequantize(leaf) if isinstance(leaf, Quantized) else leaf

    params = jax.tree.map(one, model.params, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    return dataclasses.replace(model, params=params)
