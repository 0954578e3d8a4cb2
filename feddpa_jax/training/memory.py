"""Device memory, training's share of it, and how many tokens a device should compute at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from feddpa_jax.devices.hardware import GIB, memory_of
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.head import positions_at_once
from feddpa_jax.models.layer_stack import STACK
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.models.remat import Remat
from feddpa_jax.quantization.quantized import Quantized
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.training.step import Frozen, Tree

# Which setting to change where a part takes the most.
_REMEDIES = {
    "base": "use fewer bits (model.dtype bfloat16, model.quantize int8 or nf4), or raise "
    "mesh.model, so that devices share it",
    "adapters": "lower fed.clients_per_step",
    "optimizer": "lower fed.clients_per_step",
    "activations": "lower fed.block_tokens, or set model.remat to cheap or layer",
}


def tokens_at_once(device: Any, config: ModelConfig, dtype: DTypeLike) -> int:
    """How many tokens a device computes best at once, where the configuration does not say.

    A CPU is busy with few tokens. An accelerator needs many (an H200's step of SmolLM2 computed
    266,000 tokens per second in blocks of 4,096, and 367,000 in blocks of 32,768), as long as their
    activations fit in a third of its memory: 22 D + 8 F bytes per layer and token in bfloat16, as
    measured for that model.

    Args:
      device: the device.
      config: the model's sizes.
      dtype: of its products.
    """
    if device.platform == "cpu":
        return 4096
    a_token = config.layers * _kept(config) * jnp.dtype(dtype).itemsize
    room = (memory_of(device) or 16 * GIB) // 3 // a_token
    return max(1024, min(32768, 1 << max(room.bit_length() - 1, 0)))


def _kept(config: ModelConfig) -> int:
    """Numbers that a layer keeps of a token for the backward pass, as a compiler chooses them."""
    return 11 * config.width + 4 * config.ffn


def held_bytes(config: ModelConfig, remat: Remat, dtype: DTypeLike) -> int:
    """Bytes that a layer holds of a token for the backward pass on an accelerator.

    With "none" whatever the backward pass reads. With "cheap" the layer's input in float32 and
    every map's output but the last one's; with "layer" that input alone. Explicit attention holds a
    number of each pair of tokens besides.

    >>> config = ModelConfig(7, 576, 1, 9, 3, 64, 1536)
    >>> [held_bytes(config, remat, "bfloat16") for remat in ("none", "cheap", "layer")]
    [24960, 12672, 2304]
    """
    if remat == "none":
        return jnp.dtype(dtype).itemsize * _kept(config)
    if remat == "layer":
        return 4 * config.width
    heads = 2 * (config.heads + config.kv_heads) * config.head_dim
    held = jnp.dtype(dtype).itemsize * (heads + 2 * config.ffn)
    return held + (4 + jnp.dtype(dtype).itemsize) * config.width


def in_words(size: float) -> str:
    """Bytes in GB, or in MB where they are few.

    >>> in_words(2.5e9), in_words(1.5e6)
    ('2.50 GB', '1.5 MB')
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


class MemoryPlan(NamedTuple):
    """Bytes on one device while a block is computed.

    Attributes:
      base: the frozen model.
      adapters: those in training, what they started from, and the frozen one beside them.
      optimizer: moments and gradient sums.
      activations: everything else: activations, their gradients, the rows.
      limit: what the device has; None if that is not known.
    """

    base: int
    adapters: int
    optimizer: int
    activations: int
    limit: int | None

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self[:4])

    def line(self) -> str:
        """The parts in words.

        >>> MemoryPlan(2 * 10**9, 10**7, 10**7, 10**9, 8 * 10**9).line()
        'base 2.00 GB, adapters 10.0 MB, optimizer 10.0 MB, activations 1.00 GB: 3.02 of 8.00 GB'
        """
        sizes = zip(self._fields[:4], self[:4], strict=True)
        parts = ", ".join(f"{name} {in_words(size)}" for name, size in sizes)
        has = "" if self.limit is None else f" of {in_words(self.limit)}"
        total = in_words(self.total)
        if total.endswith("GB") and has.endswith("GB"):
            total = total.removesuffix(" GB")
        return f"{parts}: {total}{has}"

    def remedy(self) -> str | None:
        """Which setting to change; None if everything fits.

        >>> MemoryPlan(2, 1, 1, 10, 12).remedy()
        'lower fed.block_tokens, or set model.remat to cheap or layer'
        """
        if self.limit is None or self.total <= self.limit:
            return None
        parts = dict(zip(self._fields[:4], self[:4], strict=True))
        return _REMEDIES[max(parts, key=parts.__getitem__)]


def bytes_on_one(tree: Any) -> int:
    """Bytes of a tree's arrays, or of their shapes, on one of the devices that they lie on."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def plan_memory(
    compiled: jax.stages.Compiled,
    model: Model,
    trained: Tree,
    frozen: Frozen,
    *,
    slots: int,
    limit: int | None,
) -> MemoryPlan:
    """The memory of a compiled step, part by part.

    Args:
      compiled: `Engine.lower(...).compile()`.
      model: the base, or its shapes, on the mesh.
      trained: shapes of the leaves in training, of one client.
      frozen: shapes of those beside them, likewise.
      slots: places on the client axis of each shard.
      limit: bytes that the device has.
    """
    size = _size(trained)
    bank = slots * size
    beside = _size(frozen.shared) + slots * _size(frozen.own_C)
    base = bytes_on_one(model)
    stats: Any = compiled.memory_analysis()
    program = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    # The step's state is the trained bank, two moments and the gradient sums.
    activations = max(0, program - base - 4 * bank - beside)
    return MemoryPlan(base, 2 * bank + size + beside, 3 * bank, activations, limit)


def estimate_memory(
    model: Model,
    trained: Tree,
    frozen: Frozen,
    *,
    slots: int,
    shape: BlockShape,
    remat: Remat,
    on_cpu: bool,
    limit: int | None,
) -> MemoryPlan:
    """The memory of a step that is not compiled, from sizes alone.

    Activations are what layers keep of each token (see `held_bytes`; on a CPU as of
    `tokens_at_once`), the weights of explicit attention, the logits that there are at once three
    times, and of quantized maps the largest twice, made floating point. With ten layers of SmolLM2
    on a CPU this is 4 % (bfloat16) to 17 % (float32) above what the compiler says for rows of 256
    tokens, and 30 % above for rows of 64.

    Args:
      model: the base, or its shapes, on the mesh.
      trained: shapes of the leaves in training, of one client.
      frozen: shapes of those beside them, likewise.
      slots: places on the client axis of each shard.
      shape: the block's, on each shard.
      remat: what layers hold for the backward pass.
      on_cpu: what lies between products is float32 there, and the compiler undoes `remat`.
      limit: bytes that the device has.
    """
    config, bank = model.config, slots * _size(trained)
    looped = STACK in model.params
    if looped and remat == "none":
        remat = "cheap"
    beside = _size(frozen.shared) + slots * _size(frozen.own_C)
    itemsize = 4 if on_cpu else jnp.dtype(model.dtype).itemsize
    tokens = shape.rows * shape.length
    scores = config.heads * tokens * shape.length if model.attention == "explicit" else 0
    if on_cpu:
        layers = config.layers * itemsize * (_kept(config) * tokens + scores)
    else:
        scores *= itemsize
        layers = config.layers * held_bytes(config, remat, model.dtype) * tokens
        if remat == "layer" or looped:
            # One layer at a time is computed again.
            layers += held_bytes(config, "none", model.dtype) * tokens + scores
        else:
            layers += config.layers * scores
    positions = min(shape.positions, positions_at_once(config.vocab_size))
    logits = 3 * 4 * positions * config.vocab_size
    maps = [leaf.shape for leaf in model.parameters().values() if isinstance(leaf, Quantized)]
    plain = 2 * itemsize * max((width * height for width, height in maps), default=0)
    base, activations = bytes_on_one(model), layers + logits + plain
    return MemoryPlan(base, 2 * bank + _size(trained) + beside, 3 * bank, activations, limit)


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
