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


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_logits_and_float32_are_never_rounded(platform):
    def logits(x, w):
        return contract_frozen("TD,DE->TE", x, w, jnp.bfloat16, whole=True)

    def exact(x, w):
        return contract("TD,DE->TE", x, w, jnp.float32)

    assert dots(logits, platform) == dots(exact, platform) == ["f32"]
