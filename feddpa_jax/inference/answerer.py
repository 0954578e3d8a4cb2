"""Generated answers of many (client, instance, mix) requests, batched across clients."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from feddpa_jax.adapters.dual import Adapters, dual_branches
from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.adapters.token_gate import TokenGate, Weight, gates_of_rows
from feddpa_jax.devices.mesh import CLIENTS, mesh_of, put, shards_of
from feddpa_jax.inference.beam import beam_search
from feddpa_jax.inference.decode import Decoded, decode, prefill
from feddpa_jax.inference.score_block import by_layer, spec_of
from feddpa_jax.models.decoder import Model


def compile_tokens(platform: str) -> int:
    """The cost of compiling for one more padded prompt length, in tokens.

    Two CPU cores, SmolLM2: 17 s at 1,200 tokens a second. An accelerator: a guess.
    """
    return 20_000 if platform == "cpu" else 400_000


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt to be answered under a client's adapters: g times global, l times local.

    Weights are numbers, or [L]: each layer's own; or gates of tokens.

    `expected` is a guess of the answer's length. Prompts with similar guesses share a batch,
    because a batch ends with its longest answer.
    """

    client: int
    tokens_T: np.ndarray
    global_weight: Weight
    local_weight: Weight
    expected: int = 0


def bucket_lengths(lengths: Sequence[int], cost: int) -> list[int]:
    """The padded lengths that serve these sequences best: multiples of 8, ascending.

    Minimises the sum of padded lengths plus `cost` for each different one.

    >>> bucket_lengths([7, 8, 8, 30], cost=10)
    [8, 32]
    >>> bucket_lengths([7, 8, 8, 30], cost=100)
    [32]
    """
    values, counts = np.unique([-(-n // 8) * 8 for n in lengths], return_counts=True)
    upto = np.concatenate([[0], np.cumsum(counts)])
    # best[i]: least total of the i shortest values, and the lengths that give it.
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for i, value in enumerate(values.tolist(), start=1):
        options = [
            (total + cost + value * int(upto[i] - upto[j]), [*chosen, value])
            for j, (total, chosen) in enumerate(best)
        ]
        best.append(min(options))
    return best[-1][1]


def _answer(
    model: Model,
    global_C: Adapter | None,
    local_C: Adapter | None,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    client_B: jax.Array,
    global_weight_B: jax.Array | TokenGate,
    local_weight_B: jax.Array | TokenGate,
    *,
    mesh: Mesh | None,
    **how: Any,
) -> Decoded:
    """Answers of the rows; each device of a mesh computes its own until they end."""
    answer = functools.partial(_answer_rows, **how)
    if mesh is not None:
        all_, own = PartitionSpec(), PartitionSpec(CLIENTS)
        weights = [spec_of(weight, 1) for weight in (global_weight_B, local_weight_B)]
        answer = jax.shard_map(
            answer,
            mesh=mesh,
            in_specs=(all_, all_, all_, own, own, own, *weights),
            out_specs=own,
            axis_names={CLIENTS},
            check_vma=False,
        )
    return answer(
        model,
        global_C,
        local_C,
        tokens_BT,
        length_B,
        client_B,
        global_weight_B,
        local_weight_B,
    )


def _answer_rows(
    model: Model,
    global_C: Adapter | None,
    local_C: Adapter | None,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    client_B: jax.Array,
    global_weight_B: jax.Array | TokenGate,
    local_weight_B: jax.Array | TokenGate,
    *,
    scale: float,
    beams: int,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Decoded:
    branches = dual_branches(
        global_C,
        local_C,
        client_B,
        by_layer(local_weight_B, 1),
        scale=scale,
        global_weight=by_layer(global_weight_B, 1),
    )
    slots = tokens_BT.shape[1] + max_new_tokens
    prompt = prefill(model, branches, tokens_BT, length_B, slots)
    ends: Any = {"stop_ids": stop_ids, "pad_id": pad_id, "max_new_tokens": max_new_tokens}
    if beams == 1:
        return decode(model, branches, prompt.last_hidden_BD, prompt.cache, length_B, **ends)
    return beam_search(
        model, branches, prompt.last_hidden_BD, prompt.cache, length_B, beams=beams, **ends
    )


class Answerer:
    """Answers prompts in batches of a few fixed shapes, on all devices that the base lies on."""

    def __init__(
        self,
        model: Model,
        adapters: Adapters,
        *,
        stop_ids: tuple[int, ...],
        pad_id: int,
        beams: int = 1,
        max_new_tokens: int = 80,
        batch_tokens: int = 4096,
    ):
        """Args: the base, the adapters, and how to decode; 1 beam is greedy."""
        self.model = model
        self.adapters = adapters
        self.pad_id = pad_id
        self.batch_tokens = batch_tokens // beams
        self.max_new_tokens = max_new_tokens
        self._settings = {
            "scale": adapters.scale,
            "beams": beams,
            "max_new_tokens": max_new_tokens,
            "stop_ids": stop_ids,
            "pad_id": pad_id,
        }
        self.mesh = mesh_of(model.params)
        banks = adapters.global_C, adapters.local_C
        self._banks = banks if self.mesh is None else put(banks, self.mesh)
        self._answer = jax.jit(_answer, static_argnames=(*self._settings, "mesh"))

    def __call__(
        self, prompts: Sequence[Prompt], on_done: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """The generated tokens of each prompt, in their order, without the end token."""
        answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        if not prompts:
            return answers
        lengths = [len(prompt.tokens_T) for prompt in prompts]
        start = 0
        for bucket in bucket_lengths(lengths, compile_tokens(jax.default_backend())):
            members = [i for i, n in enumerate(lengths) if start < n <= bucket]
            members.sort(key=lambda i: prompts[i].expected)
            start = bucket
            size = max(1, self.batch_tokens // (bucket + self.max_new_tokens))
            # A lone prompt must not pay for a full batch.
            shards = shards_of(self.mesh)
            size = shards * min(size, 1 << (-(-len(members) // shards) - 1).bit_length())
            for first in range(0, len(members), size):
                batch = members[first : first + size]
                decoded = self._batch([prompts[i] for i in batch], size, bucket)
                for i, tokens_T in zip(batch, decoded, strict=True):
                    answers[i] = tokens_T
                on_done(len(batch))
        return answers

    def _batch(self, prompts: list[Prompt], rows: int, length: int) -> list[np.ndarray]:
        tokens_BT = np.full((rows, length), self.pad_id, np.int32)
        length_B, client_B = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        # Spare rows repeat the last prompt: they end when it does and cost no further step.
        asked = [prompts[min(b, len(prompts) - 1)] for b in range(rows)]
        for b, prompt in enumerate(asked):
            tokens_BT[b, : len(prompt.tokens_T)] = prompt.tokens_T
            length_B[b], client_B[b] = len(prompt.tokens_T), prompt.client
        global_weight_B, local_weight_B = (
            self._weights([getattr(prompt, name) for prompt in asked])
            for name in ("global_weight", "local_weight")
        )
        decoded = self._answer(
            self.model,
            *self._banks,
            *(self._put(part, PartitionSpec(CLIENTS)) for part in (tokens_BT, length_B, client_B)),
            *(self._put(own, spec_of(own, 1)) for own in (global_weight_B, local_weight_B)),
            **self._settings,
            mesh=self.mesh,
        )
        tokens_BT, length_B = np.asarray(decoded.tokens_BT), np.asarray(decoded.length_B)
        return [tokens_BT[b, : length_B[b]] for b in range(len(prompts))]

    def _put(self, part: Any, spec: PartitionSpec) -> Any:
        """A batch's arrays on the device, or split over all."""
        return jax.tree.map(jnp.asarray, part) if self.mesh is None else put(part, self.mesh, *spec)

    def _weights(self, own: list[Weight]) -> np.ndarray | TokenGate:
        """The weights of rows: [B], or [L, B], or their gates."""
        config = self.model.config
        plain = [np.asarray(weight) for weight in own if not isinstance(weight, TokenGate)]
        if len(plain) < len(own):
            return gates_of_rows(own, config.layers, config.width)
        if any(map(np.ndim, plain)):
            plain = [np.broadcast_to(weight, (config.layers,)) for weight in plain]
        return np.stack(plain, axis=-1).astype(np.float32)
