"""The parts of a Llama decoder: frozen linear map, RMS norm, rotary attention, SwiGLU.

Touvron et al., *LLaMA* (arXiv 2302.13971); grouped-query attention: Ainslie et al. (arXiv
2305.13245); rotary embedding: Su et al. (arXiv 2104.09864). Products take operands in the weights'
dtype and give float32; norms, rotations, softmax and the residual stream are float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from feddpa_jax.adapters.lora import Branch, delta
from feddpa_jax.contraction import contract, contract_frozen
from feddpa_jax.models.cache import LayerCache, write
from feddpa_jax.models.config import ModelConfig


class Linear(nnx.Module):
    """A frozen map x W, plus what adapters add to it."""

    def __init__(self, size_in: int, size_out: int, *, target: str = ""):
        """Args: the two sizes, and the name that adapters know this map by."""
        self.kernel = nnx.Param(jnp.zeros((size_in, size_out)))
        self.target = target

    def __call__(
        self, x_BTD: jax.Array, branches: Sequence[Branch] = (), *, layer: int = 0
    ) -> jax.Array:
        """The map's output and the branches' contributions, float32."""
        kernel_DE = self.kernel[...]
        y_BTE = contract_frozen("BTD,DE->BTE", x_BTD, kernel_DE, kernel_DE.dtype)
        return y_BTE + delta(branches, self.target, x_BTD, layer=layer, dtype=kernel_DE.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale."""

    def __init__(self, width: int, eps: float):
        """Args: the width, and what is added to the mean square."""
        self.scale = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """The normalised values, float32."""
        x_BTD = x_BTD.astype(jnp.float32)
        square_BT1 = jnp.mean(jnp.square(x_BTD), axis=-1, keepdims=True)
        return x_BTD * jax.lax.rsqrt(square_BT1 + self.eps) * self.scale[...][None, None, :]


def rotary_angles(position_BT: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's rotations, each [B, T, 1, H/2]."""
    half = config.head_dim // 2
    frequency_F = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1F = position_BT[:, :, None, None] * frequency_F[None, None, None, :]
    return jnp.cos(angle_BT1F), jnp.sin(angle_BT1F)


def rotate(x_BTNH: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each pair (h, h + H/2) by its angle: the half-split layout of Hugging Face."""
    cos_BT1F, sin_BT1F = rotary
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate(
        [first * cos_BT1F - second * sin_BT1F, second * cos_BT1F + first * sin_BT1F], axis=-1
    )


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N*H"]:
    """Grouped-query attention; each key/value head serves G = N/K neighbouring query heads.

    The products run on [B*K, G*T, H] operands, the form that CPUs multiply fastest.
    """
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    G = N // K
    dtype = k_BKSH.dtype
    q_XQH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B * K, G * T, H)
    score_XQS = contract("XQH,XSH->XQS", q_XQH * H**-0.5, k_BKSH.reshape(B * K, S, H), dtype)
    score_BXTS = jnp.where(mask_BTS[:, None], score_XQS.reshape(B, K * G, T, S), -1e30)
    weight_XQS = jax.nn.softmax(score_BXTS, axis=-1).reshape(B * K, G * T, S)
    out_XQH = contract("XQS,XSH->XQH", weight_XQS, v_BKSH.reshape(B * K, S, H), dtype)
    return out_XQH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N * H)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: ModelConfig):
        """Args: the decoder's sizes."""
        self.config = config
        sizes = config.target_sizes()
        self.q_proj = Linear(*sizes["q_proj"], target="q_proj")
        self.k_proj = Linear(*sizes["k_proj"], target="k_proj")
        self.v_proj = Linear(*sizes["v_proj"], target="v_proj")
        self.o_proj = Linear(*sizes["o_proj"], target="o_proj")

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        position_BT: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        mask_BTS: jax.Array,
        branches: Sequence[Branch],
        layer: int,
        cache: LayerCache | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attention's output [B, T, D] and the layer's cache with the new tokens in it."""
        B, T, _ = x_BTD.shape
        dtype = self.q_proj.kernel[...].dtype

        def heads(y_BTE: jax.Array) -> jax.Array:
            return y_BTE.reshape(B, T, -1, self.config.head_dim)

        q_BTNH = rotate(heads(self.q_proj(x_BTD, branches, layer=layer)), rotary)
        k_BTKH = rotate(heads(self.k_proj(x_BTD, branches, layer=layer)), rotary).astype(dtype)
        v_BTKH = heads(self.v_proj(x_BTD, branches, layer=layer)).astype(dtype)
        if cache is None:
            k_BKSH, v_BKSH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        else:
            cache = write(cache, k_BTKH, v_BTKH, position_BT)
            k_BKSH, v_BKSH = cache
        out_BTE = attend(q_BTNH, k_BKSH, v_BKSH, mask_BTS)
        return self.o_proj(out_BTE, branches, layer=layer), cache


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig):
        """Args: the decoder's sizes."""
        sizes = config.target_sizes()
        self.gate_proj = Linear(*sizes["gate_proj"], target="gate_proj")
        self.up_proj = Linear(*sizes["up_proj"], target="up_proj")
        self.down_proj = Linear(*sizes["down_proj"], target="down_proj")

    def __call__(self, x_BTD: jax.Array, branches: Sequence[Branch], *, layer: int) -> jax.Array:
        """The block's output, float32."""
        gate_BTF = self.gate_proj(x_BTD, branches, layer=layer)
        up_BTF = self.up_proj(x_BTD, branches, layer=layer)
        return self.down_proj(jax.nn.silu(gate_BTF) * up_BTF, branches, layer=layer)
