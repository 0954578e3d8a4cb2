"""What every client holds for itself, in memory or on disk."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from feddpa_jax.short_repr import short_repr

# Most clients whose fresh parts are made at once: bounds the device's memory, and the programs.
MADE_AT_ONCE = 64

# {part: {target: {leaf: ...}}} on the host.
HostParts = dict[str, dict[str, dict[str, np.ndarray]]]


class Saved(NamedTuple):
    """A client's file: the round that wrote it, its bytes, and their sha256."""

    round_number: int
    size: int
    digest: str


class PartStore(Protocol):
    """Where clients' own parts lie."""

    def write_all(self, round_number: int, parts: Mapping[str, HostParts]) -> Mapping[str, Any]:
        """Keeps clients' parts as a round left them; returns what `read_all` needs, by name."""
        ...

    def read_all(self, saved: Mapping[str, Any]) -> list[HostParts]:
        """The parts of some clients, in their order."""
        ...


class MemoryStore:
    """Parts that lie in memory alone: what `saved` has of a client is its parts."""

    def write_all(
        self, round_number: int, parts: Mapping[str, HostParts]
    ) -> Mapping[str, HostParts]:
        """The parts themselves."""
        return dict(parts)

    def read_all(self, saved: Mapping[str, HostParts]) -> list[HostParts]:
        """The parts themselves."""
        return list(saved.values())


@dataclasses.dataclass(frozen=True)
class ClientParts:
    """All clients' own parts as a value: `put` returns another and leaves this one as it is.

    Attributes:
      names: the clients' names.
      store: where the parts lie.
      parts: the names of all parts that a client may have.
      fresh: by part, those of clients (by index) that have not trained yet, [c, ...]; a part that a
        phase makes is not here.
      saved: by client that has trained, what the store knows its parts by.
    """

    names: tuple[str, ...]
    store: PartStore
    parts: tuple[str, ...] = ()
    fresh: Mapping[str, Callable[[Sequence[int]], Any]] = dataclasses.field(default_factory=dict)
    saved: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        trained = len(self.saved)
        return short_repr(self, clients=len(self.names), parts=self.parts, trained=trained)

    def take(self, members: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """The parts of some clients as banks of host arrays, {part: {target: {leaf: [c, ...]}}}.

        A part that not all of them have is left out.
        """
        own = self._each(members)
        if not own:
            return {}
        shared = [part for part in own[0] if all(part in parts for parts in own)]
        return {
            part: jax.tree.map(lambda *leaves: np.stack(leaves), *(parts[part] for parts in own))
            for part in shared
        }

    def _each(self, members: Sequence[int] | np.ndarray) -> list[HostParts]:
        """The parts of some clients, of each all that it has."""
        new = [int(c) for c in members if self.names[c] not in self.saved]
        made: dict[int, HostParts] = {}
        for first in range(0, len(new) if self.fresh else 0, MADE_AT_ONCE):
            some = new[first : first + MADE_AT_ONCE]
            # Repeated up to a power of two: every other number is a program of its own.
            some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
            bank = jax.device_get({part: make(some) for part, make in self.fresh.items()})
            made |= {c: jax.tree.map(lambda leaf, at=i: leaf[at], bank) for i, c in enumerate(some)}
        old = [self.names[c] for c in members if self.names[c] in self.saved]
        there = {name: self.saved[name] for name in old}
        read = dict(zip(there, self.store.read_all(there), strict=True))
        return [
            read[self.names[c]] if self.names[c] in read else made.get(int(c), {}) for c in members
        ]

    def put(
        self, members: Sequence[int] | np.ndarray, parts_C: Mapping[str, Any], round_number: int
    ) -> "ClientParts":
        """With parts of some clients replaced, as a round left them; their others stay."""
        new = {
            self.names[c]: jax.tree.map(lambda leaf, at=place: np.asarray(leaf[at]), dict(parts_C))
            for place, c in enumerate(members)
        }
        if set(self.parts) - parts_C.keys():
            before = zip(new, self._each(members), strict=True)
            new = {name: {**own, **new[name]} for name, own in before}
        return dataclasses.replace(
            self, saved={**self.saved, **self.store.write_all(round_number, new)}
        )

    def all(self) -> dict[str, Any]:
        """Every client's parts, {part: {target: {leaf: [C, ...]}}}."""
        return self.take(range(len(self.names)))
