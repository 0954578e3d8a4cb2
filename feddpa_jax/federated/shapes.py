"""What a phase's programs are compiled for: the shapes of its leaves, of one client."""

from typing import Any

import jax
import numpy as np

from feddpa_jax.federated.leaves import sort_leaves
from feddpa_jax.federated.method import Method, Phase
from feddpa_jax.training.step import Frozen, Tree


def part_shapes(method: Method) -> dict[str, Any]:
    """The shapes of every part's value, of one client's where clients hold it."""
    key = jax.random.key(0)
    found = {
        name: jax.eval_shape(part.new, key)
        for name, part in method.parts.items()
        if callable(part.new)
    }
    copied = {n: part.new for n, part in method.parts.items() if isinstance(part.new, str)}
    found |= {name: found[source] for name, source in copied.items()}
    for phase in method.phases:
        for made, source in phase.start.items():
            found.setdefault(made, found[source])
    return found


def received_shapes(method: Method, phase: Phase) -> dict[str, Any]:
    """The shapes of what the server sends to each client of a phase alone, by name."""
    if phase.receive is None:
        return {}
    receive, (server, own) = phase.receive, _by_scope(method)
    bank_1 = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), own)
    found = jax.eval_shape(lambda server, own: receive(server, own, np.array([0])), server, bank_1)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), dict(found))


def phase_shapes(method: Method, phase: Phase) -> tuple[Tree, Frozen]:
    """Shapes of the leaves in training, and of those beside them, without a client axis."""
    server, own = _by_scope(method)
    leaves = sort_leaves(method, phase, server, own, received_shapes(method, phase))
    return {**leaves.copied, **leaves.banked}, Frozen(leaves.shared, leaves.beside)


def _by_scope(method: Method) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes of the server's parts, and of the clients' own."""
    found = part_shapes(method)
    server = {n: found[n] for n, part in method.parts.items() if part.scope == "server"}
    return server, {n: found[n] for n in found if n not in server}
