"""Federated methods: which parts there are, what each phase trains, what travels, how answers mix.

A method is a function from `Lora` to a `Method`, registered with what a run must know about it
before there is a base model:

    @METHODS.register(title="FedIT", answers_with="global")
    def fedit(lora):
        return Method(
            parts={"global": Part("server", lora.fresh)},
            phases=(Phase("global", train=("global",)),),
        )

Its other parameters are its options, set by `fed.options`; one that is named as a field of `fed`
has that field's value. Parts are trees {target: {leaf: array}}, and "part.leaf" names one leaf of
all targets of a part.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
import optax

from feddpa_jax.adapters.dual import MODES, adapters_repr
from feddpa_jax.adapters.lora import Adapter, bank_of
from feddpa_jax.adapters.mix import Mix, alone
from feddpa_jax.federated.clients import ClientParts
from feddpa_jax.federated.server import ServerStep
from feddpa_jax.registry import Registry
from feddpa_jax.short_repr import count_numbers, short_repr
from feddpa_jax.training.engine import PhaseMetrics
from feddpa_jax.training.step import Objective, Tree
from feddpa_jax.types import UserError

Metrics = dict[str, PhaseMetrics]


class FedState(NamedTuple):
    """The state of a federation between rounds.

    Attributes:
      server: what the server holds, by part: {target: {leaf: [L, ...]}}.
      clients: what each client holds, which no other client sees.

    Example:
      ```
      state = run.train()
      shared = state.server["global"]  # {target: {"a": [L, D, R], "b": [L, R, E]}}
      own = state.clients.take([0])["local"]  # {target: {"a": [1, L, D, R], ...}}
      ```
    """

    server: dict[str, Any]
    clients: ClientParts

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        numbers = {name: count_numbers(part) for name, part in self.server.items()}
        return short_repr(self, server=numbers, clients=self.clients)


class Lora(NamedTuple):
    """What a method knows of the adapters and of the federation.

    Attributes:
      fresh: a new adapter from a key: A uniform, B zero, rank `rank`.
      sizes: (in, out) of every adapted map, by target.
      layers: number of decoder layers L.
      rank: R, the largest of all clients'.
      alpha: LoRA alpha; a client's scale is alpha by its own rank.
      names: the clients' names.
      ranks: each client's rank, where `lora.ranks` gives them; else None.
    """

    fresh: Callable[[jax.Array], Adapter]
    sizes: Mapping[str, tuple[int, int]]
    layers: int
    rank: int
    alpha: float
    names: tuple[str, ...]
    ranks: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        clients, targets = len(self.names), tuple(self.sizes)
        return short_repr(
            self,
            targets=targets,
            layers=self.layers,
            rank=self.rank,
            alpha=self.alpha,
            clients=clients,
        )


class Part(NamedTuple):
    """A part of a method's state.

    Attributes:
      scope: who holds it: the "server", one for all; or each "client", one for itself.
      new: its value at the start, from a key. Of a client's part: the name of a server's part that
        it starts as a copy of; None if a phase makes it.
      change: shapes of what a round of so many participants makes new of a server's part, from
        their number (0 before the first), where that is less than its value; it is what travels.
    """

    scope: Literal["server", "client"]
    new: Callable[[jax.Array], Any] | str | None
    change: Callable[[int], Any] | None = None


Receive = Callable[[Mapping[str, Any], Mapping[str, Any], np.ndarray], Mapping[str, Any]]


class Search(NamedTuple):
    """How a phase finds the parts that it names without gradients.

    Attributes:
      examples: how many of a client's own it looks at: of those held out, else of those trained on.
      find: `(losses, start_C) -> found_C`: better values of the parts in `train`, on the host;
        `losses(values_C)` are the clients' mean losses on their examples, in nats, [C].
    """

    examples: int
    find: Callable[[Callable[[Tree], np.ndarray], Tree], Tree]


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """One local training of a round's participants, and what the server makes of it.

    Attributes:
      name: seeds the shuffle, and names the phase's losses.
      train: the parts in training, or single leaves as "part.leaf". Of a server's part every
        participant trains a copy.
      mix: how the parts add up in the forward pass; None: the part in training alone.
      beside: frozen parts that the mix or the penalty sees besides.
      start: client parts in training that start anew as a server's part.
      receive: `(server, own_C, members) -> {name: tree_C}`: what the server sends to each of some
        clients, if that is not the same for all; it is in training if `train` names it, else
        beside. None: the parts are sent as they are.
      penalty: as of `Objective`.
      search: finds the parts in `train` without gradients, instead of training them.
      sends: the leaves that a participant sends; None: the server's parts in training.
      reduce: what reaches the server: their "mean" by shares, their "sum", or a "stack" of all.
      upload: `(trained_C, own_C) -> tree_C`: what is sent, made of the trained leaves and of what
        the client had before; None: the trained leaves of `sends`.
      keep: `(trained_C, own_C, number) -> parts_C`: what a participant keeps of its own parts, on
        the host; None: those in training.
      server: makes new server parts of it; None: takes the mean as it is.
      optimizer: follows the change of the mean instead of taking it (see `server_optimizer.py`).
      when: whether the phase is in a round, from the round's number.
      everybody: all clients take part, whatever the round's participants.
      after: the phase follows the last round, once, for all clients.
      stream: which key of the round its dropout follows; None: the round's own.
    """

    name: str
    train: tuple[str, ...]
    mix: Mix | None = None
    beside: tuple[str, ...] = ()
    start: Mapping[str, str] = dataclasses.field(default_factory=dict)
    receive: Receive | None = None
    penalty: Callable[[Tree, Tree], jax.Array] | None = None
    search: Search | None = None
    sends: tuple[str, ...] | None = None
    reduce: Literal["mean", "sum", "stack"] = "mean"
    upload: Callable[[Tree, Tree], Tree] | None = None
    keep: Callable[[Tree, Tree, int], Tree] | None = None
    server: ServerStep | None = None
    optimizer: optax.GradientTransformation | None = None
    when: Callable[[int], bool] = lambda number: True
    everybody: bool = False
    after: bool = False
    stream: int | None = None

    @functools.cached_property
    def objective(self) -> Objective:
        """What its loss is; the engine compiles one step for it."""
        mix = alone(self.train[0].partition(".")[0]) if self.mix is None else self.mix
        return Objective(mix, self.penalty)


class Answers(NamedTuple):
    """What clients answer with.

    Attributes:
      global_C: the shared adapter, with a leading axis of 1, or of C where the server sends every
        client its own; None if there is none; {} if the own one is mixed with the bare base.
      local_C: the clients' own, [C, ...]; None if there are none (yet).
      others: by a mode of the method's own, the adapter that answers in it: [C or 1, ...].
      shared: all that other clients had a part in, which weighting rules may look at
        (`query_nll_BE`, `entropy_BE`): [C or 1, ...] each; () where that is `global_C` alone.
    """

    global_C: Adapter | None
    local_C: Adapter | None
    others: Mapping[str, Adapter] = MappingProxyType({})
    shared: tuple[Adapter, ...] = ()

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        return adapters_repr(self)


def dual_answers(
    server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray
) -> Answers:
    """The part "global" for all, and each client's part "local", as far as they are there."""
    del members
    shared = server.get("global")
    return Answers(None if shared is None else bank_of(shared), own_C.get("local"))


@dataclasses.dataclass(frozen=True)
class Method:
    """A federated method.

    Attributes:
      parts: the parts of its state, by name.
      phases: in the order of a round.
      answers: `(server, own_C, members) -> Answers`: what some clients answer with.
    """

    parts: Mapping[str, Part]
    phases: tuple[Phase, ...]
    answers: Callable[[Mapping[str, Any], Mapping[str, Any], np.ndarray], Answers] = dual_answers

    def phases_of(self, number: int, rounds: int) -> tuple[Phase, ...]:
        """The phases of a round; those after the last one have the number `rounds`."""
        if number >= rounds:
            return tuple(phase for phase in self.phases if phase.after)
        return tuple(phase for phase in self.phases if not phase.after and phase.when(number))


class Entry(NamedTuple):
    """A registered method.

    Attributes:
      build: makes it from `Lora` and its options.
      answers_with: the inference mode that it is judged by.
      personalizes: whether phases of all clients follow the last round.
      pooled: whether all clients' data are trained on as one client's.
      modes: inference modes of its own, besides `MODES`.
      ranks: whether clients may have different ranks (`lora.ranks`).
      title: its name in texts.
    """

    build: Callable[..., Method]
    answers_with: str = "instance"
    personalizes: bool = False
    pooled: bool = False
    modes: tuple[str, ...] = ()
    ranks: bool = False
    title: str = ""

    @property
    def known_modes(self) -> tuple[str, ...]:
        """All inference modes that an answer may be asked for in."""
        return (*MODES, *self.modes)

    def check_modes(self, method: str, field: str, modes: Iterable[str]) -> None:
        """Refuses modes that neither all methods nor this one have.

        Args:
          method: its name.
          field: that names the modes, for messages.
          modes: which.

        Raises:
          UserError: an unknown mode; the message lists the known ones.
        """
        for mode in modes:
            if mode not in self.known_modes:
                raise UserError(
                    f"{field}: {mode!r}: {method} has no such mode; there are "
                    f"{', '.join(map(repr, self.known_modes))}"
                )


# What stands for something else in the places and options of an export.
_TAKEN = ("mixed", "shared", "merged", "clients", *MODES)


def _entry(build: Any, **known: Any) -> Entry:
    if isinstance(build, Entry):
        return build._replace(**known)
    if not callable(build):
        raise TypeError("a method is a function of Lora")
    title = known.pop("title", "") or getattr(build, "__name__", str(build))
    entry = Entry(cast(Any, build), **known, title=title)
    for mode in entry.modes:
        if not re.fullmatch("[a-z][a-z0-9_]*", mode) or mode in _TAKEN:
            raise ValueError(
                f"modes: {mode!r}: a mode's name is lower-case letters, digits and _, and none of "
                f"{', '.join(_TAKEN)}"
            )
    if entry.answers_with not in entry.known_modes:
        raise ValueError(
            f"answers_with: {entry.answers_with!r} is no mode; there are "
            f"{', '.join(entry.known_modes)}"
        )
    return entry


METHODS: Registry[Entry] = Registry(
    "method",
    "fed.method",
    group="feddpa_jax.methods",
    modules=("feddpa_jax.federated",),
    wrap=_entry,
)
