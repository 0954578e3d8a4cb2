"""What layers hold for the backward pass: the same losses and gradients, in less memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.lora import TARGETS, init_adapter
from feddpa_jax.models.decoder import Model, random_model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.models.remat import Remat
from feddpa_jax.training.memory import held_bytes
from feddpa_jax.training.rows import Rows
from feddpa_jax.training.step import client_losses
from tests.training.objectives import ALONE, NOTHING

LLAMA = ModelConfig(61, 16, 3, 4, 2, 6, 24)
# Norms on heads and after the layers' halves, a window, and biases.
OTHER = dataclasses.replace(
    LLAMA,
    qk_norm=True,
    post_norms=True,
    window=4,
    local_layers=(0, 2),
    biased=("q_proj",),
    activation="gelu_tanh",
    tied=True,
)
# Two packed rows with padding, and one of padding alone.
SEGMENT_BT = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12, [0] * 12], np.int32)


def rows() -> Rows:
    draw = np.random.default_rng(2)
    (B, T), (row_P, place_P) = SEGMENT_BT.shape, np.nonzero(SEGMENT_BT)
    position_BT = np.stack([[*range(5), *range(4), 0, 0, 0], range(T), range(T)]).astype(np.int32)
    given = (
        draw.integers(1, 61, (B, T)).astype(np.int32),
        position_BT,
        SEGMENT_BT,
        np.array([0, 1, 0], np.int32),
        np.arange(B, dtype=np.uint32),
        row_P.astype(np.int32),
        place_P.astype(np.int32),
        draw.integers(1, 61, len(row_P)).astype(np.int32),
        draw.uniform(0.0, 0.2, len(row_P)).astype(np.float32),
    )
    return Rows(*map(jnp.asarray, given))


@functools.cache
def model(config: ModelConfig, dtype: str) -> Model:
    return random_model(config, jax.random.key(3), dtype)


def bank(config: ModelConfig, targets: tuple[str, ...]) -> dict:
    """Two clients' adapters, whose B is not zero."""
    sizes = {target: config.target_sizes()[target] for target in targets}
    adapter = init_adapter(jax.random.key(0), sizes, layers=config.layers, rank=2)
    keys = jax.random.split(jax.random.key(1), 2)
    return jax.tree.map(
        lambda leaf: jnp.stack([leaf + 0.1 * jax.random.normal(key, leaf.shape) for key in keys]),
        adapter,
    )


def loss(base: Model, adapters_C: dict, remat: Remat) -> jax.Array:
    key_B2 = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)
    settings = {"mix": ALONE.mix, "scale": 2.0, "dropout": 0.3, "remat": remat}
    return client_losses(base, {"local": adapters_C}, NOTHING, rows(), key_B2, **settings).sum()


@functools.cache
def gradient(config: ModelConfig, dtype: str, remat: Remat) -> tuple[jax.Array, dict]:
    function = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=2)
    return function(model(config, dtype), bank(config, TARGETS), remat)


@pytest.mark.parametrize("remat", ["cheap", "layer"])
@pytest.mark.parametrize("config", [LLAMA, OTHER], ids=["llama", "other"])
def test_gradients_do_not_depend_on_what_is_held(config: ModelConfig, remat: Remat):
    for one, other in zip(
        *(jax.tree.leaves(gradient(config, "float32", name)) for name in (remat, "none")),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert float(jnp.abs(other).max()) > 1e-3


def _off(found: tuple, expected: tuple) -> float:
    """The norm of the difference of two gradients, by the second's norm."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    off, size = (
        sum(float(jnp.square(value).sum()) for value in values)
        for values in ([a - b for a, b in pairs], [b for _, b in pairs])
    )
    return (off / size) ** 0.5


def test_gradients_in_16_bits():
    """Those of `layer` are the same; `cheap` rounds outputs of maps, as accelerators do anyway.

    Rounding all weights and operands is what takes them from float32's.
    """
    none = gradient(LLAMA, "bfloat16", "none")
    assert _off(gradient(LLAMA, "bfloat16", "layer"), none) < 1e-3
    rounding = _off(none, gradient(LLAMA, "float32", "none"))
    assert _off(gradient(LLAMA, "bfloat16", "cheap"), none) < rounding < 3e-2


def given_back(config: ModelConfig, dtype: str, remat: Remat) -> list[jax.ShapeDtypeStruct]:
    """What the backward pass of queries' and values' adapters is given."""
    base, adapters_C = model(config, dtype), bank(config, ("q_proj", "v_proj"))
    back = jax.eval_shape(
        lambda adapters_C: jax.vjp(lambda x: loss(base, x, remat), adapters_C)[1], adapters_C
    )
    return jax.tree.leaves(back)


def held(config: ModelConfig, dtype: str, remat: Remat) -> int:
    """Bytes of activations among it, without those of attention's heads."""
    B, T = SEGMENT_BT.shape
    leaves = given_back(config, dtype, remat)
    tokens = [leaf for leaf in leaves if leaf.ndim > 1 and leaf.shape[:2] == (B, T)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in tokens)


def test_attention_holds_a_short_number_a_pair_of_tokens():
    """In every layer; recomputed layers hold none."""
    T = SEGMENT_BT.shape[1]
    cases: tuple[tuple[Remat, int], ...] = (("none", 3), ("cheap", 3), ("layer", 0))
    for remat, layers in cases:
        leaves_BKGTT = [one for one in given_back(LLAMA, "bfloat16", remat) if one.ndim == 5]
        pairs = [leaf.dtype for leaf in leaves_BKGTT if leaf.shape[-2:] == (T, T)]
        assert pairs == [jnp.bfloat16] * layers, remat


def test_what_is_held_by_name():
    """Each policy holds less than the one before; another layer, what the estimate says."""
    none, cheap, layer = (held(LLAMA, "bfloat16", remat) for remat in ("none", "cheap", "layer"))
    assert layer < 0.5 * cheap and cheap < 0.6 * none
    deeper = dataclasses.replace(LLAMA, layers=LLAMA.layers + 1)
    pairs: tuple[tuple[Remat, int], ...] = (("cheap", cheap), ("layer", layer))
    for remat, least in pairs:
        more = held(deeper, "bfloat16", remat) - least
        expected = SEGMENT_BT.size * held_bytes(LLAMA, remat, "bfloat16")
        assert more == pytest.approx(expected, rel=0.1), remat
