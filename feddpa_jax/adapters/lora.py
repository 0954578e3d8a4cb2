"""LoRA adapters as explicit trees, banks of them, and the one operation that applies a bank.

Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv 2106.09685:

    y = x W + alpha / rank * dropout(x) A B,      A ~ U(-1/sqrt(in), 1/sqrt(in)),  B = 0.

An adapter is `{target: {"a": a_LDR, "b": b_LRE}}` in float32. A bank holds one adapter per client:
the same tree with a leading client axis; a factor that all clients share has a leading axis of 1. A
`Branch` says which adapter of a bank each row uses, and how much of it; a forward pass takes any
number of branches and adds them up.

A routed adapter holds K experts side by side, each of rank R / K, and a router on the map's own
input (`router.py`):

    y = x W + alpha / rank * sum over k of share_k(x) * dropout(x) A_k B_k.
"""

import dataclasses
from collections.abc import Sequence

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt

from feddpa_jax.adapters.dropout import dropout
from feddpa_jax.adapters.router import expert_shares, of_rows
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.devices.storage import held

Adapter = dict[str, dict[str, jax.Array]]
# Of each row or each token; as a tuple each layer's own, which may be gates of its tokens.
BranchWeight = jax.Array | TokenGate | tuple[jax.Array | TokenGate, ...]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def kernel_path(target: str, layer: int) -> str:
    """The dotted path of the kernel that a target names.

    >>> kernel_path("up_proj", 3)
    'layers.3.mlp.up_proj.kernel'
    """
    part = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "attention"
    return f"layers.{layer}.{part}.{target}.kernel"


def init_adapter(
    key: jax.Array, sizes: dict[str, tuple[int, int]], *, layers: int, rank: int
) -> Adapter:
    """A fresh adapter: A uniform within ±1/sqrt(in) (as `peft` initialises it), B zero.

    Args:
      key: PRNG key.
      sizes: (in, out) of every adapted map, by target name.
      layers: number of decoder layers L.
      rank: R.

    Returns:
      {target: {"a": float32 [L, in, R], "b": float32 [L, R, out]}}.
    """
    adapter = {}
    for target, (size_in, size_out) in sizes.items():
        target_key = jax.random.fold_in(key, TARGETS.index(target))
        bound = size_in**-0.5
        a_LDR = jax.random.uniform(
            target_key, (layers, size_in, rank), jnp.float32, minval=-bound, maxval=bound
        )
        adapter[target] = {"a": a_LDR, "b": jnp.zeros((layers, rank, size_out), jnp.float32)}
    return adapter


def bank_of(adapter: Adapter) -> Adapter:
    """The bank of one adapter, which all rows share (C = 1)."""
    return jax.tree.map(lambda leaf: leaf[None], adapter)


def take(adapters_C: Adapter, members: np.ndarray) -> Adapter:
    """The bank of some of a bank's clients."""
    return jax.tree.map(lambda leaf: leaf[members], adapters_C)


def bank_delta(
    x_BTD: Float[Array, "B T D"],
    a_CDR: Float[Array, "C D R"],
    b_CRE: Float[Array, "C R E"],
    client_B: Int[Array, "B"],
    weight: Float[Array, "B"] | Float[Array, "B T"],
    *,
    share_BTK: Float[Array, "B T K"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T E"]:
    """weight_b * x_b A[c(b)] B[c(b)]: what each row's adapter adds to a frozen map's output.

    Args:
      x_BTD: input of the adapted map.
      a_CDR: down projections of the bank; C = 1 where all rows share one.
      b_CRE: up projections of the bank; likewise.
      client_B: whose adapter each row uses.
      weight: mixing weight times LoRA scale, of each row or of each token.
      share_BTK: of a routed adapter, each expert's share at each token; R is a multiple of K.
      dtype: what the products' operands are rounded to.

    Returns:
      The branch's contribution, float32.
    """
    B, T, D = x_BTD.shape
    R = a_CDR.shape[2]
    chex.assert_shape([a_CDR, b_CRE, client_B], [(None, D, R), (None, R, None), (B,)])
    assert len({a_CDR.shape[0], b_CRE.shape[0]} - {1}) <= 1, "factors of different banks"
    chex.assert_rank(weight, {1, 2})
    chex.assert_axis_dimension(weight, 0, B)
    weight_BX1 = weight.reshape(weight.shape[0], -1, 1)
    u_BTR = held(of_rows(x_BTD, a_CDR, client_B, dtype))
    if share_BTK is not None:
        K = share_BTK.shape[2]
        chex.assert_is_divisible(R, K)
        u_BTR = (u_BTR.reshape(B, T, K, R // K) * share_BTK[..., None]).reshape(B, T, R)
    return of_rows(u_BTR * weight_BX1, b_CRE, client_B, dtype)


@flax.struct.dataclass
class Branch:
    """One adapter bank as the rows of a forward pass use it.

    Attributes:
      bank: adapter tree with leading axes C, L (bank) or C (one layer, after `layer_branches`); a
        leaf whose C is 1 is shared by all rows.
      client_B: whose adapter each row uses; not read where C = 1.
      weight: mixing weight without the LoRA scale: of each row, or, where a row packs several
        examples, of each token; as a tuple, each layer's own.
      key_B2: dropout key words of each row, or None for no dropout.
      scale: LoRA scale, alpha / rank.
      rate: dropout probability, used where there is a key.
      detached: no gradient flows through this branch's output.
      index: number of the branch, so that each branch has its own dropout mask.
    """

    bank: Adapter
    client_B: Int[Array, "B"]
    weight: BranchWeight
    key_B2: UInt[Array, "B 2"] | None = None
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    rate: float = flax.struct.field(pytree_node=False, default=0.0)
    detached: bool = flax.struct.field(pytree_node=False, default=False)
    index: int = flax.struct.field(pytree_node=False, default=0)


def layer_branches(branches: Sequence[Branch], layers: int) -> list[tuple[Branch, ...]]:
    """The branches of each layer: banks are split along L once, so gradients are one stack."""
    split = [
        jax.tree.map(lambda leaf: list(jnp.unstack(leaf, axis=1)), branch.bank)
        for branch in branches
    ]
    return [
        tuple(
            dataclasses.replace(
                branch,
                weight=branch.weight[layer] if isinstance(branch.weight, tuple) else branch.weight,
                bank={
                    target: {name: parts[layer] for name, parts in pair.items()}
                    for target, pair in bank.items()
                },
            )
            for branch, bank in zip(branches, split, strict=True)
        )
        for layer in range(layers)
    ]


def looped_branches(branches: Sequence[Branch], rounds: int, size: int) -> list[tuple]:
    """What each branch has of its own in every layer, for a loop of `size` layers a round.

    Args:
      branches: of all layers.
      rounds: of the loop, which begins with the first layer.
      size: layers of a round.

    Returns:
      Of each layer of a round, by branch, its bank and its weight (None where layers share one);
      every leaf starts with the rounds.
    """

    def divided(leaf_LX: jax.Array) -> list[jax.Array]:
        leaf_NPX = leaf_LX[: rounds * size].reshape(rounds, size, *leaf_LX.shape[1:])
        return list(jnp.unstack(leaf_NPX, axis=1))

    def own(branch: Branch, place: int) -> tuple:
        bank = jax.tree.map(lambda leaf: divided(jnp.moveaxis(leaf, 1, 0))[place], branch.bank)
        if not isinstance(branch.weight, tuple):
            return bank, None
        weight_L = jax.tree.map(lambda *leaves: jnp.stack(leaves), *branch.weight)
        return bank, jax.tree.map(lambda leaf: divided(leaf)[place], weight_L)

    return [tuple(own(branch, place) for branch in branches) for place in range(size)]


def with_own(branches: Sequence[Branch], own: Sequence[tuple]) -> tuple[Branch, ...]:
    """The branches of one layer, of what `looped_branches` has of it in one round."""
    return tuple(
        dataclasses.replace(branch, bank=bank, weight=branch.weight if weight is None else weight)
        for branch, (bank, weight) in zip(branches, own, strict=True)
    )


def weigh_tokens(branches: Sequence[Branch], x_BTD: jax.Array) -> tuple[Branch, ...]:
    """The branches of a layer that `x_BTD` enters; where there are gates, each token's weight."""
    return tuple(
        dataclasses.replace(branch, weight=branch.weight.weights(x_BTD))
        if isinstance(branch.weight, TokenGate)
        else branch
        for branch in branches
    )


def dropout_site(layer: int | jax.Array, target: str, index: int) -> int | jax.Array:
    """A number of its own for each layer, adapted map and branch.

    >>> dropout_site(0, "q_proj", 1), dropout_site(0, "k_proj", 1), dropout_site(0, "q_proj", 9)
    (1, 9, 16777217)
    """
    # Eight branches lie side by side, as the results of runs so far rest on it; the next eight
    # begin where no model has a layer.
    eights, place = divmod(index, 8)
    return (layer * len(TARGETS) + TARGETS.index(target)) * 8 + place + eights * 2**24


def delta(
    branches: Sequence[Branch],
    target: str,
    x_BTD: jax.Array,
    *,
    layer: int | jax.Array,
    dtype: DTypeLike,
) -> jax.Array | float:
    """The sum of what all branches of a layer add to one map; 0.0 where none adapts it."""
    total: jax.Array | float = 0.0
    for branch in branches:
        if target not in branch.bank:
            continue
        x = x_BTD
        if branch.key_B2 is not None and branch.rate > 0.0:
            site = dropout_site(layer, target, branch.index)
            x = dropout(x, branch.key_B2, site=site, rate=branch.rate)
        own = branch.bank[target]
        weight = branch.weight
        assert not isinstance(weight, tuple | TokenGate), "see layer_branches and weigh_tokens"
        y_BTE = bank_delta(
            x,
            own["a"],
            own["b"],
            branch.client_B,
            weight * branch.scale,
            # The router sees the input itself, without dropout.
            share_BTK=expert_shares(x_BTD, own, branch.client_B),
            dtype=dtype,
        )
        total = total + (jax.lax.stop_gradient(y_BTE) if branch.detached else y_BTE)
    return total
