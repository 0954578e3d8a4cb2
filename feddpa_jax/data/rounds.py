"""The work of a round: every participant's shuffled and packed local training, in chunks."""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from feddpa_jax.data.batching import (
    BlockShape,
    PackedRow,
    Segment,
    choose_shape,
    fill,
    local_updates,
    split_blocks,
    update_rows,
)
from feddpa_jax.fed.method import RoundData
from feddpa_jax.fed.participation import sample_participants
from feddpa_jax.fed.rows import Chunk, Update
from feddpa_jax.types import TokenizedExample

# So many updates of a run are packed beforehand to choose the block shape.
SAMPLED_UPDATES = 128


def client_id(name: str) -> int:
    """A number that follows from a client's name alone; its randomness follows from it."""
    return zlib.crc32(name.encode())


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """All clients' tokenized training examples, and how a local training goes over them.

    Attributes:
      names: the clients' names.
      examples: each client's examples.
      seed: of the run.
      epochs: passes over the data in a local training.
      batch_size: examples an update.
      micro_batch_size: examples a micro-batch, over whose response tokens the loss is a mean.
      shuffle: a new order in every epoch.
      participation: fraction of the clients in a round.
      clients_per_step: clients trained at once; None for all.
      block_tokens: most tokens of a block.
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

    @property
    def ids(self) -> list[int]:
        """The clients' numbers."""
        return [client_id(name) for name in self.names]

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

    def shape(self, rounds: int) -> BlockShape:
        """The block shape of a run of so many rounds, from a sample of its updates."""
        longest = max(len(e.tokens_T) for examples in self.examples for e in examples)
        sample: list[list[list[Segment]]] = []
        for number in range(rounds):
            for members in self.chunk_members(self.participants(number)):
                training = [self.updates_of(client, number, "global") for client in members]
                for u in range(max(map(len, training))):
                    sample.append(
                        [
                            [
                                Segment(self.examples[client][i], 1.0)
                                for micro in updates[u]
                                for i in micro
                            ]
                            if u < len(updates)
                            else []
                            for client, updates in zip(members, training, strict=True)
                        ]
                    )
                    if len(sample) == SAMPLED_UPDATES:
                        return choose_shape(sample, self.block_tokens, longest)
        return choose_shape(sample, self.block_tokens, longest)

    def participants(self, number: int) -> np.ndarray:
        """Indexes of the clients that take part in a round."""
        return sample_participants(
            self.ids, participation=self.participation, seed=self.seed, round_number=number
        )

    def chunk_members(self, participants: np.ndarray) -> list[np.ndarray]:
        """The participants in groups that train at once."""
        size = self.clients_per_step or len(participants)
        return [participants[i : i + size] for i in range(0, len(participants), size)]

    def round(self, number: int, shape: BlockShape, *, everybody: bool = False) -> RoundData:
        """What a round works on; with `everybody` all clients take part."""
        participants = (
            np.arange(len(self.names), dtype=np.int32) if everybody else self.participants(number)
        )
        return RoundData(
            number=number,
            participants=participants,
            examples=np.array([len(self.examples[client]) for client in participants]),
            chunks=lambda phase: self.chunks(participants, number, phase, shape),
        )

    def chunks(
        self, participants: np.ndarray, number: int, phase: str, shape: BlockShape
    ) -> list[Chunk]:
        """The participants' local trainings of one phase, chunk by chunk."""
        size = min(self.clients_per_step or len(participants), len(participants))
        chunks, done = [], 0
        for members in self.chunk_members(participants):
            training = [self.updates_of(client, number, phase) for client in members]
            id_C, total_C = np.zeros(size, np.uint32), np.zeros(size, np.int32)
            id_C[: len(members)] = [client_id(self.names[client]) for client in members]
            total_C[: len(members)] = [len(updates) for updates in training]
            chunks.append(
                Chunk(
                    members=np.arange(done, done + len(members), dtype=np.int32),
                    names=tuple(self.names[client] for client in members),
                    phase=phase,
                    id_C=id_C,
                    total_C=total_C,
                    updates=self._updates(members, training, shape),
                )
            )
            done += len(members)
        return chunks

    def _updates(
        self, members: np.ndarray, training: Sequence[list[list[np.ndarray]]], shape: BlockShape
    ) -> Iterator[Update]:
        for u in range(max(map(len, training))):
            rows: list[PackedRow] = []
            for c, (client, updates) in enumerate(zip(members, training, strict=True)):
                if u < len(updates):
                    rows += update_rows(c, self.examples[client], updates[u], shape.length)
            blocks = [fill(block, shape)[0] for block in split_blocks(rows, shape)]
            real = sum(len(s.example.tokens_T) for row in rows for s in row.segments)
            yield Update(blocks, real, len(blocks) * shape.rows * shape.length)

    def tokens_a_training(self) -> int:
        """Real tokens of one local training of all clients together."""
        return self.epochs * sum(
            len(example.tokens_T) for examples in self.examples for example in examples
        )
