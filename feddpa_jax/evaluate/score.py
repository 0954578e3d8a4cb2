"""Teacher-forced scores of many (client, instance, mix) requests in packed blocks.

One forward pass gives an example's response likelihood, whether greedy decoding would reproduce the
response (it does if and only if the argmax is the target at every response position), and the
embedding of its prompt, which a causal model computes before it sees the response.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.data.blocks import Placed, choose_shapes, fill, schedule
from feddpa_jax.data.packing import PackedRow, Segment, pack_rows
from feddpa_jax.fed.rows import BlockShape, Rows
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.types import TokenizedExample

# Block shapes are chosen on about so many examples.
SAMPLED = 512


class Request(NamedTuple):
    """An example to be scored under a client's adapters: g times global, l times local."""

    client: int
    example: TokenizedExample
    global_weight: float
    local_weight: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """Results in the order of the requests, I of them.

    Attributes:
      nll_I: mean negative log-likelihood of the response tokens, in nats.
      greedy_I: whether the argmax is the target at every response position.
      last_ID: final hidden state at the last prompt token.
      mean_ID: mean of the final hidden states over the prompt.
    """

    nll_I: np.ndarray
    greedy_I: np.ndarray
    last_ID: np.ndarray
    mean_ID: np.ndarray


class Adapters(NamedTuple):
    """What is at hand at inference: the shared adapter, every client's own, and the LoRA scale."""

    global_: Adapter | None
    local_C: Adapter | None
    scale: float


class _Prompts(NamedTuple):
    owner_BT: np.ndarray  # number of the example whose prompt a token belongs to; E for none
    row_E: np.ndarray
    place_E: np.ndarray  # the last prompt token
    length_E: np.ndarray


def _score_block(
    model: Model,
    global_: Adapter | None,
    local_C: Adapter | None,
    rows: Rows,
    global_weight_BT: jax.Array,
    local_weight_BT: jax.Array,
    prompts: _Prompts,
    *,
    scale: float,
):
    branches = dual_branches(
        global_,
        local_C,
        rows.client_B,
        local_weight_BT,
        scale=scale,
        global_weight=global_weight_BT,
    )
    hidden_BTD, _ = model.hidden(
        rows.tokens_BT, rows.position_BT, causal_mask(rows.segment_BT), branches
    )
    logits_PV = model.logits(hidden_BTD[rows.row_P, rows.place_P])
    at_target_P = jnp.take_along_axis(logits_PV, rows.target_P[:, None], axis=1)[:, 0]
    nll_P = jax.nn.logsumexp(logits_PV, axis=1) - at_target_P
    examples = prompts.row_E.shape[0]
    sum_ED = jax.ops.segment_sum(
        hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
        prompts.owner_BT.reshape(-1),
        num_segments=examples + 1,
    )[:-1]
    return (
        nll_P,
        jnp.argmax(logits_PV, axis=1) == rows.target_P,
        hidden_BTD[prompts.row_E, prompts.place_E],
        sum_ED / jnp.maximum(prompts.length_E, 1)[:, None],
    )


class Scorer:
    """Scores requests in blocks of a few shapes, so that all modes share their compilations."""

    def __init__(
        self, model: Model, adapters: Adapters, shapes: Sequence[BlockShape], *, shortest: int
    ):
        """Args: the base, the adapters, the block shapes, and the shortest example's tokens."""
        self.model = model
        self.adapters = adapters
        self.shapes = {shape.length: shape for shape in shapes}
        self.shortest = shortest
        self._block = jax.jit(_score_block, static_argnames="scale")

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
        shapes = choose_shapes(
            [[[[Segment(example, 1.0) for example in sample]]]],
            block_tokens=block_tokens,
            platform=jax.default_backend(),
            longest=max(lengths),
            share=len(sample) / (len(examples) * times),
        )
        return cls(model, adapters, shapes, shortest=min(lengths))

    def __call__(
        self, requests: Sequence[Request], on_done: Callable[[int], None] = lambda done: None
    ) -> Scores:
        """Scores all requests; `on_done` is called with the number of requests of each block."""
        lengths = list(self.shapes)
        work: list[list[list[PackedRow]]] = []
        for client in sorted({request.client for request in requests}):
            own = [
                Segment(request.example, 1.0, ident)
                for ident, request in enumerate(requests)
                if request.client == client
            ]
            work.append([pack_rows(client, own, lengths)])
        width = self.model.config.width
        scores = Scores(
            np.zeros(len(requests)),
            np.zeros(len(requests), bool),
            np.zeros((len(requests), width), np.float32),
            np.zeros((len(requests), width), np.float32),
        )
        for planned in schedule([work], self.shapes):
            (rows,) = planned.rows
            self._run(rows, planned.shape, requests, scores)
            on_done(sum(len(row.segments) for row in rows))
        return scores

    def _run(
        self,
        block: list[PackedRow],
        shape: BlockShape,
        requests: Sequence[Request],
        scores: Scores,
    ) -> None:
        rows, placed = fill(block, shape)
        B, T, _ = shape
        global_weight_BT = np.zeros((B, T), np.float32)
        local_weight_BT = np.zeros((B, T), np.float32)
        for at in placed:
            request = requests[at.ident]
            span = slice(at.start, at.start + len(request.example.tokens_T))
            global_weight_BT[at.row, span] = request.global_weight
            local_weight_BT[at.row, span] = request.local_weight
        prompts = self._prompts(placed, shape, requests)
        nll_P, correct_P, last_ED, mean_ED = jax.device_get(
            self._block(
                self.model,
                self.adapters.global_,
                self.adapters.local_C,
                rows,
                global_weight_BT,
                local_weight_BT,
                prompts,
                scale=self.adapters.scale,
            )
        )
        for e, at in enumerate(placed):
            example = requests[at.ident].example
            count = len(example.tokens_T) - example.prompt_length
            own = slice(at.first_position, at.first_position + count)
            scores.nll_I[at.ident] = nll_P[own].mean(dtype=np.float64)
            scores.greedy_I[at.ident] = correct_P[own].all()
            scores.last_ID[at.ident] = last_ED[e]
            scores.mean_ID[at.ident] = mean_ED[e]

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
