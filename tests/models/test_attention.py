"""Fused attention against the explicit form: values and gradients of packed and padded rows."""

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


def values_and_gradients(backend, dtype, window):
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
        found_BTX = attend(
            *(q_BTNH, k_BKSH.astype(dtype), v_BKSH.astype(dtype), mask_BTT, segment_BT),
            scale=0.25,
            window=window,
            backend=backend,
        )
        return (found_BTX * out_BTX).sum(), found_BTX

    grads, found_BTX = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q_BTNH, k_BKSH, v_BKSH)
    return found_BTX, grads


def compare(backend, dtype, window):
    """Values and gradients of a kernel with the explicit form's."""
    # A number of order 1 is off by 4e-3 to 2e-2 when it is rounded to bfloat16.
    most, on_average = (2e-2, 1e-3) if dtype == jnp.bfloat16 else (3e-6, 1e-7)
    expected_BTX, expected = values_and_gradients("explicit", dtype, window)
    found_BTX, found = values_and_gradients(backend, dtype, window)
    assert jnp.isfinite(found_BTX).all()
    off_BTX = jnp.where(REAL_BT[:, :, None], found_BTX - expected_BTX, 0.0)
    assert float(jnp.abs(off_BTX).max()) < most
    assert float(jnp.abs(off_BTX).mean()) < on_average
    for one, other in zip(found, expected, strict=True):
        assert jnp.isfinite(one).all()
        assert float(jnp.abs(one - other).max()) < most
        assert float(jnp.abs(one - other).mean()) < on_average
        assert float(jnp.abs(other).mean()) > 1e-2


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("backend", ["cudnn", "splash"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kernels_equal_the_explicit_form(on_cpu, backend, dtype, window):
    compare(backend, dtype, window)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")
@pytest.mark.parametrize("window", [None, 6])
def test_cudnn_itself_equals_the_explicit_form(window):
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
