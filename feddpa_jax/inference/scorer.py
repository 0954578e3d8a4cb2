"""Teacher-forced scores of many (client, instance, mix) requests in packed blocks.

One forward pass gives an example's response likelihood, whether greedy decoding would reproduce the
response (it does if and only if the argmax is the target at every response position), and what the
model computes of the prompt before it sees the response: embeddings, and the entropy of the
answer's first token.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import PartitionSpec

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.token_gate import TokenGate, Weight, gates_of_rows
from feddpa_jax.devices.mesh import CLIENTS, mesh_of, put, shards_of
from feddpa_jax.inference.score_block import Prompts, score_block, spec_of
from feddpa_jax.models.decoder import Model
from feddpa_jax.training.blocks import Placed, choose_shapes, fill, schedule
from feddpa_jax.training.costs import Costs, costs_on
from feddpa_jax.training.packing import PackedRow, Segment, pack_rows
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import TokenizedExample

# About how many examples block shapes are chosen on.
SAMPLED = 512


class Request(NamedTuple):
    """An example to be scored under a client's adapters: g times global, l times local.

    Weights are numbers, or [L]: each layer's own; or gates of tokens, the same for all requests of
    the client.
    """

    client: int
    example: TokenizedExample
    global_weight: Weight
    local_weight: Weight


@dataclasses.dataclass(frozen=True)
class Scores:
    """Results in the order of the requests, I of them.

    Attributes:
      nll_I: mean negative log-likelihood of the response tokens, in nats.
      greedy_I: whether the argmax is the target at every response position.
      entropy_I: entropy of the first response token's distribution, in nats.
      last_ILD: hidden state at the last prompt token, after each of the layers asked for.
      mean_ILD: mean of the hidden states over the prompt, likewise.
      gated_IL: mean of a gate's weight over the prompt in every layer; None if there are no gates.
      token_nll_IP: negative log-likelihood of every response token, in nats; 0 behind the last.
        None if it was not asked for.
    """

    nll_I: np.ndarray
    greedy_I: np.ndarray
    entropy_I: np.ndarray
    last_ILD: np.ndarray
    mean_ILD: np.ndarray
    gated_IL: np.ndarray | None = None
    token_nll_IP: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> "Scores":
        """The results of these requests, in this order."""
        found = {
            field.name: part[rows]
            for field in dataclasses.fields(self)
            if (part := getattr(self, field.name)) is not None
        }
        return Scores(**found)


def empty_token_nll(requests: Sequence[Request]) -> np.ndarray:
    """Zeros for every response token, [I, P], as many for all as the longest response has."""
    longest = max((len(r.example.tokens_T) - r.example.prompt_length for r in requests), default=0)
    return np.zeros((len(requests), longest), np.float32)


class Scoring(Protocol):
    """Scores requests, see `Scorer`."""

    @property
    def model(self) -> Model:
        """The base."""
        ...

    @property
    def adapters(self) -> Adapters:
        """The shared one and the clients' own, in the order of the requests' clients."""
        ...

    def __call__(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int], None] = ...,
        *,
        layers: Sequence[int] | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Scores all requests."""
        ...

    def under(self, adapters: Adapters) -> "Scoring":
        """The same under other adapters, of the same clients."""
        ...


class Scorer:
    """Scores requests in blocks of a few shapes, so that all modes share their compilations.

    All devices compute that the base lies on: each has a block of its own at a time.
    """

    def __init__(
        self,
        model: Model,
        adapters: Adapters,
        shapes: Sequence[BlockShape],
        costs: Costs,
        *,
        shortest: int,
    ):
        """Args: the base, the adapters, block shapes, costs, and the shortest prompt's tokens."""
        self.model = model
        self.adapters = adapters
        self.shapes = {shape.length: shape for shape in shapes}
        self.costs = costs
        self.shortest = shortest
        self.mesh = mesh_of(model.params)
        self._block = jax.jit(score_block, static_argnames=("scale", "layers", "mesh"))

    @classmethod
    def for_examples(
        cls,
        model: Model,
        adapters: Adapters,
        examples: Sequence[TokenizedExample],
        *,
        block_tokens: int,
        times: float = 1.0,
    ) -> "Scorer":
        """A scorer whose block shapes suit requests on these examples, each so many times."""
        lengths = [len(example.tokens_T) for example in examples]
        sample = examples[:: -(-len(examples) // SAMPLED)]
        costs = costs_on(jax.default_backend(), model.config)
        segments = [Segment(e._replace(trained_T=None), 1.0) for e in sample]
        shards = min(shards_of(mesh_of(model.params)), len(segments))
        shapes = choose_shapes(
            [[[segments[shard::shards]]] for shard in range(shards)],
            block_tokens=block_tokens,
            costs=costs,
            longest=max(lengths),
            share=len(sample) / (len(examples) * times),
        )
        shortest = min(example.prompt_length for example in examples)
        return cls(model, adapters, shapes, costs, shortest=shortest)

    def under(self, adapters: Adapters) -> "Scorer":
        """The same scorer under other adapters; it shares the block shapes."""
        if adapters is self.adapters:
            return self
        other = copy.copy(self)
        other.adapters = adapters
        other.__dict__.pop("_banks", None)
        return other

    def __call__(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int], None] = lambda done: None,
        *,
        layers: Sequence[int] | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Scores all requests.

        Args:
          requests: any number; blocks are filled with those of all clients.
          on_done: called with the number of requests of each block.
          layers: after how many layers prompts are embedded; None: after the last.
          tokens: whether every response token's likelihood is wanted.
        """
        layers = (self.model.config.layers,) if layers is None else tuple(layers)
        lengths = list(self.shapes)
        work: list[list[list[list[PackedRow]]]] = [[] for _ in range(shards_of(self.mesh))]
        for place, client in enumerate(sorted({request.client for request in requests})):
            own = [
                # Of a conversation, its last answer alone is scored.
                Segment(request.example._replace(trained_T=None), 1.0, ident)
                for ident, request in enumerate(requests)
                if request.client == client
            ]
            rows = pack_rows(client, own, lengths, self.costs)
            for shard, theirs in enumerate(work):
                part = rows[(shard - place) % len(work) :: len(work)]
                theirs.append([part] if part else [])
        config = self.model.config
        embedded = (len(requests), len(layers), config.width)
        gated = any(isinstance(request.local_weight, TokenGate) for request in requests)
        scores = Scores(
            np.zeros(len(requests)),
            np.zeros(len(requests), bool),
            np.zeros(len(requests), np.float32),
            np.zeros(embedded, np.float32),
            np.zeros(embedded, np.float32),
            np.zeros((len(requests), config.layers), np.float32) if gated else None,
            empty_token_nll(requests) if tokens else None,
        )
        for planned in schedule(work, self.shapes):
            self._run(planned.rows, planned.shape, requests, scores, layers)
            on_done(sum(len(row.segments) for rows in planned.rows for row in rows))
        return scores

    @functools.cached_property
    def _banks(self) -> tuple[Any, Any]:
        """The adapters, whole on every device."""
        banks = self.adapters.global_C, self.adapters.local_C
        return banks if self.mesh is None else put(banks, self.mesh)

    def _run(
        self,
        blocks: Sequence[Sequence[PackedRow]],
        shape: BlockShape,
        requests: Sequence[Request],
        scores: Scores,
        layers: tuple[int, ...],
    ) -> None:
        """Scores the rows of a block of each device."""
        filled = [fill(block, shape) for block in blocks]
        placed_S = [placed for _, placed in filled]
        given = (
            _joined([rows for rows, _ in filled]),
            *(self._weights(placed_S, shape, requests)),
            _joined([self._prompts(placed, shape, requests) for placed in placed_S]),
        )
        if self.mesh is not None:
            specs = (
                PartitionSpec(CLIENTS),
                *(spec_of(w, 2) for w in given[1:3]),
                PartitionSpec(CLIENTS),
            )
            given = [put(part, self.mesh, *spec) for part, spec in zip(given, specs, strict=True)]
        nll_P, correct_P, entropy_P, last_LED, mean_LED, gated_LE = jax.device_get(
            self._block(
                self.model,
                *self._banks,
                *given,
                scale=self.adapters.scale,
                layers=layers,
                mesh=self.mesh,
            )
        )
        most = len(given[-1].row_E) // len(blocks)
        everywhere = [
            (at, shard * shape.positions + at.first_position, shard * most + e)
            for shard, placed in enumerate(placed_S)
            for e, at in enumerate(placed)
        ]
        for at, first, e in everywhere:
            example = requests[at.ident].example
            count = len(example.tokens_T) - example.prompt_length
            own = slice(first, first + count)
            scores.nll_I[at.ident] = nll_P[own].mean(dtype=np.float64)
            scores.greedy_I[at.ident] = correct_P[own].all()
            scores.entropy_I[at.ident] = entropy_P[first]
            for place in range(len(layers)):
                scores.last_ILD[at.ident, place] = last_LED[place][e]
                scores.mean_ILD[at.ident, place] = mean_LED[place][e]
            if scores.token_nll_IP is not None:
                scores.token_nll_IP[at.ident, :count] = nll_P[own]
            if scores.gated_IL is not None:
                scores.gated_IL[at.ident] = [own_E[e] for own_E in gated_LE]

    def _weights(
        self,
        placed_S: Sequence[Sequence[Placed]],
        shape: BlockShape,
        requests: Sequence[Request],
    ) -> tuple[Any, Any]:
        """G and l of every token, or each row's gates of them, of one device after the other."""
        B, T, _ = shape
        config, rows = self.model.config, B * len(placed_S)
        placed = [
            at._replace(row=shard * B + at.row) for shard, own in enumerate(placed_S) for at in own
        ]
        if any(isinstance(requests[at.ident].local_weight, TokenGate) for at in placed):
            pairs: list[tuple[Weight, Weight]] = [(0.0, 0.0)] * rows
            for at in placed:
                pairs[at.row] = requests[at.ident][2:]
            of_rows = zip(*pairs, strict=True)
            g, l = (gates_of_rows(own, config.layers, config.width) for own in of_rows)
            return g, l
        layered = any(isinstance(requests[at.ident].local_weight, np.ndarray) for at in placed)
        shape_of_weights = (config.layers, rows, T) if layered else (rows, T)
        global_weight_BT = np.zeros(shape_of_weights, np.float32)
        local_weight_BT = np.zeros(shape_of_weights, np.float32)
        for at in placed:
            request = requests[at.ident]
            span = slice(at.start, at.start + len(request.example.tokens_T))
            # A layer's weight stands for all tokens of the example.
            global_weight_BT[..., at.row, span] = np.asarray(request.global_weight)[..., None]
            local_weight_BT[..., at.row, span] = np.asarray(request.local_weight)[..., None]
        return global_weight_BT, local_weight_BT

    def _prompts(
        self, placed: list[Placed], shape: BlockShape, requests: Sequence[Request]
    ) -> Prompts:
        B, T, _ = shape
        E = B * max(1, T // self.shortest)  # no block holds more examples
        owner_BT = np.full((B, T), E, np.int32)
        row_E, place_E, length_E = (np.zeros(E, np.int32) for _ in range(3))
        for e, at in enumerate(placed):
            length = requests[at.ident].example.prompt_length
            owner_BT[at.row, at.start : at.start + length] = e
            row_E[e], place_E[e], length_E[e] = at.row, at.start + length - 1, length
        return Prompts(owner_BT, row_E, place_E, length_E)


def _joined(parts: Sequence[Any]) -> Any:
    """Trees of arrays, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
