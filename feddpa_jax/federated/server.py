"""Server steps: what the server makes of what a round's participants send.

A server step is a pure function `(sent, server, moment) -> {part: new value}`; the parts that it
does not return stay as they are. Sums over the clients are one all-reduce over a mesh, before it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Uploads(NamedTuple):
    """All that participants sent, one after the other.

    Attributes:
      parts_K: {part: {target: {leaf: [K, L, ...]}}}, on the host.
      share_K: each one's share in an average; they add up to 1.
      members: the clients that sent it, by index: participants that did not drop out.
    """

    parts_K: dict[str, Any]
    share_K: np.ndarray
    members: np.ndarray


class Moment(NamedTuple):
    """When a server step happens.

    Attributes:
      number: the round.
      key: of the server's randomness in this phase of this round.
      members: the clients that sent something, by index.
    """

    number: int
    key: jax.Array
    members: np.ndarray


# The mean or the sum of the leaves sent, or all `Uploads`, as the phase's `reduce` says.
Sent = Any
ServerStep = Callable[[Sent, Mapping[str, Any], Moment], dict[str, Any]]


def take_mean(sent: Sent, server: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
    """Every leaf that was sent becomes the mean; the others stay."""
    del moment
    return {part: replaced(server[part], tree) for part, tree in sent.items()}


def replaced(tree: Any, leaves: Any) -> Any:
    """A part's tree with some of its leaves replaced."""
    return {
        target: {**own, **leaves[target]} if target in leaves else own
        for target, own in tree.items()
    }
