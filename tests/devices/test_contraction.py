"""Results of products: float32 sums, rounded on accelerators alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.devices.contraction import contract, contract_frozen

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(64, 8)), jnp.float32)


def dots(function, platform: str) -> list[str]:
    """The element types that the products of a function hand on, lowered for a platform."""
    text = jax.jit(function).trace(X, W).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"dot_general.*-> tensor<[0-9x]*x(\w+)>", text)


def test_results_are_rounded_on_accelerators_alone():
    def product(x, w):
        return contract("TD,DE->TE", x, w, jnp.bfloat16)

    assert dots(product, "cpu") == ["f32"]
    assert dots(product, "tpu") == dots(product, "cuda") == ["bf16"]
    assert product(X, W).dtype == jnp.float32
    rounded = [np.asarray(part.astype(jnp.bfloat16), np.float64) for part in (X, W)]
    sums = np.einsum("TD,DE->TE", *rounded)
    np.testing.assert_allclose(product(X, W), sums, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_factor_is_whole():
    def loss(x, w):
        return jnp.sum(contract("TD,DE->TE", x, w, jnp.bfloat16) ** 2)

    assert dots(jax.grad(loss, argnums=0), "tpu") == ["bf16", "bf16"]
    assert dots(jax.grad(loss, argnums=1), "tpu") == ["bf16", "f32"]


def test_neighbouring_axes_are_one_on_cpus_alone():
    """Of scores [B, K, G, T, S], and of their gradients, with the same results."""
    spec = "BKGTH,BKSH->BKGTS"
    random = np.random.default_rng(2)
    x = jnp.asarray(random.normal(size=(2, 3, 4, 5, 6)), jnp.float32)
    y = jnp.asarray(random.normal(size=(2, 3, 7, 6)), jnp.float32)

    def loss(x, y):
        return jnp.sum(contract(spec, x, y, jnp.float32) ** 2)

    def ranks(platform: str) -> list[int]:
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, y)
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        shapes = re.findall(r"dot_general.*-> tensor<([0-9x]*)xf32>", text)
        return [1 + shape.count("x") for shape in shapes]

    assert ranks("cpu") == [3, 3, 3]
    assert ranks("tpu") == [5, 5, 4]
    np.testing.assert_allclose(contract(spec, x, y, jnp.float32), np.einsum(spec, x, y), rtol=1e-5)
    expected = jax.grad(lambda x, y: jnp.sum(jnp.einsum(spec, x, y) ** 2), argnums=(0, 1))(x, y)
    for found, one in zip(jax.grad(loss, argnums=(0, 1))(x, y), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_logits_and_float32_are_never_rounded(platform):
    def logits(x, w):
        return contract_frozen("TD,DE->TE", x, w, jnp.bfloat16, whole=True)

    def exact(x, w):
        return contract("TD,DE->TE", x, w, jnp.float32)

    assert dots(logits, platform) == dots(exact, platform) == ["f32"]
