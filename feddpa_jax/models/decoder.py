"""A frozen decoder, split once into its definition and its arrays."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from feddpa_jax.adapters.lora import Branch, layer_branches, weigh_tokens
from feddpa_jax.devices.contraction import contract_frozen
from feddpa_jax.models.attention import Backend
from feddpa_jax.models.kv_cache import Cache, LayerCache, placed
from feddpa_jax.models.layer_stack import STACK, run_stack, stacked_layers, unstacked
from feddpa_jax.models.layers import Attention, Embed, Linear, Mlp, RMSNorm, rotary_angles
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.models.remat import Remat, checkpointed, holds_by_name
from feddpa_jax.models.sight import Sight, Sights, window_mask
from feddpa_jax.quantization.quantized import Quantized


class Block(nnx.Module):
    """One decoder layer: attention and MLP, each behind a norm (or between two), on a residual."""

    def __init__(self, config: ModelConfig):
        """Args: the decoder's sizes."""
        self.attention_norm = RMSNorm(config.width, config)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config)
        self.mlp = Mlp(config)
        self.attention_post_norm = RMSNorm(config.width, config) if config.post_norms else None
        self.mlp_post_norm = RMSNorm(config.width, config) if config.post_norms else None

    def __call__(
        self,
        x_BTD: jax.Array,
        *,
        layer: int | jax.Array,
        branches: Sequence[Branch],
        holds: bool = False,
        **attention: Any,
    ) -> tuple[jax.Array, LayerCache | None]:
        """The residual stream after this layer, and the layer's cache."""
        own: Any = {"layer": layer, "holds": holds}
        branches = weigh_tokens(branches, x_BTD)
        out_BTD, cache = self.attention(
            self.attention_norm(x_BTD), branches=branches, **own, **attention
        )
        if self.attention_post_norm is not None:
            out_BTD = self.attention_post_norm(out_BTD)
        x_BTD = x_BTD + out_BTD
        out_BTD = self.mlp(self.mlp_norm(x_BTD), branches, **own)
        if self.mlp_post_norm is not None:
            out_BTD = self.mlp_post_norm(out_BTD)
        return x_BTD + out_BTD, cache


def run_block(
    definition: Any, gathered: bool, parameters: Any, x_BTD: jax.Array, **arguments: Any
) -> tuple[jax.Array, LayerCache | None]:
    """A layer as a function of its parameters.

    Args:
      definition: the block's structure (static).
      gathered: whether parameters are split over the mesh and made whole first.
      parameters: the layer's arrays.
      x_BTD: the residual stream before it.
      **arguments: as of `Block`.
    """
    if gathered:
        parameters = jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), parameters
        )
    return nnx.merge(definition, parameters)(x_BTD, **arguments)


class Decoder(nnx.Module):
    """Embedding, layers, final norm and head."""

    def __init__(self, config: ModelConfig):
        """Args: the sizes. Kernels start at zero; `from_parameters` puts the real ones in."""
        self.config = config
        self.embed = Embed(config.vocab_size, config.width)
        self.layers = nnx.List([Block(config) for _ in range(config.layers)])
        self.norm = RMSNorm(config.width, config)
        self.lm_head = None if config.tied else Linear(config.width, config.vocab_size)

    def enter(
        self,
        tokens_BT: jax.Array,
        position_BT: jax.Array,
        mask_BTS: jax.Array,
        other_BS: jax.Array,
        segment_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, "Sights"]:
        """What the first layer is given, and what layers see.

        Args: as of `Model.hidden`; and the positions of what queries attend to.
        """
        config = self.config
        embedding_VD = self.embed.embedding[...]
        x_BTD = embedding_VD[tokens_BT].astype(jnp.float32)
        if config.embedding_scale != 1.0:
            scale = jnp.asarray(config.embedding_scale, embedding_VD.dtype)
            x_BTD = x_BTD * scale.astype(jnp.float32)
        rotary = rotary_angles(position_BT, config.rope, config.head_dim)
        local_rotary, local_mask_BTS = rotary, mask_BTS
        if config.local_layers:
            local_mask_BTS = mask_BTS & window_mask(position_BT, other_BS, config.window)
            if config.local_rope is not None:
                local_rotary = rotary_angles(position_BT, config.local_rope, config.head_dim)
        return x_BTD, Sights(
            Sight(rotary, mask_BTS, segment_BT), Sight(local_rotary, local_mask_BTS, segment_BT)
        )

    def hidden(
        self,
        tokens_BT: jax.Array,
        position_BT: jax.Array,
        mask_BTS: jax.Array,
        branches: Sequence[Branch],
        cache: Cache | None,
        segment_BT: jax.Array | None,
        remat: Remat,
        gathered: bool,
        backend: Backend,
        slot: jax.Array | int = 0,
        stack: dict[int, Any] | None = None,
    ) -> tuple[list[jax.Array], Cache | None]:
        """See `Model.hidden`; but the states after 0, 1, ..., L layers.

        With a stack its layers are a loop, and there are no states before and between them.
        """
        config = self.config
        chex.assert_rank([tokens_BT, position_BT, mask_BTS], [2, 2, 3])
        chex.assert_type([tokens_BT, position_BT, mask_BTS], [int, int, bool])
        other_BS = position_BT
        if cache is not None:
            cache = placed(cache, position_BT, slot)
            other_BS = cache.position_BS if segment_BT is None else position_BT
        x_BTD, sights = self.enter(tokens_BT, position_BT, mask_BTS, other_BS, segment_BT)

        def block(index: int, looped: bool = False, **own: Any) -> Callable[..., Any]:
            """The layer, or all that are like it, as a function of parameters, x and branches."""
            function = functools.partial(
                run_block,
                nnx.split(self.layers[index])[0],
                gathered,
                **sights.of_layer(index, config)._asdict(),
                window=config.window if index in config.local_layers else None,
                backend=backend,
                holds=holds_by_name(remat, looped),
                slot=slot,
                **own,
            )
            return checkpointed(function, remat, looped)

        def looped(place: int, parameters: Any, x_BTD: jax.Array, **own: Any) -> jax.Array:
            return block(place, looped=True, cache=None)(nnx.State(parameters), x_BTD, **own)[0]

        first = 0
        if stack is not None:
            assert cache is None
            x_BTD, first = run_stack(looped, stack, x_BTD, branches), stacked_layers(stack)
        caches, states = [], []
        split = layer_branches(branches, config.layers) if first < config.layers else []
        for index in range(first, config.layers):
            own = {"layer": index, "cache": None if cache is None else cache.layers[index]}
            parameters = nnx.split(self.layers[index])[1]
            states.append(x_BTD)
            x_BTD, new = block(index, **own)(parameters, x_BTD, branches=split[index])
            caches.append(new)
        if cache is not None:
            cache = cache._replace(layers=tuple(caches))
        return [*states, self.norm(x_BTD)], cache

    def logits(self, hidden_XD: jax.Array) -> jax.Array:
        """See `Model.logits`."""
        if self.lm_head is not None:
            kernel_DV = self.lm_head.kernel[...]
            return contract_frozen("XD,DV->XV", hidden_XD, kernel_DV, kernel_DV.dtype, whole=True)
        embedding_VD = self.embed.embedding[...]
        return contract_frozen("XD,VD->XV", hidden_XD, embedding_VD, embedding_VD.dtype, whole=True)


@flax.struct.dataclass
class Model:
    """A frozen language model as one argument of a pure function.

    Attributes:
      params: nested dictionary of arrays (see `parameter_shapes` for the paths); layers of one
        kind may be stacked (see `layer_stack`).
      definition: the module's structure (static).
      config: its sizes (static).
      attention: how packed rows are computed where their segments are given (static).
    """

    params: dict[str, Any]
    definition: Any = flax.struct.field(pytree_node=False)
    config: ModelConfig = flax.struct.field(pytree_node=False)
    attention: Backend = flax.struct.field(pytree_node=False, default="explicit")

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the kernels, in which products run."""
        return self.params["embed"]["embedding"].dtype

    def parameters(self) -> dict[str, Any]:
        """The arrays, or `Quantized` maps, by dotted path, as `from_parameters` takes them."""
        flat: dict[Any, Any] = dict(traverse_util.flatten_dict(unstacked(self.params)))
        return {".".join(map(str, path)): leaf for path, leaf in flat.items()}

    def module(self) -> Decoder:
        """The NNX module with these parameters."""
        return nnx.merge(self.definition, nnx.State(unstacked(self.params)))

    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        branches: Sequence[Branch] = (),
        cache: Cache | None = None,
        *,
        slot: jax.Array | int = 0,
        segment_BT: Int[Array, "B T"] | None = None,
        remat: Remat = "none",
        gathered: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """The final hidden states, after the last norm.

        Args:
          tokens_BT: token ids.
          position_BT: each token's position in its own sequence.
          mask_BTS: what each query may see: other tokens of the row, or the cache's slots, of which
            these tokens take T.
          branches: adapters of the rows.
          cache: keys and values so far, or None to attend within the rows.
          slot: the first of the cache's slots that these tokens take.
          segment_BT: packed rows' segments, of which the mask is `causal_mask`: fused kernels need
            them; with a cache, which is then filled and not read. None: attention is explicit.
          remat: what layers hold for the backward pass; the rest is computed again.
          gathered: the parameters are split over the mesh, and a layer's are made whole where it is
            computed; with `remat` "layer" they are split again until the backward pass.

        Returns:
          float32 hidden states, and the cache with these tokens added (None without a cache).
        """
        states, cache = self.module().hidden(
            *(tokens_BT, position_BT, mask_BTS, branches, cache, segment_BT),
            *(remat, gathered, self.attention, slot),
            self.params.get(STACK) if cache is None else None,
        )
        return states[-1], cache

    def states(
        self,
        tokens_BT: Int[Array, "B T"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        branches: Sequence[Branch] = (),
    ) -> list[Float[Array, "B T D"]]:
        """The residual stream after 0, 1, ..., L layers, the last one after the final norm.

        Args: as of `hidden`.
        """
        states, _ = self.module().hidden(
            *(tokens_BT, position_BT, mask_BTS, branches, None, None, "none", False, "explicit")
        )
        return states

    def logits(self, hidden: Float[Array, "*X D"]) -> Float[Array, "*X V"]:
        """Next-token logits of hidden states with any leading axes, float32."""
        flat_XD = hidden.reshape(-1, hidden.shape[-1])
        return self.module().logits(flat_XD).reshape(*hidden.shape[:-1], -1)


def causal_mask(segment_BT: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Tokens see themselves and earlier tokens of their own segment; segment 0 is padding."""
    length = segment_BT.shape[1]
    same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
    return same_BTT & jnp.tri(length, dtype=bool)[None] & (segment_BT > 0)[:, None, :]


@functools.lru_cache(maxsize=8)
def _flat_parameters(config: ModelConfig) -> tuple[Any, Mapping[tuple, Any]]:
    definition, state = nnx.split(nnx.eval_shape(lambda: Decoder(config)))
    return definition, dict(traverse_util.flatten_dict(nnx.to_pure_dict(state)))


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's dotted path and shape; kernels are [in, out].

    >>> from feddpa_jax.models.model_config import ModelConfig
    >>> shapes = parameter_shapes(ModelConfig(7, 4, 1, 2, 1, 2, 8, tied=True))
    >>> shapes["layers.0.attention.k_proj.kernel"]
    (4, 2)
    """
    _, flat = _flat_parameters(config)
    return {".".join(map(str, path)): leaf.shape for path, leaf in flat.items()}


def from_parameters(
    config: ModelConfig, parameters: Mapping[str, Any], dtype: DTypeLike = jnp.float32
) -> Model:
    """A model from arrays by dotted path.

    Args:
      config: the sizes.
      parameters: one array for each path of `parameter_shapes(config)`; maps may be `Quantized`.
      dtype: dtype of kernels, biases and embedding; norm scales are float32.
    """
    definition, flat = _flat_parameters(config)
    assert set(parameters) == {".".join(map(str, path)) for path in flat}, "parameters do not match"
    params = {}
    for path, leaf in flat.items():
        array = parameters[".".join(map(str, path))]
        assert array.shape == leaf.shape, ".".join(map(str, path))
        if not isinstance(array, Quantized):
            array = jnp.asarray(array, jnp.float32 if path[-1] == "scale" else dtype)
        params[path] = array
    return Model(traverse_util.unflatten_dict(params), definition, config)


def random_model(config: ModelConfig, key: jax.Array, dtype: DTypeLike = jnp.float32) -> Model:
    """A model with normal kernels of standard deviation 1/sqrt(in), norms 1 and biases 0.

    The embedding's deviation is 1/sqrt(width), so that a tied head gives logits of order 1.
    """
    return from_parameters(config, dict(random_parameters(config, key)), dtype)


def random_parameters(config: ModelConfig, key: jax.Array) -> Iterator[tuple[str, jax.Array]]:
    """The parameters of `random_model` by path, float32, one at a time."""
    for index, (path, shape) in enumerate(parameter_shapes(config).items()):
        noise = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
        if path.endswith("scale"):
            yield path, jnp.full(shape, 1.0 - config.norm_offset)
        elif path.endswith("bias"):
            yield path, jnp.zeros(shape)
        else:
            size_in = config.width if path == "embed.embedding" else shape[0]
            yield path, noise * size_in**-0.5
