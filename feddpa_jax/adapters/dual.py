"""The dual adapter: one global adapter for all rows and each client's local one, mixed row by row.

Yang et al., *Dual-Personalizing Adapter for Federated Foundation Models*, arXiv 2403.19211:

    y_b = x_b W + s * ( g_b * x_b A_global B_global  +  l_b * x_b A_local[c(b)] B_local[c(b)] )
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from feddpa_jax.adapters.lora import Adapter, Branch, BranchWeight
from feddpa_jax.adapters.token_gate import rest_of
from feddpa_jax.short_repr import count_numbers, short_repr

# The inference modes that every method with both adapters has.
MODES = ("base", "global", "local", "fixed", "instance")


class Adapters(NamedTuple):
    """The adapters at inference: the shared one, every client's own, and the LoRA scale.

    Attributes:
      global_C: the shared adapter, {target: {"a": [1, L, D, R], "b": [1, L, R, E]}}; with a leading
        axis of C where every client receives its own from the server. None if there is none; {}
        if the other side of a mix with the own adapter is the bare base.
      local_C: every client's own adapter, [C, ...]; None if there is none.
      scale: alpha / rank.
      others: what a method's own modes answer with, by mode: [C, ...], or [1, ...] for all.
      shared: what other clients had a part in, where that is more than the shared adapter: [C, ...]
        or [1, ...] each.

    Example:
      ```
      global_C, local_C, scale, others, shared = run.adapters
      ```
    """

    global_C: Adapter | None
    local_C: Adapter | None
    scale: float
    others: Mapping[str, Adapter] = MappingProxyType({})
    shared: tuple[Adapter, ...] = ()

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        return adapters_repr(self)

    def of(self, client: int | np.ndarray) -> "Adapters":
        """One client's, with leading axes of 1, or those of c clients, with leading axes of c."""
        members = np.atleast_1d(client)

        def some(bank: Adapter | None) -> Adapter | None:
            return bank and jax.tree.map(
                lambda leaf: leaf if leaf.shape[0] == 1 else leaf[members], bank
            )

        others = {mode: cast(Adapter, some(bank)) for mode, bank in self.others.items()}
        shared = tuple(cast(Adapter, some(bank)) for bank in self.shared)
        return Adapters(some(self.global_C), some(self.local_C), self.scale, others, shared)

    def of_others(self) -> "list[Adapters]":
        """Each adapter that other clients had a part in, alone, as the shared one."""
        return [Adapters(bank, None, self.scale) for bank in self.shared or (self.global_C,)]


def adapters_repr(given: Any) -> str:
    """What adapters, or a method's answers, say of themselves: the numbers that each bank holds."""
    own = given.local_C
    leaves = jax.tree.leaves([own, given.global_C, *given.others.values()])
    others = {mode: count_numbers(bank) for mode, bank in given.others.items()}
    return short_repr(
        given,
        clients=max((leaf.shape[0] for leaf in leaves), default=None),
        global_C=None if given.global_C is None else count_numbers(given.global_C),
        local_C=None if own is None else count_numbers(own),
        others=others or None,
        scale=getattr(given, "scale", None),
    )


def is_shared(bank: Adapter | None) -> bool:
    """Whether all clients answer with the same adapter of a bank."""
    return all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(bank))


def dual_branches(
    global_C: Adapter | None,
    local_C: Adapter | None,
    client_B: Int[Array, "B"],
    local_weight: BranchWeight,
    *,
    scale: float,
    global_weight: BranchWeight | None = None,
    key_B2: UInt[Array, "B 2"] | None = None,
    rate: float = 0.0,
    detach_global: bool = False,
) -> tuple[Branch, ...]:
    """The branches of a forward pass under the dual adapter.

    Args:
      global_C: the shared bank, with a leading axis of 1 or of C, or None to leave it out.
      local_C: the clients' local adapters, or None to leave them out.
      client_B: the client of each row.
      local_weight: l, the weight of the local adapter, of each row or each token; as a tuple, each
        layer's own, which may be a gate of its tokens.
      scale: LoRA scale, alpha / rank.
      global_weight: g, the weight of the global adapter; 1 - l if None.
      key_B2: dropout key words of each row, or None for none.
      rate: dropout probability.
      detach_global: stop gradients at the global branch's output.

    Returns:
      One branch for each given adapter, global first.
    """
    weight = global_weight
    if weight is None:
        weight = rest_of(local_weight)
    branches = []
    if global_C is not None:
        branches.append(Branch(global_C, client_B, weight, key_B2, scale, rate, detach_global, 0))
    if local_C is not None:
        branches.append(Branch(local_C, client_B, local_weight, key_B2, scale, rate, False, 1))
    return tuple(branches)


def mixed_adapter(global_: Adapter, local: Adapter, local_weight: float) -> Adapter:
    """One adapter of both ranks' sum that equals both at a fixed mix, at the same LoRA scale.

    (1 - l) A_g B_g + l A_l B_l = [A_g A_l] [(1 - l) B_g; l B_l].

    Args:
      global_: {target: {"a": [L, in, R], "b": [L, R, out]}}.
      local: a client's, of the same targets; its rank may differ.
      local_weight: l.
    """
    assert global_.keys() == local.keys()
    return {
        target: {
            "a": jnp.concatenate([pair["a"], local[target]["a"]], axis=2),
            "b": jnp.concatenate(
                [(1.0 - local_weight) * pair["b"], local_weight * local[target]["b"]], axis=1
            ),
        }
        for target, pair in global_.items()
    }


def merge(
    kernel_DE: Float[Array, "D E"],
    pairs: Sequence[tuple[Float[Array, "D R"], Float[Array, "R E"], float]],
    *,
    scale: float,
) -> Float[Array, "D E"]:
    """A frozen kernel with adapters added: W + scale * sum of weight * A B, summed in float32.

    Args:
      kernel_DE: W.
      pairs: A, B and mixing weight of each adapter.
      scale: LoRA scale, alpha / rank.

    Returns:
      The merged kernel in W's dtype.
    """
    merged_DE = kernel_DE.astype(jnp.float32)
    D, E = kernel_DE.shape
    for a_DR, b_RE, weight in pairs:
        chex.assert_shape([a_DR, b_RE], [(D, None), (None, E)])
        product_DE = jnp.matmul(a_DR, b_RE, precision=jax.lax.Precision.HIGHEST)
        merged_DE = merged_DE + scale * weight * product_DE
    return merged_DE.astype(kernel_DE.dtype)
