"""Generated answers of many (client, instance, mix) requests, batched across clients."""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.token_gate import TokenGate, Weight, gates_of_rows
from feddpa_jax.devices.mesh import CLIENTS, mesh_of, put, shards_of
from feddpa_jax.inference.continuous import Asked, Search, admit, ended_rows, go_on
from feddpa_jax.inference.score_block import spec_of
from feddpa_jax.models.decoder import Model


def compile_tokens(platform: str) -> int:
    """The cost of compiling both programs for one more length of caches, in tokens of prompts.

    About half of it is that of one more length that prompts alone are padded to. Two CPU cores,
    SmolLM2: 17 s at 1,200 tokens a second. An accelerator: a guess.
    """
    return 20_000 if platform == "cpu" else 400_000


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt to be answered under a client's adapters: g times global, l times local.

    Weights are numbers, or [L]: each layer's own; or gates of tokens.

    `expected` is a guess of the answer's length: the longest answers begin first, so that few rows
    are left alone at the end.
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


class Waiting:
    """Prompts that wait for a row, those of one padded length together."""

    def __init__(self, lengths: Sequence[int], buckets: Sequence[int]):
        """Args: the prompts' lengths, in the order in which they begin; the padded ones."""
        place = np.searchsorted(buckets, lengths)
        self._queues = {
            bucket: deque(np.flatnonzero(place == b).tolist()) for b, bucket in enumerate(buckets)
        }

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def next(self) -> tuple[int, deque[int]]:
        """The padded length of the prompt that comes next, and all that wait with that length."""
        return min(((n, q) for n, q in self._queues.items() if q), key=lambda found: found[1][0])


def rows_for(prompts: int, length: int, search: Search, batch_tokens: int) -> int:
    """Rows that keep a device busy with so many prompts.

    The caches of all rows have room for four times `batch_tokens`: a cached token takes at most
    4 D bytes of a layer in bfloat16, a computed one 22 D + 8 F (see `tokens_at_once`). More rows
    are better: products of 64 rows ran 1.9 times as fast a row as those of 16 on one CPU core.

    Args:
      prompts: those of a device.
      length: most tokens of one.
      search: how answers are found.
      batch_tokens: most tokens computed at once.

    >>> rows_for(200, 88, Search(1, 40, (0,), 0), 4096)
    128
    """
    most = max(1, 4 * batch_tokens // (length + search.slots))
    # Few different numbers, each of which is compiled.
    return min(2 ** (prompts - 1).bit_length(), most)


def group_for(platform: str, rows: int, length: int, batch_tokens: int) -> int:
    """How many prompts are put into ended rows of a device at once.

    Args:
      platform: of the device.
      rows: the device's.
      length: tokens that these prompts are padded to.
      batch_tokens: most tokens computed at once.

    >>> group_for("cpu", 128, 88, 4096), group_for("cpu", 1, 88, 4096)
    (5, 1)
    """
    computed = min(batch_tokens, 512 if platform == "cpu" else 4096)
    return min(max(1, rows // 4), max(1, computed // length))


class Answerer:
    """Answers prompts in rows of a few fixed shapes, on all devices that the base lies on."""

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
        self.batch_tokens = batch_tokens
        self.search = Search(beams, max_new_tokens, stop_ids, pad_id)
        self.mesh = mesh_of(model.params)
        banks = adapters.global_C, adapters.local_C
        self._banks = banks if self.mesh is None else put(banks, self.mesh)
        self._how = {"scale": adapters.scale, "search": self.search, "mesh": self.mesh}

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
            start = bucket
            # The longest answers first; of equal ones in the order of the prompts.
            members.sort(key=lambda i: -prompts[i].expected)
            found = self._answers([prompts[i] for i in members], bucket, on_done)
            for i, tokens_T in zip(members, found, strict=True):
                answers[i] = tokens_T
        return answers

    def _answers(
        self, prompts: list[Prompt], length: int, on_done: Callable[[int], None]
    ) -> list[np.ndarray]:
        """The answers to prompts of at most `length` tokens, in the order in which they begin."""
        shards, platform = shards_of(self.mesh), jax.default_backend()
        rows = rows_for(-(-len(prompts) // shards), length, self.search, self.batch_tokens)
        lengths = [len(prompt.tokens_T) for prompt in prompts]
        waiting = Waiting(lengths, bucket_lengths(lengths, compile_tokens(platform) // 2))
        state = ended_rows(
            self.model, rows=shards * rows, length=length, search=self.search, mesh=self.mesh
        )
        answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        # The prompt in each row; a row without one has ended.
        at_SB = np.full((shards, rows), -1)
        while waiting or (at_SB >= 0).any():
            enough = rows
            while waiting:
                bucket, queue = waiting.next()
                group = group_for(platform, rows, bucket, self.batch_tokens)
                enough = min(group, len(queue))
                if not ((at_SB < 0).sum(axis=1) >= enough).any():
                    break
                state = self._admit(state, prompts, queue, at_SB, group, bucket)
                enough = rows
            asked = self._asked([prompts[max(i, 0)] for i in at_SB.flat], prompts)
            enough_S = self._put(np.full(shards, enough, np.int32), PartitionSpec(CLIENTS))
            state, open_B, decoded = go_on(
                self.model, self._banks, state, asked, enough_S, **self._how
            )
            open_SB, tokens_BT, length_B = jax.device_get((open_B, *decoded))
            ended = np.flatnonzero((at_SB >= 0).ravel() & ~open_SB)
            for row in ended:
                answers[at_SB.flat[row]] = tokens_BT[row, : length_B[row]]
                at_SB.flat[row] = -1
            on_done(len(ended))
        return answers

    def _admit(
        self,
        state: Any,
        prompts: list[Prompt],
        queue: deque[int],
        at_SB: np.ndarray,
        group: int,
        length: int,
    ) -> Any:
        """Puts the first of a queue into free rows, a group for each device; notes them in `at_SB`.

        They have at most `length` tokens.
        """
        shards, rows = at_SB.shape
        row_SA = np.full((shards, group), rows, np.int32)
        chosen_SA = np.full((shards, group), queue[0])
        # Devices take turns, so that the last prompts are shared out.
        for a in range(group):
            for s in range(shards):
                free = np.flatnonzero(at_SB[s] < 0)
                if queue and len(free):
                    row_SA[s, a] = free[0]
                    at_SB[s, free[0]] = chosen_SA[s, a] = queue.popleft()
        chosen = [prompts[i] for i in chosen_SA.flat]
        tokens_AT = np.full((len(chosen), length), self.search.pad_id, np.int32)
        for a, prompt in enumerate(chosen):
            tokens_AT[a, : len(prompt.tokens_T)] = prompt.tokens_T
        length_A = np.array([len(prompt.tokens_T) for prompt in chosen], np.int32)
        own = PartitionSpec(CLIENTS)
        return admit(
            self.model,
            self._banks,
            state,
            *(self._put(part, own) for part in (tokens_AT, length_A)),
            self._asked(chosen, prompts),
            self._put(row_SA.ravel(), own),
            **self._how,
        )

    def _put(self, part: Any, spec: PartitionSpec) -> Any:
        """Host arrays on the device, or split over all."""
        return jax.tree.map(jnp.asarray, part) if self.mesh is None else put(part, self.mesh, *spec)

    def _asked(self, rows: list[Prompt], prompts: list[Prompt]) -> Asked:
        """Who answers in some rows; with weights of one kind for all prompts."""
        client_B = np.array([prompt.client for prompt in rows], np.int32)
        weights = [
            self._weights(
                [getattr(prompt, name) for prompt in rows],
                [getattr(prompt, name) for prompt in prompts],
            )
            for name in ("global_weight", "local_weight")
        ]
        return Asked(
            self._put(client_B, PartitionSpec(CLIENTS)),
            *(self._put(weight, spec_of(weight, 1)) for weight in weights),
        )

    def _weights(self, own: list[Weight], all_: list[Weight]) -> np.ndarray | TokenGate:
        """The weights of rows: [B], or [L, B], or their gates."""
        config = self.model.config
        if any(isinstance(weight, TokenGate) for weight in all_):
            return gates_of_rows(own, config.layers, config.width)
        plain, every = (
            [np.asarray(weight) for weight in some if not isinstance(weight, TokenGate)]
            for some in (own, all_)
        )
        if any(weight.ndim for weight in every):
            plain = [np.broadcast_to(weight, (config.layers,)) for weight in plain]
        return np.stack(plain, axis=-1).astype(np.float32)
