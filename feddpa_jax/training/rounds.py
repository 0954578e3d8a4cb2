"""The work of a round: every participant's shuffled and packed local training, in chunks."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.training.blocks import choose_shapes
from feddpa_jax.training.chunks import Work, as_one, blocks_of, with_room
from feddpa_jax.training.costs import CPU_COSTS, Costs
from feddpa_jax.training.example_sizes import Sizes, sizes_of
from feddpa_jax.training.packing import Segment, local_updates
from feddpa_jax.training.participation import (
    ALWAYS,
    Availability,
    how_many,
    returning,
    sample_participants,
)
from feddpa_jax.training.prefetch import prefetched
from feddpa_jax.training.rows import BlockShape, Chunk
from feddpa_jax.training.stopping import Stopping
from feddpa_jax.types import TokenizedExample, client_id

# About how many updates of a run are packed beforehand to choose the block shapes.
SAMPLED_UPDATES = 64
# With more clients than this, a part of the shards represents all.
SAMPLED_CLIENTS = 256


class RoundData(NamedTuple):
    """What a round works on.

    Attributes:
      number: the round, from 0.
      participants: indexes of the clients that train, ascending, [c]: of those that take part, who
        does not drop out.
      examples: each participant's number of training examples, [c].
      chunks: `chunks(phase)`: the participants' local trainings of one phase of this round; the
        phase's name seeds the shuffle.
      few: `few(count)`: the same of one update over so many examples of each participant, for
        losses without a training.
      stopping: how clients' own trainings end early, if they do.
    """

    number: int
    participants: np.ndarray
    examples: np.ndarray
    chunks: Callable[[str], Iterable[Chunk]]
    few: Callable[[int], Iterable[Chunk]] = lambda count: ()
    stopping: Stopping | None = None


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """All clients' tokenized training examples, and how a local training goes over them.

    Attributes:
      names: the clients' names.
      examples: each client's examples; a sequence with the fields of `Sizes` is asked for
        those of the clients that take part alone.
      seed: of the run.
      epochs: passes over the data in a local training.
      batch_size: examples in an update.
      micro_batch_size: examples in a micro-batch; the loss is a mean over its response tokens.
      shuffle: a new order in every epoch.
      participation: fraction of the clients in a round.
      cohort: number of clients in a round, instead of the fraction.
      availability: when clients can take part.
      dropout: chance that a participant drops out of a round.
      clients_per_step: clients trained at once; None for all.
      block_tokens: most tokens of a block on a shard.
      shards: over how many devices the clients are spread.
      costs: of rows, blocks and compilations there; block shapes follow them.
      held_out: each client's examples that are not trained on, by its index.
      nothing_held: no client has any, and none need be asked.
      patience: epochs without a better loss on these after which a client's own training stops;
        None: it does not.
    """

    names: tuple[str, ...]
    examples: Sequence[Sequence[TokenizedExample]]
    seed: int
    epochs: int
    batch_size: int
    micro_batch_size: int
    shuffle: bool = True
    participation: float = 1.0
    cohort: int | None = None
    availability: Availability = ALWAYS
    dropout: float = 0.0
    clients_per_step: int | None = None
    block_tokens: int = 4096
    shards: int = 1
    costs: Costs = CPU_COSTS
    held_out: Callable[[int], Sequence[TokenizedExample]] = lambda client: ()
    patience: int | None = None
    nothing_held: bool = False

    @functools.cached_property
    def ids(self) -> tuple[int, ...]:
        """The clients' numbers."""
        return tuple(client_id(name) for name in self.names)

    @functools.cached_property
    def sizes(self) -> Sizes:
        """How much the clients have."""
        return sizes_of(self.examples)

    def tokens(self, client: int) -> int:
        """Real tokens of one local training of a client."""
        return self.epochs * int(self.sizes.tokens_C[client])

    def updates_of(self, client: int, number: int, phase: str) -> list[list[np.ndarray]]:
        """The updates of one client's local training in a phase of a round."""
        words = [self.seed, number, client_id(self.names[client]), client_id(phase)]
        return local_updates(
            int(self.sizes.counts_C[client]),
            epochs=self.epochs,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            rng=np.random.default_rng(words) if self.shuffle else None,
        )

    def participants(self, number: int) -> np.ndarray:
        """Indexes of the clients that take part in a round; of these, some may drop out."""
        return sample_participants(
            self.ids,
            participation=self.participation,
            cohort=self.cohort,
            availability=self.availability,
            seed=self.seed,
            round_number=number,
        )

    def returning(self, number: int) -> np.ndarray:
        """Indexes of a round's participants that do not drop out; perhaps nobody."""
        members, dropout = self.participants(number), self.dropout
        return returning(members, self.ids, dropout=dropout, seed=self.seed, round_number=number)

    @property
    def most(self) -> int:
        """How many clients take part in a round at most."""
        return how_many(len(self.names), self.participation, self.cohort)

    def shapes(self, rounds: int) -> tuple[BlockShape, ...]:
        """The block shapes of a run of `rounds` rounds, from a sample of the first one."""
        members = self._groups(self.participants(0))[0]
        every = self._shards(members)
        shards = every[:: -(-len(members) // SAMPLED_CLIENTS)]
        kept = max(4, SAMPLED_UPDATES // len(members))
        sample: list[list[list[list[Segment]]]] = []
        sampled = 0
        for shard in shards:
            sample.append([])
            for client in shard:
                own = self.examples[client]
                updates = [
                    [Segment(own[i], 1.0) for micro in update for i in micro]
                    for update in self.updates_of(client, 0, "global")[:kept]
                ]
                sampled += sum(len(s.example.tokens_T) for update in updates for s in update)
                sample[-1].append(updates)
        mean = self.epochs * int(self.sizes.tokens_C.sum()) / len(self.names)
        total = rounds * len(self.participants(0)) * mean * len(shards) / len(every)
        return choose_shapes(
            sample,
            block_tokens=self.block_tokens,
            costs=self.costs,
            longest=self.sizes.longest,
            share=min(1.0, sampled / total),
        )

    def round(
        self, number: int, shapes: Sequence[BlockShape], *, everybody: bool = False
    ) -> RoundData:
        """What a round works on; with `everybody` all clients take part, and nobody drops out."""
        participants = (
            np.arange(len(self.names), dtype=np.int32) if everybody else self.returning(number)
        )
        # As many places whoever is missing: another number of them is another program.
        count = len(participants) if everybody else self.most
        stopping = None
        if self.patience is not None:
            stopping = Stopping(
                self.patience,
                self.epochs,
                functools.partial(self._epoch, count, number, shapes),
                functools.partial(self._held_out, count, shapes),
            )
        return RoundData(
            number=number,
            participants=participants,
            examples=self.sizes.counts_C[participants],
            chunks=lambda phase: self.chunks(participants, number, phase, shapes, count),
            few=lambda examples: self.few(participants, examples, shapes, count),
            stopping=stopping,
        )

    def chunks(
        self,
        participants: np.ndarray,
        number: int,
        phase: str,
        shapes: Sequence[BlockShape],
        most: int = 1,
    ) -> Iterator[Chunk]:
        """The participants' local trainings of one phase, chunk by chunk; places for `most`.

        The next chunk is read and packed while the device works on one.
        """
        most = max(most, len(participants))

        def work_of(client: int) -> Work:
            updates = self.updates_of(client, number, phase)
            return Work(self.examples[client], updates, len(updates))

        groups = self._groups(participants)
        return prefetched(self._chunk(most, group, phase, shapes, work_of) for group in groups)

    def few(
        self,
        participants: np.ndarray,
        count: int,
        shapes: Sequence[BlockShape],
        most: int = 1,
    ) -> Iterator[Chunk]:
        """One update over a few examples of each participant, in one micro-batch, chunk by chunk.

        Args:
          participants: the clients, by index.
          count: how many of those held out; a client without any takes of those trained on, drawn
            by its name and the seed alone.
          shapes: the block shapes; a longer one is added if an example needs it.
          most: participants that places are made for, if these are fewer.
        """
        most = max(most, len(participants))

        def chosen(client: int) -> Sequence[TokenizedExample]:
            held, own = self.held_out(client), self.examples[client]
            if held:
                return held[:count]
            rng = np.random.default_rng([self.seed, client_id(self.names[client]), 2])
            return [own[i] for i in sorted(rng.permutation(len(own))[:count])]

        found = {client: chosen(client) for client in participants.tolist()}
        shapes = with_room(shapes, [e for own in found.values() for e in own])
        for group in self._groups(participants):
            yield self._chunk(most, group, "few", shapes, lambda client: as_one(found[client]))

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

        def work_of(client: int) -> Work:
            updates = self.updates_of(client, number, chunk.phase)
            size = len(updates) // self.epochs
            own = updates[epoch * size : (epoch + 1) * size] if client in going else []
            return Work(self.examples[client], own, len(updates))

        return self._chunk(participants, chunk.members, chunk.phase, shapes, work_of)

    def _held_out(
        self,
        participants: int,
        shapes: Sequence[BlockShape],
        chunk: Chunk,
        going: Collection[int],
    ) -> Chunk:
        """As of `Stopping.held_out`."""
        members = chunk.members.tolist()
        shapes = with_room(shapes, [e for client in members for e in self.held_out(client)])

        def work_of(client: int) -> Work:
            return as_one(self.held_out(client) if client in going else ())

        return self._chunk(participants, chunk.members, chunk.phase, shapes, work_of)

    def _chunk(
        self,
        participants: int,
        group: np.ndarray,
        phase: str,
        shapes: Sequence[BlockShape],
        work_of: Callable[[int], Work],
    ) -> Chunk:
        """The work of a group of a number of participants, which are trained at once."""
        places = self.slots(participants) // self.shards  # on each shard's client axis
        id_C = np.zeros(self.shards * places, np.uint32)
        total_C = np.zeros(self.shards * places, np.int32)
        slot_of: dict[int, int] = {}
        work: list[list[Work]] = []
        for s, shard in enumerate(self._shards(group)):
            work.append([work_of(client) for client in shard])
            for place, client in enumerate(shard):
                slot = slot_of[client] = s * places + place
                id_C[slot] = client_id(self.names[client])
                total_C[slot] = work[-1][place].total
        return Chunk(
            members=group,
            slots=np.array([slot_of[client] for client in group.tolist()], np.int32),
            names=tuple(self.names[client] for client in group),
            phase=phase,
            id_C=id_C,
            total_C=total_C,
            blocks=blocks_of(work, places, shapes, self.costs),
        )

    def slots(self, participants: int) -> int:
        """Places on the client axis where so many clients take part, all shards' together."""
        largest = min(participants, self.clients_per_step or participants)
        return -(-largest // self.shards) * self.shards

    def _groups(self, participants: np.ndarray) -> list[np.ndarray]:
        """The participants in groups that train at once."""
        size = self.clients_per_step or max(1, len(participants))
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
