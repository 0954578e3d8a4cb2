"""The work of a round: every participant's shuffled and packed local training, in chunks."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from feddpa_jax.training.blocks import choose_shapes, fill, schedule
from feddpa_jax.training.costs import CPU_COSTS, Costs
from feddpa_jax.training.packing import PackedRow, Segment, local_updates, update_rows
from feddpa_jax.training.participation import sample_participants
from feddpa_jax.training.rows import Block, BlockShape, Chunk
from feddpa_jax.types import TokenizedExample, client_id

# About how many updates of a run are packed beforehand to choose the block shapes.
SAMPLED_UPDATES = 64
# With more clients than this, a part of the shards represents all.
SAMPLED_CLIENTS = 256


class Stopping(NamedTuple):
    """Early stopping: what a chunk's trainings are made of, epoch by epoch.

    Attributes:
      patience: epochs without a better loss on held-out examples after which a client stops.
      epochs: of a whole training.
      epoch: `(chunk, number, going)`: one epoch of those members that have not stopped.
      held_out: `(chunk, going)`: all held-out examples of these as one update.
    """

    patience: int
    epochs: int
    epoch: Callable[[Chunk, int, Collection[int]], Chunk]
    held_out: Callable[[Chunk, Collection[int]], Chunk]


class RoundData(NamedTuple):
    """What a round works on.

    Attributes:
      number: the round, from 0.
      participants: indexes of the clients that take part, ascending, [c].
      examples: each participant's number of training examples, [c].
      chunks: `chunks(phase)`: the participants' local trainings of one phase of this round; the
        phase's name seeds the shuffle.
      stopping: how clients' own trainings end early, if they do.
    """

    number: int
    participants: np.ndarray
    examples: np.ndarray
    chunks: Callable[[str], Iterable[Chunk]]
    stopping: Stopping | None = None


class _Work(NamedTuple):
    """What packs the rows of some updates of a client, and how many its training has in all."""

    rows: Callable[[], list[list[PackedRow]]]
    total: int


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """All clients' tokenized training examples, and how a local training goes over them.

    Attributes:
      names: the clients' names.
      examples: each client's examples.
      seed: of the run.
      epochs: passes over the data in a local training.
      batch_size: examples in an update.
      micro_batch_size: examples in a micro-batch; the loss is a mean over its response tokens.
      shuffle: a new order in every epoch.
      participation: fraction of the clients in a round.
      clients_per_step: clients trained at once; None for all.
      block_tokens: most tokens of a block on a shard.
      shards: over how many devices the clients are spread.
      costs: of rows, blocks and compilations there; block shapes follow them.
      patience: epochs without a better loss on held-out examples after which a client's own
        training stops; None: it does not.
      held_out: each client's examples for that.
    """

    names: tuple[str, ...]
    examples: tuple[tuple[TokenizedExample, ...], ...]
    seed: int
    epochs: int
    batch_size: int
    micro_batch_size: int
    shuffle: bool = True
    participation: float = 1.0
    clients_per_step: int | None = None
    block_tokens: int = 4096
    shards: int = 1
    costs: Costs = CPU_COSTS
    patience: int | None = None
    held_out: tuple[tuple[TokenizedExample, ...], ...] = ()

    @property
    def ids(self) -> list[int]:
        """The clients' numbers."""
        return [client_id(name) for name in self.names]

    def tokens(self, client: int) -> int:
        """Real tokens of one local training of a client."""
        return self.epochs * sum(len(example.tokens_T) for example in self.examples[client])

    def updates_of(self, client: int, number: int, phase: str) -> list[list[np.ndarray]]:
        """The updates of one client's local training in a phase of a round."""
        words = [self.seed, number, client_id(self.names[client]), client_id(phase)]
        return local_updates(
            len(self.examples[client]),
            epochs=self.epochs,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            rng=np.random.default_rng(words) if self.shuffle else None,
        )

    def participants(self, number: int) -> np.ndarray:
        """Indexes of the clients that take part in a round."""
        return sample_participants(
            self.ids, participation=self.participation, seed=self.seed, round_number=number
        )

    def shapes(self, rounds: int) -> tuple[BlockShape, ...]:
        """The block shapes of a run of `rounds` rounds, from a sample of the first one."""
        every = (*self.examples, *self.held_out)
        longest = max(len(e.tokens_T) for examples in every for e in examples)
        members = self._groups(self.participants(0))[0]
        every = self._shards(members)
        shards = every[:: -(-len(members) // SAMPLED_CLIENTS)]
        kept = max(4, SAMPLED_UPDATES // len(members))
        sample: list[list[list[list[Segment]]]] = []
        sampled = 0
        for shard in shards:
            sample.append([])
            for client in shard:
                updates = [
                    [Segment(self.examples[client][i], 1.0) for micro in update for i in micro]
                    for update in self.updates_of(client, 0, "global")[:kept]
                ]
                sampled += sum(len(s.example.tokens_T) for update in updates for s in update)
                sample[-1].append(updates)
        mean = sum(map(self.tokens, range(len(self.names)))) / len(self.names)
        total = rounds * len(self.participants(0)) * mean * len(shards) / len(every)
        return choose_shapes(
            sample,
            block_tokens=self.block_tokens,
            costs=self.costs,
            longest=longest,
            share=min(1.0, sampled / total),
        )

    def round(
        self, number: int, shapes: Sequence[BlockShape], *, everybody: bool = False
    ) -> RoundData:
        """What a round works on; with `everybody` all clients take part."""
        participants = (
            np.arange(len(self.names), dtype=np.int32) if everybody else self.participants(number)
        )
        stopping = None
        if self.patience is not None:
            stopping = Stopping(
                self.patience,
                self.epochs,
                functools.partial(self._epoch, len(participants), number, shapes),
                functools.partial(self._held_out, len(participants), shapes),
            )
        return RoundData(
            number=number,
            participants=participants,
            examples=np.array([len(self.examples[client]) for client in participants]),
            chunks=lambda phase: self.chunks(participants, number, phase, shapes),
            stopping=stopping,
        )

    def chunks(
        self, participants: np.ndarray, number: int, phase: str, shapes: Sequence[BlockShape]
    ) -> Iterator[Chunk]:
        """The participants' local trainings of one phase, chunk by chunk."""
        for group in self._groups(participants):

            def work_of(place: int, client: int) -> _Work:
                updates = self.updates_of(client, number, phase)
                return _Work(lambda: self._rows(place, client, updates, shapes), len(updates))

            yield self._chunk(len(participants), group, phase, shapes, work_of)

    def _epoch(
        self,
        participants: int,
        number: int,
        shapes: Sequence[BlockShape],
        chunk: Chunk,
        epoch: int,
        going: Collection[int],
    ) -> Chunk:
        """As of `Stopping.epoch`."""

        def work_of(place: int, client: int) -> _Work:
            updates = self.updates_of(client, number, chunk.phase)
            size = len(updates) // self.epochs
            own = updates[epoch * size : (epoch + 1) * size] if client in going else []
            return _Work(lambda: self._rows(place, client, own, shapes), len(updates))

        return self._chunk(participants, chunk.members, chunk.phase, shapes, work_of)

    def _held_out(
        self,
        participants: int,
        shapes: Sequence[BlockShape],
        chunk: Chunk,
        going: Collection[int],
    ) -> Chunk:
        """As of `Stopping.held_out`."""
        lengths = [shape.length for shape in shapes]

        def work_of(place: int, client: int) -> _Work:
            if client not in going:
                return _Work(list, 0)
            own = self.held_out[client]
            whole = [np.arange(len(own))]
            return _Work(lambda: [update_rows(place, own, whole, lengths, self.costs)], 1)

        return self._chunk(participants, chunk.members, chunk.phase, shapes, work_of)

    def _chunk(
        self,
        participants: int,
        group: np.ndarray,
        phase: str,
        shapes: Sequence[BlockShape],
        work_of: Callable[[int, int], _Work],
    ) -> Chunk:
        """The work of a group of clients, by place on its shard's client axis and client."""
        places = self.slots(participants) // self.shards  # on each shard's client axis
        id_C = np.zeros(self.shards * places, np.uint32)
        total_C = np.zeros(self.shards * places, np.int32)
        slot_of: dict[int, int] = {}
        work: list[list[_Work]] = []
        for s, shard in enumerate(self._shards(group)):
            work.append([])
            for place, client in enumerate(shard):
                slot = slot_of[client] = s * places + place
                own = work_of(place, client)
                id_C[slot] = client_id(self.names[client])
                total_C[slot] = own.total
                work[-1].append(own)
        return Chunk(
            members=group,
            slots=np.array([slot_of[client] for client in group.tolist()], np.int32),
            names=tuple(self.names[client] for client in group),
            phase=phase,
            id_C=id_C,
            total_C=total_C,
            blocks=self._blocks(work, places, shapes),
        )

    def slots(self, participants: int) -> int:
        """Places on the client axis where so many clients take part, all shards' together."""
        largest = min(participants, self.clients_per_step or participants)
        return -(-largest // self.shards) * self.shards

    def _groups(self, participants: np.ndarray) -> list[np.ndarray]:
        """The participants in groups that train at once."""
        size = self.clients_per_step or len(participants)
        return [participants[i : i + size] for i in range(0, len(participants), size)]

    def _shards(self, members: np.ndarray) -> list[list[int]]:
        """The members of a group by shard, with about the same work: the longest go first."""
        places = -(-len(members) // self.shards)
        shards: list[list[int]] = [[] for _ in range(self.shards)]
        load = [0] * self.shards
        for client in sorted(members.tolist(), key=lambda client: (-self.tokens(client), client)):
            least = min(
                (s for s in range(self.shards) if len(shards[s]) < places), key=lambda s: load[s]
            )
            shards[least].append(client)
            load[least] += self.tokens(client)
        return shards

    def _rows(
        self,
        place: int,
        client: int,
        updates: list[list[np.ndarray]],
        shapes: Sequence[BlockShape],
    ) -> list[list[PackedRow]]:
        lengths, own = [shape.length for shape in shapes], self.examples[client]
        return [update_rows(place, own, update, lengths, self.costs) for update in updates]

    def _blocks(
        self,
        work: Sequence[Sequence[_Work]],
        places: int,
        shapes: Sequence[BlockShape],
    ) -> Iterator[Block]:
        rows = [[own.rows() for own in shard] for shard in work]
        for planned in schedule(rows, {shape.length: shape for shape in shapes}):
            parts = [fill(rows, planned.shape)[0] for rows in planned.rows]
            ends_C = np.zeros(self.shards * places, bool)
            for s, ends in enumerate(planned.ends):
                ends_C[[s * places + place for place in ends]] = True
            yield Block(
                rows=jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts),
                ends_C=ends_C,
                real_tokens=sum(row.tokens for rows in planned.rows for row in rows),
                computed_tokens=self.shards * planned.shape.rows * planned.shape.length,
            )
