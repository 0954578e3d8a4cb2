"""The parts of a decoder: embedding, frozen linear map, RMS norm, rotary attention, gated MLP.

Touvron et al., *LLaMA* (arXiv 2302.13971); rotary embedding: Su et al. (arXiv 2104.09864). Products
take operands in the weights' dtype and give float32; norms, rotations, softmax and the residual
stream are float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from feddpa_jax.adapters.lora import Branch, delta
from feddpa_jax.devices.contraction import contract_frozen
from feddpa_jax.devices.storage import held
from feddpa_jax.models.attention import Backend, attend
from feddpa_jax.models.kv_cache import LayerCache, attend_cached, write
from feddpa_jax.models.model_config import ModelConfig, Rope


class Embed(nnx.Module):
    """The token embedding, which is the head of a tied model too."""

    def __init__(self, vocabulary: int, width: int):
        """Args: V and D."""
        self.embedding = nnx.Param(jnp.zeros((vocabulary, width)))


class Linear(nnx.Module):
    """A frozen map x W, plus its bias if it has one, plus what adapters add to it."""

    def __init__(self, size_in: int, size_out: int, *, target: str = "", biased: bool = False):
        """Args: the two sizes, the name that adapters know the map by, whether it has a bias."""
        self.kernel = nnx.Param(jnp.zeros((size_in, size_out)))
        self.bias = nnx.Param(jnp.zeros((size_out,))) if biased else None
        self.target = target

    def __call__(
        self,
        x_BTD: jax.Array,
        branches: Sequence[Branch] = (),
        *,
        layer: int | jax.Array = 0,
        holds: bool = False,
    ) -> jax.Array:
        """The map's output and the branches' contributions, float32.

        With `holds` a checkpoint's policy may keep it, rounded to the kernel's dtype.
        """
        kernel_DE = self.kernel.get_value()
        y_BTE = contract_frozen("BTD,DE->BTE", x_BTD, kernel_DE, kernel_DE.dtype)
        if self.bias is not None:
            y_BTE = y_BTE + self.bias[...].astype(jnp.float32)[None, None, :]
        y_BTE = y_BTE + delta(branches, self.target, x_BTD, layer=layer, dtype=kernel_DE.dtype)
        return held(y_BTE, kernel_DE.dtype) if holds else y_BTE


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + scale), over the last axis."""

    def __init__(self, width: int, config: ModelConfig):
        """Args: the width, and the configuration with epsilon and offset."""
        self.scale = nnx.Param(jnp.zeros((width,)))
        self.eps = config.rms_eps
        self.offset = config.norm_offset

    def __call__(self, x: Float[Array, "*X D"]) -> Float[Array, "*X D"]:
        """The normalised values, float32."""
        x = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        scale = (self.scale[...] + self.offset).reshape(*[1] * (x.ndim - 1), -1)
        return x * jax.lax.rsqrt(square + self.eps) * scale


def rotary_angles(position_BT: jax.Array, rope: Rope, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's rotations, each [B, T, 1, H/2]."""
    frequency_F = jnp.asarray(rope.frequencies(head_dim))
    angle_BT1F = position_BT[:, :, None, None] * frequency_F[None, None, None, :]
    return jnp.cos(angle_BT1F), jnp.sin(angle_BT1F)


def rotate(x_BTNH: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (h, h + H/2) by its angle: the half-split layout of Hugging Face."""
    cos_BT1F, sin_BT1F = rotary
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate(
        [first * cos_BT1F - second * sin_BT1F, second * cos_BT1F + first * sin_BT1F], axis=-1
    )


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: ModelConfig):
        """Args: the decoder's sizes."""
        self.config = config
        self.q_proj = _adapted(config, "q_proj")
        self.k_proj = _adapted(config, "k_proj")
        self.v_proj = _adapted(config, "v_proj")
        self.o_proj = _adapted(config, "o_proj")
        self.q_norm = RMSNorm(config.head_dim, config) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config) if config.qk_norm else None

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        rotary: tuple[jax.Array, jax.Array],
        mask_BTS: jax.Array,
        segment_BT: jax.Array | None,
        backend: Backend,
        branches: Sequence[Branch],
        layer: int | jax.Array,
        holds: bool,
        cache: LayerCache | None,
        slot: jax.Array | int = 0,
        window: int | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attention's output [B, T, D] and the layer's cache with the new tokens in it.

        With a cache and segments, the row's tokens are all that is seen: an empty cache is filled.
        """
        B, T, _ = x_BTD.shape
        dtype = self.q_proj.kernel.get_value().dtype

        def heads(y_BTE: jax.Array) -> jax.Array:
            return y_BTE.reshape(B, T, -1, self.config.head_dim)

        def rotated(project: Linear, norm: RMSNorm | None) -> jax.Array:
            # Rotations need nothing for their backward pass; norms need what enters them.
            inside = holds and norm is not None
            y_BTNH = heads(project(x_BTD, branches, layer=layer, holds=inside))
            y_BTNH = rotate(y_BTNH if norm is None else norm(y_BTNH), rotary)
            return held(y_BTNH, dtype) if holds else y_BTNH

        q_BTNH = rotated(self.q_proj, self.q_norm)
        k_BTKH = rotated(self.k_proj, self.k_norm).astype(dtype)
        v_BTKH = heads(self.v_proj(x_BTD, branches, layer=layer, holds=holds)).astype(dtype)
        k_BKSH, v_BKSH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        scale = self.config.query_scale or self.config.head_dim**-0.5
        if cache is not None:
            cache = write(cache, k_BKSH, v_BKSH, slot)
            if segment_BT is None:
                out_BTE = attend_cached(q_BTNH, cache, mask_BTS, scale=scale)
                return self.o_proj(out_BTE, branches, layer=layer), cache
        out_BTE = attend(
            *(q_BTNH, k_BKSH, v_BKSH, mask_BTS, segment_BT),
            scale=scale,
            window=window,
            backend=backend,
        )
        return self.o_proj(out_BTE, branches, layer=layer, holds=holds), cache


class Mlp(nnx.Module):
    """down(act(gate(x)) * up(x)): SwiGLU, or GeGLU (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig):
        """Args: the decoder's sizes."""
        self.activation = config.activation
        self.gate_proj = _adapted(config, "gate_proj")
        self.up_proj = _adapted(config, "up_proj")
        self.down_proj = _adapted(config, "down_proj")

    def __call__(
        self, x_BTD: jax.Array, branches: Sequence[Branch], *, layer: int | jax.Array, holds: bool
    ) -> jax.Array:
        """The block's output, float32."""
        gate_BTF = self.gate_proj(x_BTD, branches, layer=layer, holds=holds)
        up_BTF = self.up_proj(x_BTD, branches, layer=layer, holds=holds)
        if self.activation == "gelu_tanh":
            gate_BTF = jax.nn.gelu(gate_BTF, approximate=True)
        else:
            gate_BTF = jax.nn.silu(gate_BTF)
        return self.down_proj(gate_BTF * up_BTF, branches, layer=layer, holds=holds)


def _adapted(config: ModelConfig, target: str) -> Linear:
    """The map that adapters know by this name."""
    return Linear(*config.target_sizes()[target], target=target, biased=target in config.biased)
