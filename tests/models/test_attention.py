"""Attention against the textbook's: values and gradients of packed and padded rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.models import attention
from feddpa_jax.models.attention import attend, backend_for, cudnn, splash
from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.models.sight import window_mask

# Two packed segments and padding; one segment; padding alone.
SEGMENTS = np.array([[1] * 14 + [2] * 21 + [0] * 5, [1] * 40, [0] * 40], np.int32)
REAL_BT = SEGMENTS > 0
B, T, N, K, H = 3, 40, 6, 2, 16


@pytest.fixture
def on_cpu(monkeypatch):
    """Kernels as they run here: the TPU's operation by operation, cuDNN's as XLA computes it."""
    monkeypatch.setattr(attention, "splash", functools.partial(splash, interpret=True))
    monkeypatch.setattr(attention, "cudnn", functools.partial(cudnn, implementation="xla"))


def textbook(q_BTNH, k_BKSH, v_BKSH, mask_BTS, segment_BT, *, scale, **_):
    """Attention as it is written down, for gradients by JAX."""
    k_BNSH, v_BNSH = (jnp.repeat(x_BKSH, N // K, axis=1) for x_BKSH in (k_BKSH, v_BKSH))
    score_BNTS = jnp.einsum("BTNH,BNSH->BNTS", scale * q_BTNH, k_BNSH, precision="highest")
    weight_BNTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], score_BNTS, -1e30), axis=-1)
    out_BTNH = jnp.einsum("BNTS,BNSH->BTNH", weight_BNTS, v_BNSH, precision="highest")
    return out_BTNH.reshape(*q_BTNH.shape[:2], -1)


def values_and_gradients(attention, dtype, window):
    keys = jax.random.split(jax.random.key(0), 4)
    q_BTNH = jax.random.normal(keys[0], (B, T, N, H))
    k_BKSH, v_BKSH = (jax.random.normal(key, (B, K, T, H)) for key in keys[1:3])
    out_BTX = jax.random.normal(keys[3], (B, T, N * H)) * REAL_BT[:, :, None]
    segment_BT = jnp.asarray(SEGMENTS)
    mask_BTT = causal_mask(segment_BT)
    if window is not None:
        position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
        mask_BTT &= window_mask(position_BT, position_BT, window)

    def loss(q_BTNH, k_BKSH, v_BKSH):
        found_BTX = attention(
            *(q_BTNH, k_BKSH.astype(dtype), v_BKSH.astype(dtype), mask_BTT, segment_BT),
            scale=0.25,
            window=window,
        )
        return (found_BTX * out_BTX).sum(), found_BTX

    grads, found_BTX = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q_BTNH, k_BKSH, v_BKSH)
    assert jnp.isfinite(found_BTX).all()
    # What padding gives is anything finite.
    return jnp.where(REAL_BT[:, :, None], found_BTX, 0.0), *grads


def test_queries_that_see_nothing_give_zeros():
    """Whatever gradient reaches them; keys and values get none from them."""
    q_BTNH, k_BKSH = jnp.ones((B, T, N, H)), jnp.ones((B, K, T, H))
    mask_BTT = causal_mask(jnp.asarray(SEGMENTS)) & REAL_BT[:, :, None]

    def loss(q_BTNH, k_BKSH, v_BKSH):
        out_BTX = attend(q_BTNH, k_BKSH, v_BKSH, mask_BTT, scale=1.0)
        return out_BTX.sum(), out_BTX

    grads, out_BTX = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q_BTNH, k_BKSH, k_BKSH)
    assert not out_BTX[~REAL_BT].any() and not grads[0][~REAL_BT].any()
    np.testing.assert_allclose(out_BTX[REAL_BT], 1.0, rtol=1e-6)
    # All heads of a real query give a value's numbers 1 in all.
    assert float(grads[2].sum()) == pytest.approx(REAL_BT.sum() * N * H, rel=1e-5)


def compare(backend, dtype, window):
    """Values and gradients of a form with the textbook's in float32."""
    # Rounding to bfloat16 alone costs 1.4e-3 on average, and 1.6e-2 at most for numbers around 4.
    most, on_average = (4e-2, 6e-3) if dtype == jnp.bfloat16 else (4e-6, 4e-7)
    expected = values_and_gradients(textbook, jnp.float32, window)
    found = values_and_gradients(functools.partial(attend, backend=backend), dtype, window)
    for one, other in zip(found, expected, strict=True):
        assert jnp.isfinite(one).all()
        off, size = jnp.abs(one - other), float(jnp.abs(other).mean())
        assert size > 1e-2
        assert float(off.max()) < most
        assert float(off.mean()) < on_average * size


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("backend", ["explicit", "cudnn", "splash"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_form_is_the_textbooks(on_cpu, backend, dtype, window):
    compare(backend, dtype, window)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_explicit_form_of_accelerators_is_the_textbooks(monkeypatch, dtype):
    """What CPUs compute otherwise, as others do it: weights are made to sum to 1 afterwards."""
    elsewhere = lambda *given, cpu, default: default(*given)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
    compare("explicit", dtype, None)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")
@pytest.mark.parametrize("window", [None, 6])
def test_cudnn_itself_is_the_textbooks(window):
    compare("cudnn", jnp.bfloat16, window)


def test_without_segments_it_is_explicit():
    """As of a step that reads a cache: a kernel would fail here."""
    q_BTNH, k_BKSH = jnp.ones((1, 1, 2, 4)), jnp.ones((1, 2, 8, 4))
    mask_BTS = jnp.ones((1, 1, 8), bool)
    attend(q_BTNH, k_BKSH, k_BKSH, mask_BTS, scale=1.0, backend="splash")


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "head_dim", "split", "expected"),
    [
        ("gpu", "9.0", "bfloat16", 64, False, "cudnn"),
        ("gpu", "10.0", "bfloat16", 64, False, "cudnn"),
        ("gpu", "7.5", "bfloat16", 64, False, "explicit"),
        ("gpu", "gfx942", "bfloat16", 64, False, "explicit"),
        ("gpu", None, "bfloat16", 64, False, "explicit"),
        ("gpu", "9.0", "bfloat16", 256, False, "explicit"),
        ("gpu", "9.0", "float32", 64, False, "explicit"),
        ("gpu", "9.0", "bfloat16", 64, True, "explicit"),
        ("tpu", None, "bfloat16", 64, False, "splash"),
        ("tpu", None, "float32", 64, False, "explicit"),
        ("cpu", None, "bfloat16", 64, False, "explicit"),
    ],
)
def test_the_backend_suits_the_device(platform, capability, dtype, head_dim, split, expected):
    found = backend_for(platform, dtype, head_dim, capability=capability, split=split)
    assert found == expected


def test_the_kernel_is_lowered_for_tpus():
    """Mosaic's lowering runs on any machine."""
    q_BTNH = jnp.zeros((2, 256, 4, 64))
    k_BKSH = jnp.zeros((2, 2, 256, 64), jnp.bfloat16)
    segment_BT = jnp.ones((2, 256), jnp.int32)

    def loss(q_BTNH, window):
        out_BTX = attend(
            *(q_BTNH, k_BKSH, k_BKSH, causal_mask(segment_BT), segment_BT),
            scale=1.0,
            window=window,
            backend="splash",
        )
        return out_BTX.sum()

    for window in (None, 100):
        traced = jax.jit(jax.grad(loss), static_argnums=1).trace(q_BTNH, window)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        # Forward, and of the backward pass what the queries need.
        assert text.count("tpu_custom_call") >= 2
