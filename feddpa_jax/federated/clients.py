"""Every client's own adapter, in memory or on disk."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from feddpa_jax.adapters.lora import Adapter

# {target: {"a": ..., "b": ...}} on the host.
HostAdapter = dict[str, dict[str, np.ndarray]]


class Saved(NamedTuple):
    """A client's file: the round that wrote it, its bytes, and their sha256."""

    round_number: int
    size: int
    digest: str


class AdapterStore(Protocol):
    """Where clients' own adapters lie."""

    def write_all(
        self, round_number: int, adapters: Mapping[str, HostAdapter]
    ) -> Mapping[str, Any]:
        """Keeps clients' adapters as a round left them; returns what `read_all` needs, by name."""
        ...

    def read_all(self, saved: Mapping[str, Any]) -> list[HostAdapter]:
        """The adapters of some clients, in their order."""
        ...


class MemoryStore:
    """Adapters that lie in memory alone: what `saved` has of a client is its adapter."""

    def write_all(
        self, round_number: int, adapters: Mapping[str, HostAdapter]
    ) -> Mapping[str, HostAdapter]:
        """The adapters themselves."""
        return dict(adapters)

    def read_all(self, saved: Mapping[str, HostAdapter]) -> list[HostAdapter]:
        """The adapters themselves."""
        return list(saved.values())


@dataclasses.dataclass(frozen=True)
class LocalAdapters:
    """All clients' local adapters as a value: `put` returns another and leaves this one as it is.

    Attributes:
      names: the clients' names.
      store: where they lie.
      fresh: the adapters of clients (by index) that have not trained yet, [c, ...]; None if every
        client has trained.
      saved: by client that has, what the store knows its adapter by.
    """

    names: tuple[str, ...]
    store: AdapterStore
    fresh: Callable[[Sequence[int]], Adapter] | None
    saved: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def take(self, members: Sequence[int] | np.ndarray) -> Adapter:
        """The adapters of some clients as a bank of host arrays, [c, ...]."""
        new = [int(c) for c in members if self.names[c] not in self.saved]
        made: dict[int, HostAdapter] = {}
        if new:
            assert self.fresh is not None
            bank = jax.device_get(self.fresh(new))
            made = {c: jax.tree.map(lambda leaf, at=i: leaf[at], bank) for i, c in enumerate(new)}
        old = [self.names[c] for c in members if self.names[c] in self.saved]
        there = {name: self.saved[name] for name in old}
        read = dict(zip(there, self.store.read_all(there), strict=True))
        own = [made[int(c)] if int(c) in made else read[self.names[c]] for c in members]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *own)

    def put(
        self, members: Sequence[int] | np.ndarray, adapters_C: Adapter, round_number: int
    ) -> "LocalAdapters":
        """With the adapters of some clients replaced, as a round left them."""
        new = {
            self.names[c]: jax.tree.map(lambda leaf, at=place: np.asarray(leaf[at]), adapters_C)
            for place, c in enumerate(members)
        }
        return dataclasses.replace(
            self, saved={**self.saved, **self.store.write_all(round_number, new)}
        )

    def all(self) -> Adapter:
        """Every client's adapter, [C, ...]."""
        return self.take(range(len(self.names)))
