"""Teacher-forced scores of many (client, instance, mix) requests in packed blocks.

One forward pass gives an example's response likelihood, whether greedy decoding would reproduce the
response (it does if and only if the argmax is the target at every response position), and what the
model computes of the prompt before it sees the response: embeddings, and the entropy of the
answer's first token.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.dual import Adapters, dual_branches
from feddpa_jax.adapters.lora import Adapter, BranchWeight
from feddpa_jax.adapters.token_gate import TokenGate, Weight, gates_of_rows
from feddpa_jax.inference.likelihood import likelihoods
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.training.blocks import Placed, choose_shapes, fill, schedule
from feddpa_jax.training.costs import Costs, costs_on
from feddpa_jax.training.packing import PackedRow, Segment, pack_rows
from feddpa_jax.training.rows import BlockShape, Rows
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


class _Prompts(NamedTuple):
    owner_BT: np.ndarray  # number of the example whose prompt a token belongs to; E for none
    row_E: np.ndarray
    place_E: np.ndarray  # the last prompt token
    length_E: np.ndarray


def by_layer(weight: jax.Array | TokenGate, axes: int) -> BranchWeight:
    """Splits a leading layer axis into a tuple, if there is one."""
    if isinstance(weight, TokenGate):
        return weight.by_layer()
    return weight if weight.ndim == axes else tuple(jnp.unstack(weight))


def _score_block(
    model: Model,
    global_C: Adapter | None,
    local_C: Adapter | None,
    rows: Rows,
    global_weight_BT: jax.Array | TokenGate,
    local_weight_BT: jax.Array | TokenGate,
    prompts: _Prompts,
    *,
    scale: float,
    layers: tuple[int, ...],
):
    branches = dual_branches(
        global_C,
        local_C,
        rows.client_B,
        by_layer(local_weight_BT, 2),
        scale=scale,
        global_weight=by_layer(global_weight_BT, 2),
    )
    states = model.states(rows.tokens_BT, rows.position_BT, causal_mask(rows.segment_BT), branches)
    logits_PV = model.logits(states[-1][rows.row_P, rows.place_P])
    nll_P, correct_P, entropy_P = likelihoods(logits_PV, rows.target_P)
    examples = prompts.row_E.shape[0]

    def means(hidden_BTD: jax.Array) -> jax.Array:
        sum_ED = jax.ops.segment_sum(
            hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
            prompts.owner_BT.reshape(-1),
            num_segments=examples + 1,
        )[:-1]
        return sum_ED / jnp.maximum(prompts.length_E, 1)[:, None]

    gates = local_weight_BT.by_layer() if isinstance(local_weight_BT, TokenGate) else ()
    return (
        nll_P,
        correct_P,
        entropy_P,
        [states[layer][prompts.row_E, prompts.place_E] for layer in layers],
        [means(states[layer]) for layer in layers],
        [means(gate.weights(x)[..., None])[:, 0] for gate, x in zip(gates, states, strict=False)],
    )


class Scorer:
    """Scores requests in blocks of a few shapes, so that all modes share their compilations."""

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
        self._block = jax.jit(_score_block, static_argnames=("scale", "layers"))

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
        shapes = choose_shapes(
            [[[[Segment(e._replace(trained_T=None), 1.0) for e in sample]]]],
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
        work: list[list[list[PackedRow]]] = []
        for client in sorted({request.client for request in requests}):
            own = [
                # Of a conversation, its last answer alone is scored.
                Segment(request.example._replace(trained_T=None), 1.0, ident)
                for ident, request in enumerate(requests)
                if request.client == client
            ]
            work.append([pack_rows(client, own, lengths, self.costs)])
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
        for planned in schedule([work], self.shapes):
            (rows,) = planned.rows
            self._run(rows, planned.shape, requests, scores, layers)
            on_done(sum(len(row.segments) for row in rows))
        return scores

    def _run(
        self,
        block: list[PackedRow],
        shape: BlockShape,
        requests: Sequence[Request],
        scores: Scores,
        layers: tuple[int, ...],
    ) -> None:
        rows, placed = fill(block, shape)
        global_weight_BT, local_weight_BT = self._weights(placed, shape, requests)
        prompts = self._prompts(placed, shape, requests)
        nll_P, correct_P, entropy_P, last_LED, mean_LED, gated_LE = jax.device_get(
            self._block(
                self.model,
                self.adapters.global_C,
                self.adapters.local_C,
                rows,
                global_weight_BT,
                local_weight_BT,
                prompts,
                scale=self.adapters.scale,
                layers=layers,
            )
        )
        for e, at in enumerate(placed):
            example = requests[at.ident].example
            count = len(example.tokens_T) - example.prompt_length
            own = slice(at.first_position, at.first_position + count)
            scores.nll_I[at.ident] = nll_P[own].mean(dtype=np.float64)
            scores.greedy_I[at.ident] = correct_P[own].all()
            scores.entropy_I[at.ident] = entropy_P[at.first_position]
            for place in range(len(layers)):
                scores.last_ILD[at.ident, place] = last_LED[place][e]
                scores.mean_ILD[at.ident, place] = mean_LED[place][e]
            if scores.token_nll_IP is not None:
                scores.token_nll_IP[at.ident, :count] = nll_P[own]
            if scores.gated_IL is not None:
                scores.gated_IL[at.ident] = [own_E[e] for own_E in gated_LE]

    def _weights(
        self, placed: list[Placed], shape: BlockShape, requests: Sequence[Request]
    ) -> tuple[Any, Any]:
        """G and l of every token, or each row's gates of them."""
        B, T, _ = shape
        config = self.model.config
        if any(isinstance(requests[at.ident].local_weight, TokenGate) for at in placed):
            pairs: list[tuple[Weight, Weight]] = [(0.0, 0.0)] * B
            for at in placed:
                pairs[at.row] = requests[at.ident][2:]
            of_rows = zip(*pairs, strict=True)
            g, l = (gates_of_rows(own, config.layers, config.width) for own in of_rows)
            return g, l
        layered = any(isinstance(requests[at.ident].local_weight, np.ndarray) for at in placed)
        shape_of_weights = (config.layers, B, T) if layered else (B, T)
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
    ) -> _Prompts:
        B, T, _ = shape
        E = B * max(1, T // self.shortest)  # no block holds more examples
        owner_BT = np.full((B, T), E, np.int32)
        row_E, place_E, length_E = (np.zeros(E, np.int32) for _ in range(3))
        for e, at in enumerate(placed):
            length = requests[at.ident].example.prompt_length
            owner_BT[at.row, at.start : at.start + length] = e
            row_E[e], place_E[e], length_E[e] = at.row, at.start + length - 1, length
        return _Prompts(owner_BT, row_E, place_E, length_E)
