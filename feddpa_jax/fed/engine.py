"""The compiled client step: many clients' local trainings as one program over one frozen base.

Each client runs AdamW (Loshchilov & Hutter, arXiv 1711.05101; no weight decay, so Adam) on its own
slice of a bank, with its own clipping, learning-rate schedule and number of updates:

    loss_c = sum over c's response positions p of weight_p * nll_p
    lr_c(u) = learning_rate * (U_c - u) / U_c,      u = 0 .. U_c - 1

Rows of all clients share the forward and backward pass; the gather of each row's adapter sends its
gradient back to its own client, so one step equals, to rounding, every client trained alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from feddpa_jax.adapters.dual import dual_branches, single_branch
from feddpa_jax.adapters.lora import Adapter, take
from feddpa_jax.fed.rows import Chunk, Rows
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.types import UserError


@flax.struct.dataclass
class TrainState:
    """What local training carries from update to update; every leaf starts with C.

    Attributes:
      adapters_C: the adapters in training.
      moments_C: optimizer state.
      grads_C: gradient sums of the update under way.
      loss_C: loss of the update under way.
      finite_C: whether all losses and gradients so far were finite.
      step_C: updates done.
    """

    adapters_C: Adapter
    moments_C: Any
    grads_C: Adapter
    loss_C: jax.Array
    finite_C: jax.Array
    step_C: jax.Array


@dataclasses.dataclass(frozen=True)
class PhaseMetrics:
    """What one phase of a round did.

    Attributes:
      losses: by client name, the loss of every update.
      real_tokens: tokens of examples.
      computed_tokens: tokens computed, padding included.
    """

    losses: dict[str, list[float]]
    real_tokens: int
    computed_tokens: int


class Engine(NamedTuple):
    """`train(adapters_C, chunks, *, key, frozen=None) -> (adapters_C, PhaseMetrics)`."""

    train: Callable[..., tuple[Adapter, PhaseMetrics]]


class NonFiniteError(UserError):
    """A client's loss or update is not finite."""

    def __init__(self, client: str, phase: str):
        """Args: the client's name, and the phase's."""
        super().__init__(
            f"client {client!r}, {phase} phase: the loss or an update is not finite; lower "
            "fed.learning_rate, or look for damaged examples"
        )


def response_nll(model: Model, hidden_BTD: jax.Array, rows: Rows) -> jax.Array:
    """Negative log-likelihood of every response position's target, float32 [P]."""
    logits_PV = model.logits(hidden_BTD[rows.row_P, rows.place_P])
    at_target_P = jnp.take_along_axis(logits_PV, rows.target_P[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits_PV, axis=1) - at_target_P


def client_losses(
    model: Model,
    adapters_C: Adapter,
    frozen: Adapter | None,
    rows: Rows,
    key_B2: jax.Array,
    *,
    scale: float,
    dropout: float,
    local_weight: float,
    detach: bool,
) -> jax.Array:
    """Each client's loss on a block of rows, [C]: sums of weight_p * nll_p.

    Args:
      model: the frozen base.
      adapters_C: the adapters in training.
      frozen: None: rows see their client's adapter alone, at weight 1. Else the frozen global
        adapter, mixed in as (1 - a) global + a own.
      rows: the block.
      key_B2: dropout key words of each row.
      scale: LoRA scale.
      dropout: dropout probability.
      local_weight: a.
      detach: stop gradients at the frozen branch's output.
    """
    count = rows.client_B.shape[0]
    if frozen is None:
        branches = single_branch(
            adapters_C, rows.client_B, scale=scale, key_B2=key_B2, rate=dropout
        )
    else:
        branches = dual_branches(
            frozen,
            adapters_C,
            rows.client_B,
            jnp.full((count,), local_weight, jnp.float32),
            scale=scale,
            key_B2=key_B2,
            rate=dropout,
            detach_global=detach,
        )
    hidden_BTD, _ = model.hidden(
        rows.tokens_BT, rows.position_BT, causal_mask(rows.segment_BT), branches
    )
    loss_P = response_nll(model, hidden_BTD, rows) * rows.weight_P
    clients = jax.tree.leaves(adapters_C)[0].shape[0]
    return jax.ops.segment_sum(loss_P, rows.client_B[rows.row_P], num_segments=clients)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def make_engine(
    model: Model,
    *,
    scale: float,
    dropout: float = 0.0,
    learning_rate: float,
    max_grad_norm: float = 1.0,
    local_weight: float = 0.5,
    detach: bool = False,
    on_update: Callable[[int, int], None] = lambda real, computed: None,
) -> Engine:
    """The engine of a run; it compiles once for each kind of phase.

    Args:
      model: the frozen base, shared by all clients.
      scale: LoRA scale, alpha / rank.
      dropout: LoRA dropout.
      learning_rate: at the first update; falls linearly to 0 over each client's training.
      max_grad_norm: each client's gradient is clipped to this norm.
      local_weight: a, the local adapter's weight while it is trained beside the frozen global one.
      detach: no gradient through the frozen branch (the released code); exact otherwise.
      on_update: called with (real, computed) tokens after every update.

    Returns:
      The engine.
    """
    tx = optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    )

    def start(adapters_C: Adapter) -> TrainState:
        clients = jax.tree.leaves(adapters_C)[0].shape[0]
        return TrainState(
            # A copy: the state is donated to every step, the caller's adapters are not.
            adapters_C=jax.tree.map(jnp.copy, adapters_C),
            moments_C=jax.vmap(tx.init)(adapters_C),
            grads_C=jax.tree.map(jnp.zeros_like, adapters_C),
            loss_C=jnp.zeros((clients,)),
            finite_C=jnp.ones((clients,), bool),
            step_C=jnp.zeros((clients,), jnp.int32),
        )

    def accumulate(
        model: Model, state: TrainState, frozen: Adapter | None, rows: Rows, key_C: jax.Array
    ) -> TrainState:
        def row_key(client, row):
            key = jax.random.fold_in(key_C[client], state.step_C[client])
            return jax.random.key_data(jax.random.fold_in(key, row))

        key_B2 = jax.vmap(row_key)(rows.client_B, rows.row_B)

        def total_loss(adapters_C: Adapter):
            loss_C = client_losses(
                model,
                adapters_C,
                frozen,
                rows,
                key_B2,
                scale=scale,
                dropout=dropout,
                local_weight=local_weight,
                detach=detach,
            )
            return loss_C.sum(), loss_C

        grads_C, loss_C = jax.grad(total_loss, has_aux=True)(state.adapters_C)
        return dataclasses.replace(
            state,
            grads_C=jax.tree.map(jnp.add, state.grads_C, grads_C),
            loss_C=state.loss_C + loss_C,
        )

    def update(state: TrainState, total_C: jax.Array) -> tuple[TrainState, jax.Array]:
        def one(adapter, moments, grads, loss, finite, step, total):
            active = step < total
            updates, new_moments = tx.update(grads, moments, adapter)
            rate = learning_rate * (total - step) / jnp.maximum(total, 1)
            new_adapter = jax.tree.map(lambda p, u: p - rate * u, adapter, updates)

            def keep(new, old):
                return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, old)

            finite = finite & jnp.where(active, jnp.isfinite(loss) & _all_finite(new_adapter), True)
            return keep(new_adapter, adapter), keep(new_moments, moments), finite, step + active

        adapters_C, moments_C, finite_C, step_C = jax.vmap(one)(
            state.adapters_C,
            state.moments_C,
            state.grads_C,
            state.loss_C,
            state.finite_C,
            state.step_C,
            total_C,
        )
        new = TrainState(
            adapters_C=adapters_C,
            moments_C=moments_C,
            grads_C=jax.tree.map(jnp.zeros_like, state.grads_C),
            loss_C=jnp.zeros_like(state.loss_C),
            finite_C=finite_C,
            step_C=step_C,
        )
        return new, state.loss_C

    start = jax.jit(start)
    accumulate = jax.jit(accumulate, donate_argnums=1)
    update = jax.jit(update, donate_argnums=0)

    def train_chunk(
        adapters_C: Adapter, chunk: Chunk, key: jax.Array, frozen: Adapter | None
    ) -> tuple[Adapter, PhaseMetrics]:
        key_C = jax.vmap(lambda ident: jax.random.fold_in(key, ident))(jnp.asarray(chunk.id_C))
        total_C = jnp.asarray(chunk.total_C)
        state = start(adapters_C)
        loss_UC, real, computed = [], 0, 0
        for step in chunk.updates:
            for rows in step.blocks:
                state = accumulate(model, state, frozen, rows, key_C)
            state, loss_C = update(state, total_C)
            if loss_UC:
                # One update stays in flight, so that progress is what was computed.
                jax.block_until_ready(loss_UC[-1])
            loss_UC.append(loss_C)
            real, computed = real + step.real_tokens, computed + step.computed_tokens
            on_update(step.real_tokens, step.computed_tokens)
        losses_UC = np.asarray(jnp.stack(loss_UC))
        finite_C = np.asarray(state.finite_C)
        losses = {
            name: losses_UC[: chunk.total_C[c], c].tolist() for c, name in enumerate(chunk.names)
        }
        for c, name in enumerate(chunk.names):
            if not finite_C[c]:
                raise NonFiniteError(name, chunk.phase)
        return state.adapters_C, PhaseMetrics(losses, real, computed)

    def train(
        adapters_C: Adapter,
        chunks: Sequence[Chunk],
        *,
        key: jax.Array,
        frozen: Adapter | None = None,
    ) -> tuple[Adapter, PhaseMetrics]:
        """Trains every participant's adapter on its own data; chunk by chunk."""
        trained, metrics = [], []
        for chunk in chunks:
            places = np.zeros(len(chunk.id_C), np.int32)
            places[: len(chunk.members)] = chunk.members
            part_C, part_metrics = train_chunk(take(adapters_C, places), chunk, key, frozen)
            trained.append(take(part_C, np.arange(len(chunk.members))))
            metrics.append(part_metrics)
        merged = PhaseMetrics(
            losses={name: curve for part in metrics for name, curve in part.losses.items()},
            real_tokens=sum(part.real_tokens for part in metrics),
            computed_tokens=sum(part.computed_tokens for part in metrics),
        )
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *trained), merged

    return Engine(train)
