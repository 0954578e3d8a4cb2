"""What a federated method is: pure functions on a state, and what they are given."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.fed.aggregate import Aggregate
from feddpa_jax.fed.engine import Engine, PhaseMetrics
from feddpa_jax.fed.rows import Chunk


@flax.struct.dataclass
class FedState:
    """What a federation carries from round to round.

    Attributes:
      global_: the adapter that all clients share, or None if the method has none.
      local_C: every client's own adapter, or None if the method has none (yet).
    """

    global_: Adapter | None
    local_C: Adapter | None


class RoundData(NamedTuple):
    """What a round works on.

    Attributes:
      number: the round, from 0.
      participants: indexes of the clients that take part, ascending, [c].
      examples: each participant's number of training examples, [c].
      chunks: `chunks(phase)`: the participants' local trainings of one phase of this round; the
        phase's name seeds the shuffle.
    """

    number: int
    participants: np.ndarray
    examples: np.ndarray
    chunks: Callable[[str], Sequence[Chunk]]


Metrics = dict[str, PhaseMetrics]


class Parts(NamedTuple):
    """What methods are built from.

    Attributes:
      engine: trains many clients' adapters at once.
      new_adapter: a fresh adapter from a key.
      aggregate: the server's average.
    """

    engine: Engine
    new_adapter: Callable[[jax.Array], Adapter]
    aggregate: Aggregate


class Method(NamedTuple):
    """A federated method.

    Attributes:
      init: `(key, id_C) -> FedState`.
      round: `(state, data, *, key) -> (state, metrics)`.
      personalize: same signature; one extra round of all clients after the last, or None.
    """

    init: Callable[..., FedState]
    round: Callable[..., tuple[FedState, Metrics]]
    personalize: Callable[..., tuple[FedState, Metrics]] | None = None


def new_adapters(
    new_adapter: Callable[[jax.Array], Adapter], key: jax.Array, id_C: jax.Array
) -> Adapter:
    """A fresh adapter for every client, from the key and its id alone."""
    return jax.vmap(lambda ident: new_adapter(jax.random.fold_in(key, ident)))(id_C)


def copies(adapter: Adapter, count: int) -> Adapter:
    """The same adapter for `count` clients."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), adapter)


def need(adapter: Adapter | None) -> Adapter:
    """An adapter that the method's own `init` or `personalize` has put into the state."""
    assert adapter is not None, "the state lacks an adapter that this method needs"
    return adapter


def put(adapters_C: Adapter, members: np.ndarray, new: Adapter) -> Adapter:
    """All adapters, with those of some clients replaced; the others are untouched."""
    return jax.tree.map(lambda leaf, part: leaf.at[members].set(part), adapters_C, new)


def global_phase(
    parts: Parts, global_: Adapter, data: RoundData, *, key: jax.Array
) -> tuple[Adapter, PhaseMetrics]:
    """Every participant trains its copy of the global adapter; the server averages the copies."""
    copies_C = copies(global_, len(data.participants))
    copies_C, metrics = parts.engine.train(copies_C, data.chunks("global"), key=key)
    return parts.aggregate(copies_C, data.examples), metrics
