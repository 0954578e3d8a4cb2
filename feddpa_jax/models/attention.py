"""Attention over rows: the explicit form, and fused kernels of NVIDIA's cuDNN and of TPUs.

Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245; kernels that
never form the scores: Dao et al., *FlashAttention*, arXiv 2205.14135. The explicit form is what
CPUs run and what the others are tested against. Fused kernels serve packed rows, whose tokens see
earlier tokens of their own segment; a step that reads a cache is always explicit.
"""

import functools
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from feddpa_jax.devices.contraction import product
from feddpa_jax.devices.storage import HELD, SCORES, held

Backend = Literal["explicit", "cudnn", "splash"]
# The sides of a TPU kernel's blocks: a multiple of the first, at most the second.
LANES, MOST_BLOCK = 128, 512


def backend_for(
    platform: str,
    dtype: DTypeLike,
    head_dim: int,
    *,
    capability: str | None = None,
    split: bool = False,
) -> Backend:
    """The fused backend that serves, else the explicit one.

    Args:
      platform: of the devices: "cpu", "gpu" or "tpu".
      dtype: of the model's kernels.
      head_dim: size of a head.
      capability: a GPU's compute capability, as "9.0"; cuDNN's kernel asks for 8.0 (Ampere). Those
        of AMD have names instead, as "gfx942". None: not known.
      split: whether the base or the rows are split over several devices; kernels are not.

    >>> [backend_for("gpu", jnp.bfloat16, 64, capability=name) for name in ("9.0", "7.5")]
    ['cudnn', 'explicit']
    """
    short = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    if split or not short:
        return "explicit"
    if platform == "gpu":
        serves = _at_least_ampere(capability) and head_dim % 8 == 0 and head_dim <= 128
        return "cudnn" if serves else "explicit"
    return "splash" if platform == "tpu" else "explicit"


def _at_least_ampere(capability: str | None) -> bool:
    major = (capability or "").partition(".")[0]
    return major.isdecimal() and int(major) >= 8


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    mask_BTS: Bool[Array, "B T S"],
    segment_BT: Int[Array, "B T"] | None = None,
    *,
    scale: float,
    window: int | None = None,
    backend: Backend = "explicit",
) -> Float[Array, "B T N*H"]:
    """Grouped-query attention; each key/value head serves G = N/K neighbouring query heads.

    Scores are `scale` times the products of queries and keys. Queries that see nothing (padding)
    give finite numbers, and gradients that are finite; in the explicit form both are 0.

    Args:
      q_BTNH: queries, float32.
      k_BKSH: keys, in the dtype of the products.
      v_BKSH: values, likewise.
      mask_BTS: what each query sees; in packed rows earlier tokens of its own segment and itself.
      segment_BT: packed rows' segments, 0 for padding; None: the mask is all that is known.
      scale: of the scores.
      window: how many of the last positions a query sees, its own among them; None for all.
      backend: that of the model; explicit wherever the segments are not known.
    """
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    chex.assert_shape([k_BKSH, v_BKSH], (B, K, S, H))
    chex.assert_shape(mask_BTS, (B, T, S))
    chex.assert_is_divisible(N, K)
    q_BTNH = q_BTNH * scale
    if segment_BT is None or backend == "explicit":
        return _explicit(q_BTNH, k_BKSH, v_BKSH, mask_BTS)
    q_BTNH = q_BTNH.astype(k_BKSH.dtype)
    if backend == "cudnn":
        out_BTNH = cudnn(q_BTNH, k_BKSH, v_BKSH, mask_BTS)
    else:
        out_BTNH = splash(q_BTNH, k_BKSH, v_BKSH, segment_BT, window)
    return out_BTNH.astype(jnp.float32).reshape(B, T, N * H)


def _explicit(
    q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: Bool[Array, "B T S"]
) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    out_BKGTH = _softmax_mean(q_BKGTH, k_BKSH, v_BKSH, mask_BTS)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N * H)


@jax.custom_vjp
def _softmax_mean(
    q_BKGTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Means of the values, weighted by the softmax of the scores, float32.

    With w = exp(s - max s), Z = sum w and the output o = w v / Z, a gradient g of o gives

        ds = w / Z * (g v^T - D),  D = g o^T,  dv = (w / Z)^T g

    as in FlashAttention (arXiv 2205.14135, its D), though the scores are formed: the division by Z
    is done on outputs and on g, and D needs no weights. So of each pair of tokens one number is
    held, w in the products' dtype, and nothing of that size is read to be normalized. CPUs, which
    memory traffic does not bound, divide w by Z and take D from it.
    """
    return _softmax_mean_forward(q_BKGTH, k_BKSH, v_BKSH, mask_BTS)[0]


def _softmax_mean_forward(
    q_BKGTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array
) -> tuple[jax.Array, Any]:
    dtype = k_BKSH.dtype
    q_BKGTH = q_BKGTH.astype(dtype)
    score_BKGTS = product("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH, dtype)
    score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, -1e30)
    # Of a query that sees nothing all weights are 0; of others the largest is 1.
    max_BKGT1 = jnp.maximum(jnp.max(score_BKGTS, axis=-1, keepdims=True), -1e29)
    weight_BKGTS = jnp.exp(score_BKGTS - max_BKGT1)
    sum_BKGT1 = jnp.maximum(jnp.sum(weight_BKGTS, axis=-1, keepdims=True), 1.0)
    weight_BKGTS, sum_BKGT1 = jax.lax.platform_dependent(
        *(weight_BKGTS, sum_BKGT1),
        cpu=lambda weight, total: (weight / total, jnp.ones_like(total)),
        default=lambda weight, total: (weight, total),
    )
    sum_BKGT1 = held(sum_BKGT1, name=SCORES)
    weight_BKGTS = held(weight_BKGTS, dtype, SCORES).astype(dtype)
    out_BKGTH = product("BKGTS,BKSH->BKGTH", weight_BKGTS, v_BKSH, dtype) / sum_BKGT1
    out_BKGTH = held(out_BKGTH, dtype)
    operands = (q_BKGTH, k_BKSH, v_BKSH)
    return out_BKGTH, (operands, weight_BKGTS, sum_BKGT1, out_BKGTH.astype(dtype))


def _softmax_mean_backward(residuals: Any, g_BKGTH: jax.Array) -> tuple[Any, ...]:
    (q_BKGTH, k_BKSH, v_BKSH), weight_BKGTS, sum_BKGT1, out_BKGTH = residuals
    dtype = k_BKSH.dtype
    g_BKGTH = g_BKGTH / sum_BKGT1
    mean_BKGT1 = jnp.sum(g_BKGTH * out_BKGTH.astype(jnp.float32), axis=-1, keepdims=True)
    g_BKGTH = g_BKGTH.astype(dtype)
    dweight_BKGTS = product("BKGTH,BKSH->BKGTS", g_BKGTH, v_BKSH, dtype)

    def from_weights(weight_BKGTS: jax.Array, dweight_BKGTS: jax.Array, _: jax.Array) -> jax.Array:
        part_BKGTS = weight_BKGTS * dweight_BKGTS
        return part_BKGTS - weight_BKGTS * jnp.sum(part_BKGTS, axis=-1, keepdims=True)

    dscore_BKGTS = jax.lax.platform_dependent(
        *(weight_BKGTS.astype(jnp.float32), dweight_BKGTS, mean_BKGT1),
        cpu=from_weights,
        default=lambda weight_BKGTS, dweight_BKGTS, mean_BKGT1: (
            weight_BKGTS * (dweight_BKGTS - mean_BKGT1)
        ),
    )
    dscore_BKGTS = dscore_BKGTS.astype(dtype)
    dq_BKGTH = product("BKGTS,BKSH->BKGTH", dscore_BKGTS, k_BKSH, dtype)
    dk_BKSH = product("BKGTS,BKGTH->BKSH", dscore_BKGTS, q_BKGTH, dtype)
    dv_BKSH = product("BKGTS,BKGTH->BKSH", weight_BKGTS, g_BKGTH, dtype)
    return dq_BKGTH, dk_BKSH.astype(dtype), dv_BKSH.astype(dtype), None


_softmax_mean.defvjp(_softmax_mean_forward, _softmax_mean_backward)


def cudnn(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """The kernel of cuDNN, [B, T, N, H]; queries are scaled and in the keys' dtype.

    Every token sees itself besides: rows of the mask that are empty (padding) gave values that are
    not finite.
    """
    T = q_BTNH.shape[1]
    mask_BTS = mask_BTS | jnp.eye(T, dtype=bool)[None]
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BKSH.swapaxes(1, 2),
        v_BKSH.swapaxes(1, 2),
        mask=mask_BTS[:, None],
        scale=1.0,
        implementation=implementation,
    )


def splash(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    segment_BT: jax.Array,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """JAX's kernel for TPUs, [B, T, N, H]; queries are scaled and in the keys' dtype.

    Rows are filled up to whole blocks with tokens of segment 0, which see each other alone.

    Args:
      q_BTNH: queries.
      k_BKSH: keys.
      v_BKSH: values.
      segment_BT: the segments.
      window: as of `attend`.
      interpret: run the kernel's operations one by one, on any device: slow, for tests.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    more = -T % LANES

    def filled(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, more if place == axis else 0) for place in range(x.ndim)]
        return jnp.pad(x, widths)

    kernel = _splash_kernel(T + more, N // K, window, interpret)
    q_BKGTH = filled(q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4), 3)
    segment_BT = filled(segment_BT, 1)
    # One kernel call a row and key/value head, with the G query heads that it serves.
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out_BKGTH = jax.vmap(heads)(
        q_BKGTH, filled(k_BKSH, 2), filled(v_BKSH, 2), SegmentIds(segment_BT, segment_BT)
    )
    return out_BKGTH[:, :, :, :T].transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@functools.lru_cache(maxsize=32)
def _splash_kernel(length: int, group: int, window: int | None, interpret: bool) -> Any:
    """The kernel of one key/value head and its queries: [G, T, H], [T, H], [T, H] -> [G, T, H]."""
    from jax.experimental.pallas.ops.tpu import splash_attention as tpu

    shape = (length, length)
    mask = tpu.CausalMask(shape)
    if window is not None:
        mask = tpu.LocalMask(shape, (window - 1, 0), 0)
    side = max(block for block in range(LANES, MOST_BLOCK + 1, LANES) if length % block == 0)
    blocks = tpu.BlockSizes(
        block_q=side,
        block_kv=side,
        block_q_dkv=side,
        block_kv_dkv=side,
        block_q_dq=side,
        block_kv_dq=side,
    )
    # Its tables of blocks are computed now, not within a program that is being traced.
    with jax.ensure_compile_time_eval():
        return tpu.make_splash_mqa_single_device(
            tpu.MultiHeadMask([mask] * group),
            block_sizes=blocks,
            residual_checkpoint_name=HELD,
            interpret=interpret,
        )
