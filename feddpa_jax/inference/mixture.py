"""Examples under one client's adapters as functions of their mixing weights, for gradients.

`Scorer` packs requests of known weights; here weights are variables. A forward pass keeps no
activations (each layer is computed again in the backward pass), and rows are taken some at a time,
so memory does not grow with the number of examples.
"""

from collections.abc import Callable, Sequence

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import Adapter, BranchWeight
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.inference.answerer import bucket_lengths, compile_tokens
from feddpa_jax.inference.likelihood import likelihoods
from feddpa_jax.inference.scorer import Adapters
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.types import TokenizedExample

# The most tokens, and the most logits' positions, of the rows that are computed at once.
TOKENS, POSITIONS = 4096, 512


@flax.struct.dataclass
class Sheet:
    """Examples of one padded length, R rows at a time, N times; spare rows have no place.

    Attributes:
      tokens_NRT: prompts, each followed by its answer if there is one.
      prompt_NR: tokens of the prompt.
      answer_NR: tokens of the answer.
      target_NRP: the answer's tokens; P = 0 where no example has one.
      place_NR: which example it is.
    """

    tokens_NRT: jax.Array
    prompt_NR: jax.Array
    answer_NR: jax.Array
    target_NRP: jax.Array
    place_NR: jax.Array


@flax.struct.dataclass
class Mixture:
    """I examples of a client, whose weights are an argument of what is computed of them.

    A weight is the local adapter's; the global adapter gets the rest. Weights are [I], each
    example's own, or [I, L], each example's own in every layer; or a gate of all examples' tokens.

    Attributes:
      model: the frozen base.
      global_C: the shared adapter, [1, ...] or each client's.
      local_C: the clients' own.
      client: whose of these, an int32 scalar.
      sheets: the examples.
      scale: LoRA scale.
      count: I.

    Example:
      ```
      slope_B = jax.grad(lambda weight_B: query_mixture.entropy(weight_B).sum())(weight_B)
      ```
    """

    model: Model
    global_C: Adapter | None
    local_C: Adapter | None
    client: jax.Array
    sheets: tuple[Sheet, ...]
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    count: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def layers(self) -> int:
        """L."""
        return self.model.config.layers

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.width

    def entropy(self, weight: jax.Array | TokenGate) -> Float[Array, "I"]:
        """Entropy of the distribution of each answer's first token, in nats."""

        def of_rows(hidden_RTD: jax.Array, rows: Sheet) -> jax.Array:
            last_RD = hidden_RTD[jnp.arange(len(hidden_RTD)), rows.prompt_NR - 1]
            return likelihoods(self.model.logits(last_RD), jnp.zeros(len(last_RD), jnp.int32))[2]

        return self._of_all(weight, of_rows)

    def loss(self, weight: jax.Array | TokenGate) -> Float[Array, "I"]:
        """Mean negative log-likelihood of each answer's tokens, in nats.

        Raises:
          ValueError: the examples are prompts alone.
        """
        if not all(sheet.target_NRP.shape[-1] for sheet in self.sheets):
            raise ValueError("loss: these are prompts; their answers are not known")

        def of_rows(hidden_RTD: jax.Array, rows: Sheet) -> jax.Array:
            R, P = rows.target_NRP.shape
            slot_1P = jnp.arange(P)[None]
            at_RP = jnp.minimum(rows.prompt_NR[:, None] - 1 + slot_1P, hidden_RTD.shape[1] - 1)
            logits_RPV = self.model.logits(hidden_RTD[jnp.arange(R)[:, None], at_RP])
            nll_X, _, _ = likelihoods(logits_RPV.reshape(R * P, -1), rows.target_NRP.reshape(R * P))
            inside_RP = slot_1P < rows.answer_NR[:, None]
            total_R = jnp.where(inside_RP, nll_X.reshape(R, P), 0.0).sum(axis=1)
            return total_R / jnp.maximum(rows.answer_NR, 1)

        return self._of_all(weight, of_rows)

    def _of_all(
        self, weight: jax.Array | TokenGate, of_rows: Callable[[jax.Array, Sheet], jax.Array]
    ) -> jax.Array:
        """A measure of every example, [I]."""
        if not isinstance(weight, TokenGate):
            chex.assert_rank(weight, {1, 2})
            chex.assert_axis_dimension(weight, 0, self.count)

        def of(rows: Sheet) -> BranchWeight:
            if isinstance(weight, TokenGate):
                R = rows.place_NR.shape[0]
                return jax.tree.map(
                    lambda leaf: jnp.broadcast_to(leaf[:, None], (len(leaf), R, *leaf.shape[1:])),
                    weight,
                ).by_layer()
            own = weight[jnp.minimum(rows.place_NR, self.count - 1)]
            return own if own.ndim == 1 else tuple(own.T)

        def compute(rows: Sheet) -> jax.Array:
            branches = dual_branches(
                self.global_C,
                self.local_C,
                jnp.full(rows.prompt_NR.shape, self.client),
                of(rows),
                scale=self.scale,
            )
            R, T = rows.tokens_NRT.shape
            position_RT = jnp.broadcast_to(jnp.arange(T), (R, T))
            inside_RT = position_RT < (rows.prompt_NR + rows.answer_NR)[:, None]
            mask_RTT = causal_mask(inside_RT.astype(jnp.int32))
            hidden_RTD, _ = self.model.hidden(
                rows.tokens_NRT, position_RT, mask_RTT, branches, remat="layer"
            )
            return of_rows(hidden_RTD, rows)

        found_I = jnp.zeros(self.count, jnp.float32)
        for sheet in self.sheets:
            found_NR = jax.lax.map(jax.checkpoint(compute), sheet)
            found_I = found_I.at[sheet.place_NR].set(found_NR, mode="drop")
        return found_I


def make_mixtures(
    model: Model,
    adapters: Adapters,
    examples: Sequence[Sequence[TokenizedExample]],
    *,
    answers: bool,
) -> list[Mixture]:
    """Each client's examples as a `Mixture`; clients with as many examples share compilations.

    Args:
      model: the frozen base.
      adapters: the shared one and the clients' own.
      examples: by client.
      answers: whether their answers may be looked at; if not, they are not in it.
    """
    flat = {id(e): e for own in examples for e in own}.values()
    longest = [len(e.tokens_T) if answers else e.prompt_length for e in flat]
    most_answer = max((len(e.tokens_T) - e.prompt_length for e in flat), default=0)
    lengths = [-(-max(longest, default=1) // 8) * 8]
    if all(own is examples[0] for own in examples):
        # A backward pass and several steps: compiling pays sooner than for an answer.
        lengths = bucket_lengths(longest, compile_tokens(jax.default_backend()) // 10)
    made: dict[int, tuple[Sheet, ...]] = {}
    for own in examples:
        if id(own) not in made:
            made[id(own)] = _sheets(own, lengths, most_answer if answers else 0)
    return [
        Mixture(
            model,
            adapters.global_C,
            adapters.local_C,
            jnp.int32(client),
            made[id(own)],
            adapters.scale,
            len(own),
        )
        for client, own in enumerate(examples)
    ]


def _sheets(
    examples: Sequence[TokenizedExample], lengths: Sequence[int], most_answer: int
) -> tuple[Sheet, ...]:
    """Examples by padded length; their answers are left out if `most_answer` is 0."""
    found, start = [], 0
    sizes = [len(e.tokens_T) if most_answer else e.prompt_length for e in examples]
    for T in lengths:
        members = [i for i, size in enumerate(sizes) if start < size <= T]
        start = T
        if not members:
            continue
        R = max(1, min(len(members), TOKENS // T, POSITIONS // max(1, most_answer)))
        N = -(-len(members) // R)
        tokens_XT = np.zeros((N * R, T), np.int32)
        prompt_X, answer_X = np.ones(N * R, np.int32), np.zeros(N * R, np.int32)
        target_XP = np.zeros((N * R, most_answer), np.int32)
        place_X = np.full(N * R, len(examples), np.int32)
        for x, i in enumerate(members):
            tokens_T, prompt, _ = examples[i]
            tokens_XT[x, : sizes[i]] = tokens_T[: sizes[i]]
            prompt_X[x], answer_X[x], place_X[x] = prompt, sizes[i] - prompt, i
            target_XP[x, : answer_X[x]] = tokens_T[prompt : sizes[i]]
        parts = (tokens_XT, prompt_X, answer_X, target_XP, place_X)
        found.append(Sheet(*(jnp.asarray(p.reshape(N, R, *p.shape[1:])) for p in parts)))
    return tuple(found)
