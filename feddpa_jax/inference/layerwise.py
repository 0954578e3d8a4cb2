"""One prompt at a time, layer by layer: a layer is compiled once, and run for all of them.

A whole model as one program runs many prompts fastest, and takes long to compile: every layer of it
anew, for the prompt and for the answer. For one prompt that is nearly all of the time. Here a layer
is a program, called once for each, of one row in one of a few lengths.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.adapters.token_gate import TokenGate, Weight, gates_of_rows
from feddpa_jax.inference.likelihood import likelihoods
from feddpa_jax.models.decoder import Model, causal_mask, run_block
from feddpa_jax.models.kv_cache import Cache, LayerCache, cache_mask, empty_cache, placed
from feddpa_jax.models.sight import Sight, Sights


class Passed(NamedTuple):
    """What a pass leaves behind.

    Attributes:
      states: L + 1 residual streams [1, T, D], before each layer and after the last one.
      cache: each layer's keys and values.
    """

    states: list[jax.Array]
    cache: Cache


class Layerwise:
    """A base with one client's adapters, run layer by layer on one row.

    Attributes:
      model: the frozen base.
      length: T, the tokens that prompts are padded to.
      slots: S, those of a cache.
    """

    def __init__(
        self,
        model: Model,
        global_1: Adapter | None,
        local_1: Adapter | None,
        *,
        scale: float,
        longest: int,
        room: int,
    ):
        """Splits what all layers share into layers.

        Args:
          model: the frozen base.
          global_1: the shared adapter, {target: {"a": [1, L, D, R], "b": [1, L, R, E]}}.
          local_1: the client's own, likewise.
          scale: LoRA scale.
          longest: tokens of the longest prompt.
          room: slots of a cache besides the prompt's: for the answer's tokens, those of all beams.
        """
        self.model = model
        self.length = padded(longest)
        self.slots = self.length + room
        self._scale = scale
        split = [nnx.split(layer) for layer in model.module().layers]
        self._definitions = [definition for definition, _ in split]
        self._parameters = [parameters for _, parameters in split]
        self._adapters = _split(global_1, local_1, model.config.layers)

    def under(self, global_1: Adapter | None, local_1: Adapter | None) -> "Layerwise":
        """The same base, lengths and scale with other adapters, as of the class."""
        other = copy.copy(self)
        other._adapters = _split(global_1, local_1, self.model.config.layers)
        return other

    def prompt(self, tokens_T: np.ndarray, global_weight: Weight, local_weight: Weight) -> Passed:
        """A pass over a prompt of at most `length` tokens, with room for its answer.

        Args:
          tokens_T: token ids.
          global_weight: g, or each layer's [L], or a gate of tokens.
          local_weight: l, likewise.
        """
        tokens_1T = np.zeros((1, self.length), np.int32)
        tokens_1T[0, : len(tokens_T)] = tokens_T
        empty = _empty(self.model.config, 1, self.slots, self.model.dtype)
        return self._pass(tokens_1T, 0, empty, global_weight, local_weight, len(tokens_T))

    def step(
        self,
        token_1W: np.ndarray,
        position: int,
        cache: Cache,
        global_weight: Weight,
        local_weight: Weight,
        *,
        slot: int,
        own_1WX: np.ndarray | None = None,
    ) -> Passed:
        """A pass over tokens at one position; see `decode.step`. The cache is used up."""
        own_1WS = np.ones((*token_1W.shape, self.slots), bool)
        if own_1WX is not None:
            own_1WS[..., self.length :][..., : own_1WX.shape[-1]] = own_1WX
        token_1W = np.asarray(token_1W, np.int32)
        return self._pass(
            token_1W, position, cache, global_weight, local_weight, slot=slot, own_1TS=own_1WS
        )

    def final(self, passed: Passed) -> jax.Array:
        """Final hidden states of all tokens, [T, D]."""
        return _final(self.model, passed.states[-1])

    def last(self, passed: Passed, tokens: int) -> tuple[jax.Array, jax.Array]:
        """Final hidden state at the last of so many tokens, and their mean; each [1, D]."""
        return _leave(self.model, passed.states[-1], np.int32(tokens))

    def embeddings(self, passed: Passed, tokens: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """As `last`, each [D], but after so many layers; after all of them, of final states."""
        if layer == self.model.config.layers:
            last_BD, mean_BD = self.last(passed, tokens)
        else:
            last_BD, mean_BD = _pool(passed.states[layer], np.int32(tokens))
        return np.asarray(last_BD)[0], np.asarray(mean_BD)[0]

    def likelihoods(
        self, passed: Passed, target_T: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the tokens that follow each token; see `likelihoods`, each [T]."""
        padded_T = np.zeros(self.length, np.int32)
        padded_T[: len(target_T)] = target_T
        found = _told(self.model, passed.states[-1], padded_T)
        nll_T, correct_T, entropy_T = (np.asarray(part)[: len(target_T)] for part in found)
        return nll_T, correct_T, entropy_T

    def likeliest(self, hidden_BD: jax.Array) -> np.ndarray:
        """Each row's likeliest next token."""
        return np.asarray(_likeliest(self.model, hidden_BD))

    def _pass(
        self,
        tokens_1T: np.ndarray,
        start: int,
        cache: Cache,
        global_weight: Weight,
        local_weight: Weight,
        prompt: int | None = None,
        *,
        slot: int = 0,
        own_1TS: np.ndarray | None = None,
    ) -> Passed:
        """A pass over a prompt of so many tokens, or over tokens at the position `start`."""
        config = self.model.config
        weights_L = list(
            zip(*(self._by_layer(weight) for weight in (global_weight, local_weight)), strict=True)
        )
        place = np.int32(start), np.int32(slot)
        if prompt is None:
            given = (self.model, tokens_1T, *place, cache.position_BS, own_1TS)
            x_1TD, sights, position_1S = _enter_answer(*given)
        else:
            given = (self.model, tokens_1T, np.int32(prompt), cache.position_BS)
            x_1TD, sights, position_1S = _enter_prompt(*given)
        states, new = [x_1TD], []
        for layer in range(config.layers):
            x_1TD, own = _layer(
                self._parameters[layer],
                self._adapters[layer],
                weights_L[layer],
                x_1TD,
                sights.of_layer(layer, config),
                cache.layers[layer],
                place[1],
                definition=self._definitions[layer],
                scale=self._scale,
            )
            states.append(x_1TD)
            new.append(own)
        return Passed(states, Cache(tuple(new), position_1S))

    def _by_layer(self, weight: Weight) -> Sequence[np.ndarray | TokenGate]:
        """The weight of one row in every layer, [1]."""
        config = self.model.config
        if isinstance(weight, TokenGate):
            return gates_of_rows([weight], config.layers, config.width).by_layer()
        return list(np.broadcast_to(np.asarray(weight, np.float32), (config.layers,))[:, None])

    def gated(self, passed: Passed, tokens: int, gate: TokenGate) -> np.ndarray:
        """The mean of a gate's weight over the first tokens of a prompt in every layer, [L]."""
        gates = gates_of_rows([gate], self.model.config.layers, self.model.config.width).by_layer()
        return np.array(
            [
                np.asarray(_weights(own, x_1TD))[0, :tokens].mean()
                for own, x_1TD in zip(gates, passed.states, strict=False)
            ]
        )


def _split(global_1: Adapter | None, local_1: Adapter | None, layers: int) -> list[Any]:
    """Both adapters of every layer."""
    # On the host, so that nothing is compiled for it.
    both = jax.tree.map(np.asarray, (global_1, local_1))
    return jax.device_put(
        [jax.tree.map(lambda leaf, at=at: leaf[:, at], both) for at in range(layers)]
    )


def padded(tokens: int) -> int:
    """The length that a prompt is padded to: few lengths, so that few programs serve all prompts.

    >>> [padded(n) for n in (1, 33, 48, 49, 65)]
    [32, 48, 48, 64, 96]
    """
    size = 32
    while size < tokens:
        if size + size // 2 >= tokens:
            return size + size // 2
        size *= 2
    return size


_empty = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3))


@jax.jit
def _enter_prompt(
    model: Model, tokens_1T: jax.Array, length: jax.Array, position_1S: jax.Array
) -> tuple[jax.Array, Sights, jax.Array]:
    T = tokens_1T.shape[1]
    position_1T = jnp.arange(T)[None]
    inside_1T = position_1T < length
    segment_1T = inside_1T.astype(jnp.int32)
    x_1TD, sights = model.module().enter(
        tokens_1T, position_1T, causal_mask(segment_1T), position_1T, segment_1T
    )
    position_1S = position_1S.at[:, :T].set(jnp.where(inside_1T, position_1T, position_1S[:, :T]))
    return x_1TD, sights, position_1S


@jax.jit
def _enter_answer(
    model: Model,
    token_1W: jax.Array,
    position: jax.Array,
    slot: jax.Array,
    position_1S: jax.Array,
    own_1WS: jax.Array,
) -> tuple[jax.Array, Sights, jax.Array]:
    position_1W = jnp.full(token_1W.shape, position)
    cache = placed(Cache((), position_1S), position_1W, slot)
    mask_1WS = cache_mask(position_1W, cache) & own_1WS
    x_1WD, sights = model.module().enter(token_1W, position_1W, mask_1WS, cache.position_BS)
    return x_1WD, sights, cache.position_BS


@functools.partial(jax.jit, static_argnames=("definition", "scale"), donate_argnames="cache")
def _layer(
    parameters: Any,
    adapters: tuple[Adapter | None, Adapter | None],
    weights: tuple[jax.Array | TokenGate, jax.Array | TokenGate],
    x_BTD: jax.Array,
    sight: Sight,
    cache: LayerCache,
    slot: jax.Array,
    *,
    definition: Any,
    scale: float,
) -> tuple[jax.Array, LayerCache]:
    global_1, local_1 = adapters
    rows = x_BTD.shape[0]
    global_weight, local_weight = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), weights
    )
    branches = dual_branches(
        global_1,
        local_1,
        jnp.zeros(x_BTD.shape[0], jnp.int32),
        local_weight,
        scale=scale,
        global_weight=global_weight,
    )
    x_BTD, new = run_block(
        definition,
        False,
        parameters,
        x_BTD,
        layer=0,  # Numbers dropout masks, and there is no dropout.
        **sight._asdict(),
        backend="explicit",
        cache=cache,
        slot=slot,
        branches=branches,
    )
    assert new is not None
    return x_BTD, new


@jax.jit
def _weights(gate: TokenGate, x_BTD: jax.Array) -> jax.Array:
    return gate.weights(x_BTD)


@jax.jit
def _final(model: Model, x_1TD: jax.Array) -> jax.Array:
    return model.module().norm(x_1TD)[0]


@jax.jit
def _leave(model: Model, x_BTD: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _pool(model.module().norm(x_BTD), tokens)


@jax.jit
def _pool(x_BTD: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    inside_1T1 = (jnp.arange(x_BTD.shape[1]) < tokens)[None, :, None]
    return x_BTD[:, tokens - 1], jnp.where(inside_1T1, x_BTD, 0.0).sum(axis=1) / tokens


@jax.jit
def _likeliest(model: Model, hidden_BD: jax.Array) -> jax.Array:
    return jnp.argmax(model.logits(hidden_BD), axis=-1).astype(jnp.int32)


@jax.jit
def _told(
    model: Model, x_1TD: jax.Array, target_T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return likelihoods(model.logits(model.module().norm(x_1TD)[0]), target_T)
