"""Leave-one-out means: what a client receives is the mean of all the others' last adapters.

    rest[k] = (sum - last_k) / (n - 1),      or sum / n if k has sent nothing,

where the server holds `sum`, of what each client sent last, and n, how many have sent anything. A
client sends the difference to its last adapter, so the server needs no adapter of any client alone,
and who is absent goes on to count with what it sent last.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.federated.server import Moment


def no_count(key: jax.Array) -> Any:
    """A part that is one number, 0: of the server, n; of a client, whether it has sent anything."""
    del key
    return {"all": {"count": jnp.zeros(())}}


def rest_of(total: Any, senders: Any, last_C: Any, sent_C: Any) -> Any:
    """The mean of the others' last adapters, for each of some clients; zero if there are none.

    Args:
      total: the sum, {target: {leaf: [L, ...]}}.
      senders: n, from `no_count`.
      last_C: what each client sent last, {target: {leaf: [C, L, ...]}}.
      sent_C: whether it has, from `no_count`.

    Returns:
      {target: {leaf: [C, L, ...]}}.
    """
    has_C = jnp.asarray(sent_C["all"]["count"])
    others_C = senders["all"]["count"] - has_C

    def mean(total: jax.Array, last_C: jax.Array) -> jax.Array:
        others = _wide(others_C, last_C)
        rest_C = (total[None] - jnp.where(_wide(has_C, last_C) > 0.0, last_C, 0.0)) / others
        return jnp.where(others > 0.0, rest_C, 0.0)

    return jax.tree.map(mean, total, last_C)


def change_of(new_C: Any, last_C: Any, sent_C: Any) -> dict[str, Any]:
    """What clients send: the difference to what they sent last, and 1 if they had sent nothing."""
    has_C = sent_C["all"]["count"]

    def change(new_C: jax.Array, last_C: jax.Array) -> jax.Array:
        return new_C - jnp.where(_wide(has_C, last_C) > 0.0, last_C, 0.0)

    changes = jax.tree.map(change, new_C, last_C)
    return {"sum": changes, "senders": {"all": {"count": 1.0 - has_C}}}


def have_sent(sent_C: Any) -> Any:
    """The clients' part of `no_count` once they have sent something."""
    return jax.tree.map(np.ones_like, sent_C)


def add_up(sent: Any, server: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
    """A server step: everything that was sent is added to the sum and the count."""
    del moment
    return {name: jax.tree.map(jnp.add, server[name], tree) for name, tree in sent.items()}


def _wide(x_C: jax.Array, leaf_C: jax.Array) -> jax.Array:
    """[C] as [C, 1, ...], of as many axes as a leaf."""
    return x_C.reshape(-1, *[1] * (leaf_C.ndim - 1))
