"""Leaves of parts by name: "part" for a whole part, "part.leaf" for one leaf of all its targets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feddpa_jax.federated.method import Method, Phase


class Sorted(NamedTuple):
    """What a phase works on, each a tree {part: {target: {leaf: ...}}}.

    Attributes:
      copied: in training, a copy of the same for every client; [L, ...].
      banked: in training, each client's own; [c, L, ...].
      shared: frozen, the same for every client; [L, ...].
      beside: frozen, each client's own; [c, L, ...].
    """

    copied: dict[str, Any]
    banked: dict[str, Any]
    shared: dict[str, Any]
    beside: dict[str, Any]


def sort_leaves(
    method: Method,
    phase: Phase,
    server: Mapping[str, Any],
    own_C: Mapping[str, Any],
    received: Mapping[str, Any],
) -> Sorted:
    """The leaves of a phase by what becomes of them.

    Args:
      method: whose parts they are.
      phase: says which train, and which lie beside them.
      server: the server's parts.
      own_C: the clients' own, of those that train.
      received: what the server sends to each of them.
    """
    found = Sorted({}, {}, {}, {})

    def source(part: str) -> tuple[Any, bool]:
        """A part's tree, and whether it is each client's own."""
        if part in received:
            return received[part], True
        if part in phase.start:
            return server[phase.start[part]], False
        if method.parts[part].scope == "server":
            return server[part], False
        return own_C[part], True

    trained = by_part(phase.train)
    for part, leaves in trained.items():
        tree, own = source(part)
        chosen, rest = split(tree, leaves)
        (found.banked if own else found.copied)[part] = chosen
        if rest:
            (found.beside if own else found.shared)[part] = rest
    for part in [*phase.beside, *(part for part in received if part not in trained)]:
        # The incoming part stays beside its trained copies, where the phase asks for it.
        if part in received:
            found.beside[part] = received[part]
        elif method.parts[part].scope == "server":
            found.shared[part] = server[part]
        else:
            found.beside[part] = own_C[part]
    return found


def by_part(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The leaves that names ask for, by part; none where the whole part is meant.

    >>> by_part(["global.a", "global.b", "local"])
    {'global': ('a', 'b'), 'local': ()}
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        part, _, leaf = name.partition(".")
        found[part] = (*found.get(part, ()), leaf) if leaf else ()
    return found


def split(tree: Any, leaves: Sequence[str]) -> tuple[Any, Any]:
    """A part's leaves of some names, all if there is none; and the others."""
    if not leaves:
        return tree, {}
    sides: list[Any] = []
    for wanted in (True, False):
        side = {
            target: {name: array for name, array in own.items() if (name in leaves) == wanted}
            for target, own in tree.items()
        }
        sides.append({target: own for target, own in side.items() if own})
    return sides[0], sides[1]


def pick(parts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The leaves of these names, as a tree of parts."""
    return {part: split(parts[part], leaves)[0] for part, leaves in by_part(names).items()}


def sends(method: Method, phase: Phase) -> tuple[str, ...]:
    """The leaves that a participant of a phase sends."""
    if phase.sends is not None:
        return phase.sends
    return tuple(
        name for name in phase.train if method.parts[name.partition(".")[0]].scope == "server"
    )


def trains_own(method: Method, phase: Phase) -> bool:
    """Whether a phase trains parts of the clients' own; a search is no training."""
    return phase.search is None and any(
        method.parts[part].scope == "client" for part in by_part(phase.train)
    )


def sends_own_parts(method: Method) -> bool:
    """Whether participants send the server parts, or leaves, that are their own."""
    return any(
        method.parts[part].scope == "client"
        for phase in method.phases
        for part in by_part(sends(method, phase))
        if part in method.parts
    )
