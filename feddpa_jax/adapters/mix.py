"""A mix: how the banks of a method's parts add up in a forward pass of training.

A mix is a pure function from the parts of a phase, by name, to terms:

    def mix(parts):                                  # y = x W + s * ((1 - a) global + a own)
        return [Term(parts["global"], 0.5), Term(parts["local"], 0.5)]

Every leaf of a part has a leading axis: C, one for each client, or 1 where all share it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from feddpa_jax.adapters.lora import Adapter, Branch

# {part: {target: {leaf: array}}}.
Parts = Mapping[str, Any]


class Term(NamedTuple):
    """One adapter's bank and how much of it a forward pass takes.

    Attributes:
      bank: {target: {"a": [C, L, D, R], "b": [C, L, R, E]}}, and "gate": [C, L, D, K] of a routed
        one.
      weight: a number; or [C], each client's; or [C, L], each client's at each layer. C may be 1.
        Gradients flow into trained weights.
      detached: no gradient flows through the term's output.
      dropout: whether the phase's dropout falls on its input; not where it stands for the base.

    >>> Term({}, 0.5).detached
    False
    """

    bank: Adapter
    weight: float | Float[Array, "C"] | Float[Array, "C L"] = 1.0
    detached: bool = False
    dropout: bool = True


Mix = Callable[[Parts], Sequence[Term]]


def alone(part: str) -> Mix:
    """The mix of one part at full weight."""
    return lambda parts: [Term(parts[part])]


def factors(part_of_leaf: Mapping[str, Adapter]) -> Adapter:
    """One adapter whose leaves are different parts', as `factors({"a": shared, "b": own})`."""
    targets = next(iter(part_of_leaf.values()))
    return {
        target: {leaf: part[target][leaf] for leaf, part in part_of_leaf.items()}
        for target in targets
    }


def side_by_side(experts: Sequence[Adapter], gate: Adapter | None = None) -> Adapter:
    """One adapter of all ranks' sum: A = [A_1 A_2 ...], B = [B_1; B_2; ...].

    Args:
      experts: banks of the same targets; an expert that all clients share has a leading axis of 1.
      gate: {target: {"gate": [C, L, D, K]}}, a router over them (see `router.py`), if there is one;
        the experts have the same rank then.
    """

    def joined(target: str, leaf: str, axis: int) -> jax.Array:
        leaves = [expert[target][leaf] for expert in experts]
        clients = max(own.shape[0] for own in leaves)
        wide = [jnp.broadcast_to(own, (clients, *own.shape[1:])) for own in leaves]
        return jnp.concatenate(wide, axis=axis)

    routers = {} if gate is None else gate
    return {
        target: {
            "a": joined(target, "a", -1),
            "b": joined(target, "b", -2),
            **routers.get(target, {}),
        }
        for target in experts[0]
    }


def branches_of(
    terms: Sequence[Term],
    client_B: Int[Array, "B"],
    *,
    scale: float,
    key_B2: UInt[Array, "B 2"] | None = None,
    rate: float = 0.0,
) -> tuple[Branch, ...]:
    """The branches of a forward pass, of which each has its own dropout mask.

    Args:
      terms: of a mix.
      client_B: the client of each row.
      scale: LoRA scale, alpha / rank.
      key_B2: dropout key words of each row, or None for none.
      rate: dropout probability.
    """
    return tuple(
        Branch(
            term.bank,
            client_B,
            _weight(term.weight, client_B),
            key_B2 if term.dropout else None,
            scale,
            rate,
            term.detached,
            place,
        )
        for place, term in enumerate(terms)
    )


def _weight(weight: Any, client_B: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
    """A term's weight for every row; as a tuple, each layer's."""
    weight = jnp.asarray(weight, jnp.float32)
    if weight.ndim == 0:
        return jnp.full(client_B.shape, weight)
    own = weight[client_B] if weight.shape[0] > 1 else jnp.repeat(weight, client_B.shape[0], axis=0)
    return own if own.ndim == 1 else tuple(jnp.unstack(own, axis=1))
