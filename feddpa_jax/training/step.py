"""The compiled client step: many clients' local trainings as one program over one frozen base.

Each client runs AdamW (Loshchilov & Hutter, arXiv 1711.05101; no weight decay, so Adam) on its own
slice of a bank, with its own clipping, learning-rate schedule and number of updates:

    loss_c = sum over c's response positions p of weight_p * nll_p
    lr_c(u) = learning_rate * (U_c - u) / U_c,      u = 0 .. U_c - 1

A phase may add a penalty to each update's loss (FedProx, Ditto); its gradient is clipped with the
rest, and the losses told are without it.

Rows of all clients share the forward and backward pass; the gather of each row's adapter sends its
gradient back to its own client, so one step equals, to rounding, every client trained alone. A step
computes one block and updates the clients whose update ends with it. The client axis is split over
the mesh axis `clients`; no step needs anything from another shard.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.adapters.mix import Mix, branches_of
from feddpa_jax.devices.mesh import CLIENTS, MODEL
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.models.head import weighted_nll
from feddpa_jax.models.remat import Remat
from feddpa_jax.training.rows import Rows

# {part: {target: {leaf: array}}}.
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """What a phase's loss is; one step is compiled for each.

    Attributes:
      mix: the parts, trained and frozen, to the terms of the forward pass.
      penalty: `(trained, frozen) -> scalar` of one client's trees without a client axis, added to
        every update's loss; or None.
    """

    mix: Mix
    penalty: Callable[[Tree, Tree], jax.Array] | None = None


class Frozen(NamedTuple):
    """The parts that a phase reads and does not train, by name.

    Attributes:
      shared: the same for all clients: {part: {target: {leaf: [L, ...]}}}.
      own_C: each client's: the same with a leading axis C.
    """

    shared: Tree
    own_C: Tree


@flax.struct.dataclass
class TrainState:
    """What local training carries from update to update; every leaf starts with C.

    Attributes:
      trained_C: the leaves in training, {part: {target: {leaf: [C, L, ...]}}}.
      moments_C: optimizer state.
      grads_C: gradient sums of the unfinished update.
      loss_C: loss of the unfinished update.
      finite_C: whether all losses and gradients so far were finite.
      step_C: updates done.
    """

    trained_C: Tree
    moments_C: Any
    grads_C: Tree
    loss_C: jax.Array
    finite_C: jax.Array
    step_C: jax.Array


class Step(NamedTuple):
    """The programs of local training under one objective.

    Attributes:
      start: `trained_C -> TrainState`.
      step: `(model, state, frozen, rows, key_C2, total_C, ends_C, learning_rate) -> (state,
        loss_C)`; the state is donated.
      loss: `(model, trained_C, frozen, rows) -> loss_C`: a block's losses alone, without dropout.
    """

    start: Any
    step: Any
    loss: Any


def together(trained_C: Tree, frozen: Frozen) -> Tree:
    """All parts of a phase, leaf by leaf; what is shared has a leading axis of 1.

    A trained leaf hides the frozen one of its name, which it has started from.
    """
    shared = jax.tree.map(lambda leaf: leaf[None], frozen.shared)
    found: Tree = {}
    for tree in (shared, frozen.own_C, trained_C):
        for part, targets in tree.items():
            own = found.setdefault(part, {})
            for target, leaves in targets.items():
                own[target] = {**own.get(target, {}), **leaves}
    return found


def client_losses(
    model: Model,
    trained_C: Tree,
    frozen: Frozen,
    rows: Rows,
    key_B2: jax.Array | None,
    *,
    mix: Mix,
    scale: float,
    dropout: float,
    remat: Remat = "none",
    gathered: bool = False,
) -> jax.Array:
    """Each client's loss on a block of rows, [C]: sums of weight_p * nll_p.

    Args:
      model: the frozen base.
      trained_C: the leaves in training.
      frozen: the parts beside them.
      rows: the block.
      key_B2: dropout key words of each row; None for no dropout.
      mix: how the parts add up.
      scale: LoRA scale.
      dropout: dropout probability.
      remat: what layers hold for the backward pass.
      gathered: gather each layer's parameters where the layer is computed.
    """
    terms = mix(together(trained_C, frozen))
    branches = branches_of(terms, rows.client_B, scale=scale, key_B2=key_B2, rate=dropout)
    hidden_BTD, _ = model.hidden(
        rows.tokens_BT,
        rows.position_BT,
        causal_mask(rows.segment_BT),
        branches,
        segment_BT=rows.segment_BT,
        remat=remat,
        gathered=gathered,
    )
    chex.assert_equal_shape([rows.row_P, rows.place_P, rows.target_P, rows.weight_P])
    hidden_PD = hidden_BTD[rows.row_P, rows.place_P]
    loss_P = weighted_nll(model, hidden_PD, rows.target_P, rows.weight_P)
    clients = jax.tree.leaves(trained_C)[0].shape[0]
    chex.assert_tree_shape_prefix(trained_C, (clients,))
    return jax.ops.segment_sum(loss_P, rows.client_B[rows.row_P], num_segments=clients)


def split_rows(rows: Rows) -> Rows:
    """A shard's rows, and its response positions, split over the mesh axis `model`."""
    return Rows(*(jax.lax.with_sharding_constraint(leaf, PartitionSpec(MODEL)) for leaf in rows))


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def start_training(trained_C: Tree, init_moments: Callable[[Tree], Any]) -> TrainState:
    """The state before the first block."""
    clients = jax.tree.leaves(trained_C)[0].shape[0]
    return TrainState(
        # A copy: the state is donated to every step, the caller's leaves are not.
        trained_C=jax.tree.map(jnp.copy, trained_C),
        moments_C=jax.vmap(init_moments)(trained_C),
        grads_C=jax.tree.map(jnp.zeros_like, trained_C),
        loss_C=jnp.zeros((clients,)),
        finite_C=jnp.ones((clients,), bool),
        step_C=jnp.zeros((clients,), jnp.int32),
    )


def accumulate(
    losses: Callable[..., jax.Array],
    model: Model,
    state: TrainState,
    frozen: Frozen,
    rows: Rows,
    key_C2: jax.Array,
) -> TrainState:
    """Adds a block's losses and gradients to those of the unfinished updates.

    Args:
      losses: `client_losses` with its settings.
      model: the frozen base.
      state: before the block.
      frozen: the parts beside the trained ones.
      rows: the block.
      key_C2: key words of each client.
    """

    def row_key(client, row):
        key = jax.random.wrap_key_data(key_C2[client])
        key = jax.random.fold_in(key, state.step_C[client])
        return jax.random.key_data(jax.random.fold_in(key, row))

    key_B2 = jax.vmap(row_key)(rows.client_B, rows.row_B)

    def total_loss(trained_C: Tree):
        loss_C = losses(model, trained_C, frozen, rows, key_B2)
        return loss_C.sum(), loss_C

    grads_C, loss_C = jax.grad(total_loss, has_aux=True)(state.trained_C)
    return dataclasses.replace(
        state,
        grads_C=jax.tree.map(jnp.add, state.grads_C, grads_C),
        loss_C=state.loss_C + loss_C,
    )


def update(
    tx: optax.GradientTransformation,
    penalty: Callable[[Tree, Tree], jax.Array] | None,
    state: TrainState,
    frozen: Frozen,
    total_C: jax.Array,
    ends_C: jax.Array,
    learning_rate: jax.Array,
) -> TrainState:
    """Updates the clients whose update ends with the block just accumulated.

    Args:
      tx: clips and scales a client's gradient.
      penalty: as of `Objective`.
      state: with the block's losses and gradients.
      frozen: what the penalty sees besides.
      total_C: each client's number of updates.
      ends_C: whose update ends.
      learning_rate: at the first update.
    """

    def one(client: TrainState, own: Tree, total: jax.Array, ends: jax.Array) -> TrainState:
        step, trained, grads = client.step_C, client.trained_C, client.grads_C
        if penalty is not None:
            pulls = jax.grad(penalty)(trained, {**frozen.shared, **own})
            grads = jax.tree.map(jnp.add, grads, pulls)
        updates, moments = tx.update(grads, client.moments_C, trained)
        rate = learning_rate * (total - step) / jnp.maximum(total, 1)
        new = TrainState(
            trained_C=jax.tree.map(lambda p, u: p - rate * u, trained, updates),
            moments_C=moments,
            grads_C=jax.tree.map(jnp.zeros_like, client.grads_C),
            loss_C=jnp.zeros_like(client.loss_C),
            finite_C=client.finite_C,
            step_C=step + 1,
        )
        finite = jnp.isfinite(client.loss_C) & _all_finite(new.trained_C)
        new = dataclasses.replace(new, finite_C=client.finite_C & finite)
        return jax.tree.map(lambda a, b: jnp.where(ends, a, b), new, client)

    return jax.vmap(one)(state, frozen.own_C, total_C, ends_C)


def _compute_block(
    losses: Callable[..., jax.Array],
    finish: Callable[..., TrainState],
    splits_rows: bool,
    model: Model,
    state: TrainState,
    frozen: Frozen,
    rows: Rows,
    key_C2: jax.Array,
    total_C: jax.Array,
    ends_C: jax.Array,
    learning_rate: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """As of `Step.step`, with `losses` of `accumulate` and `finish` of `update`."""
    chex.assert_tree_shape_prefix((state, frozen.own_C, key_C2, total_C), ends_C.shape)
    rows = split_rows(rows) if splits_rows else rows
    state = accumulate(losses, model, state, frozen, rows, key_C2)
    loss_C = state.loss_C
    state = jax.lax.cond(
        ends_C.any(),
        finish,
        lambda state, *_: state,
        *(state, frozen, total_C, ends_C, learning_rate),
    )
    return state, loss_C


def make_step(
    mesh: Mesh,
    objective: Objective,
    *,
    base_mode: str,
    scale: float,
    dropout: float,
    max_grad_norm: float,
    remat: Remat,
) -> Step:
    """The programs of an engine under an objective; the arguments are those of `make_engine`."""
    splits_rows = base_mode == "full" and mesh.shape[MODEL] > 1
    tx = optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    )

    losses = functools.partial(
        client_losses,
        mix=objective.mix,
        scale=scale,
        dropout=dropout,
        remat="layer" if splits_rows else remat,
        gathered=splits_rows,
    )
    finish = functools.partial(update, tx, objective.penalty)

    def loss(model: Model, trained_C: Tree, frozen: Frozen, rows: Rows) -> jax.Array:
        rows = split_rows(rows) if splits_rows else rows
        return losses(model, trained_C, frozen, rows, None)

    step = functools.partial(_compute_block, losses, finish, splits_rows)
    own, all_ = PartitionSpec(CLIENTS), PartitionSpec()
    beside: Any = Frozen(*cast(Any, (all_, own)))
    # A kernel for TPUs wants every axis of the mesh to itself; an axis of one device costs nothing.
    manual = {CLIENTS} if mesh.shape[MODEL] > 1 else {CLIENTS, MODEL}
    shards = {"mesh": mesh, "out_specs": own, "axis_names": manual, "check_vma": False}
    return Step(
        start=jax.jit(
            functools.partial(start_training, init_moments=tx.init),
            out_shardings=NamedSharding(mesh, own),
        ),
        step=jax.jit(
            jax.shard_map(step, in_specs=(all_, own, beside, *[own] * 4, all_), **shards),
            donate_argnums=1,
        ),
        loss=jax.jit(jax.shard_map(loss, in_specs=(all_, own, beside, own), **shards)),
    )
