"""Layers of one kind as one: their parameters stacked, and a loop that is compiled once for all.

A decoder's layers come in rounds: of one layer where all are alike; of six where five see a window
and the sixth sees everything. A stack holds the layers of a round, and each of its leaves starts
with the rounds. Layers that are left over after the last whole round stay as they are.

A loop writes to memory what its backward pass reads, and reads it back: more traffic than layers
one by one, whose compiler fuses across. So it serves where products bound a step, not traffic.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from feddpa_jax.adapters.lora import Branch, looped_branches, with_own
from feddpa_jax.models.model_config import ModelConfig

# The name of the stack among a base's parameters: {place in the round: {...: [rounds, ...]}}.
STACK = "stack"


def round_size(kinds: Sequence[Any]) -> int:
    """The least number of layers after which kinds repeat, twice at the least; 0 if there is none.

    >>> round_size("aaaa"), round_size("aabaabaa"), round_size("ab"), round_size("abcde")
    (1, 3, 0, 0)
    """
    for size in range(1, len(kinds) // 2 + 1):
        whole = len(kinds) // size * size
        if all(kinds[place] == kinds[place % size] for place in range(whole)):
            return size
    return 0


def stacked(params: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """A base's parameters with the layers of one kind stacked; as they are if none repeat.

    Args:
      params: by layer, as of `Model.params`: arrays, or shapes alone.
      config: the decoder's sizes.
    """
    layers = params["layers"]
    kinds = [(index in config.local_layers, _kind(layers[index])) for index in range(config.layers)]
    size = round_size(kinds)
    if not size:
        return params
    whole = config.layers // size * size
    stack = {
        place: jax.tree.map(_joined, *(layers[index] for index in range(place, whole, size)))
        for place in range(size)
    }
    rest = {index: layers[index] for index in range(whole, config.layers)}
    return {**params, "layers": rest, STACK: stack}


def unstacked(params: dict[str, Any]) -> dict[str, Any]:
    """A base's parameters layer by layer: what `stacked` was given."""
    if STACK not in params:
        return params
    stack = params[STACK]
    size = len(stack)
    layers = {
        index: jax.tree.map(functools.partial(_slice, index // size), stack[index % size])
        for index in range(stacked_layers(stack))
    }
    others = {name: own for name, own in params.items() if name != STACK}
    return {**others, "layers": {**layers, **params["layers"]}}


def stacked_layers(stack: dict[int, Any]) -> int:
    """How many layers a stack holds."""
    return len(stack) * jax.tree.leaves(stack)[0].shape[0]


def run_stack(
    run: Callable[..., jax.Array],
    stack: dict[int, Any],
    x_BTD: jax.Array,
    branches: Sequence[Branch],
) -> jax.Array:
    """The residual stream after a stack's layers.

    Args:
      run: `(place, parameters, x_BTD, layer=..., branches=...) -> x_BTD`: a layer of a place in
        the round, which is a number, as the number of the layer is an array.
      stack: as of `stacked`.
      x_BTD: the residual stream before it.
      branches: adapters of the rows, of all layers.
    """
    size = len(stack)
    rounds = stacked_layers(stack) // size

    def one(x_BTD: jax.Array, given: tuple) -> tuple[jax.Array, None]:
        number, parameters, own = given
        for place in range(size):
            layer, of_layer = number * size + place, with_own(branches, own[place])
            x_BTD = run(place, parameters[place], x_BTD, layer=layer, branches=of_layer)
        return x_BTD, None

    given = (jnp.arange(rounds), stack, looped_branches(branches, rounds, size))
    return jax.lax.scan(one, x_BTD, given)[0]


def _kind(layer: Any) -> tuple:
    """What makes layers differ: their arrays' shapes and dtypes, and what these stand for."""
    leaves, structure = jax.tree.flatten(layer)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _joined(*leaves: Any) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
    return jnp.stack(leaves)


def _slice(index: int, leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[index]
