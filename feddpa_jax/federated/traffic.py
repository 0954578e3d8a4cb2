"""What a round's participants receive and send, in bytes; it follows from the method's leaves.

Who drops out has received what the others have, and sends nothing.
"""

from typing import Any

import jax
import numpy as np

from feddpa_jax.federated.leaves import by_part, pick, sends
from feddpa_jax.federated.method import Lora, Method, Phase
from feddpa_jax.federated.shapes import part_shapes, received_shapes


def traffic(
    method: Method,
    lora: Lora,
    phases: tuple[Phase, ...],
    members: np.ndarray,
    before: tuple[Phase, ...] | None = None,
    *,
    returned: np.ndarray | None = None,
    senders: int | None = None,
) -> tuple[int, int]:
    """Bytes that a participant of a round receives, and that one sends who does not drop out.

    Both are means over unequal ranks; nobody sends anything where all drop out.

    A leaf counts once a round, whatever the number of phases that read it, and is received if the
    round before has changed it: so much a client needs that took part in that. A leaf that no phase
    sends, and no server step makes, follows from the seed and never travels.

    Args:
      method: whose they are.
      lora: the largest rank, and each client's.
      phases: of the round.
      members: the participants, by index.
      before: the phases of the round before; None: the same, in a first round.
      returned: the participants that do not drop out, by index; all if None.
      senders: how many did not in the round before; None: as many as take part in this one.
    """
    returned = members if returned is None else returned
    shapes = part_shapes(method)
    for name, part in method.parts.items():
        if part.change is not None:
            count = 0 if before is None else len(members) if senders is None else senders
            shapes[name] = jax.eval_shape(lambda make=part.change, count=count: make(count))
    changing = _changing(method, phases if before is None else before)
    received: dict[str, Any] = {}
    sent: dict[str, Any] = {}
    for phase in phases:
        shared = [*by_part(phase.train), *phase.beside, *phase.start.values()]
        own = received_shapes(method, phase)
        for part in shared:
            if part in changing and part not in own:
                received |= pick({part: shapes[part]}, changing[part])
        received |= own
        sent |= pick({**shapes, **own}, sends(method, phase))
    return round(_share(lora, members) * _bytes(received)), round(
        _share(lora, returned) * _bytes(sent)
    )


def _share(lora: Lora, members: np.ndarray) -> float:
    """How much of the largest rank clients have in the mean; 0 of nobody."""
    if lora.ranks is None or not len(members):
        return float(len(members) > 0)
    return float(np.mean(np.array(lora.ranks)[members])) / lora.rank


def _changing(method: Method, phases: tuple[Phase, ...]) -> dict[str, tuple[str, ...]]:
    """The leaves of the server's parts that the phases of a round change, by part."""
    found: dict[str, tuple[str, ...]] = {}
    for phase in phases:
        if phase.server is not None:
            # What a step of its own makes is not known here: all that the server holds.
            found |= {n: (n,) for n, part in method.parts.items() if part.scope == "server"}
        for name in sends(method, phase):
            part = name.partition(".")[0]
            if method.parts[part].scope == "server":
                found[part] = (*found.get(part, ()), name)
    return found


def _bytes(tree: Any) -> int:
    # A number of each client's own is no adapter: the client knows it.
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
