"""The compiled scoring of one block of packed requests, on one device or on several.

On several, each computes a block of its own rows of the same shape, and nothing is sent between
them: what a request scores does not depend on how many there are.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import Adapter, BranchWeight
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.devices.mesh import CLIENTS
from feddpa_jax.inference.likelihood import likelihoods
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.models.head import by_positions, positions_at_once
from feddpa_jax.training.rows import Rows


class Prompts(NamedTuple):
    """Where the prompts of a block's E examples are, of which some may be none.

    Attributes:
      owner_BT: number of the example whose prompt a token belongs to; E for none.
      row_E: each example's row.
      place_E: its last prompt token.
      length_E: its prompt's tokens; 0 for none.
    """

    owner_BT: np.ndarray
    row_E: np.ndarray
    place_E: np.ndarray
    length_E: np.ndarray


def by_layer(weight: jax.Array | TokenGate, axes: int) -> BranchWeight:
    """Splits a leading layer axis into a tuple, if there is one."""
    if isinstance(weight, TokenGate):
        return weight.by_layer()
    return weight if weight.ndim == axes else tuple(jnp.unstack(weight))


def spec_of(weight: Any, axes: int) -> PartitionSpec:
    """How weights of `axes` axes are split over devices by row; a layer axis may lead."""
    layered = isinstance(weight, TokenGate) or weight.ndim > axes
    return PartitionSpec(None, CLIENTS) if layered else PartitionSpec(CLIENTS)


def score_block(
    model: Model,
    global_C: Adapter | None,
    local_C: Adapter | None,
    rows: Rows,
    global_weight_BT: jax.Array | TokenGate,
    local_weight_BT: jax.Array | TokenGate,
    prompts: Prompts,
    *,
    scale: float,
    layers: tuple[int, ...],
    mesh: Mesh | None = None,
):
    """Scores a block's examples.

    Args:
      model: the frozen base.
      global_C: the shared adapter's bank, if any.
      local_C: the clients' own.
      rows: packed examples.
      global_weight_BT: g of each token, or each row's gate of them; each may have a leading layer
        axis.
      local_weight_BT: l, likewise.
      prompts: where the prompts are.
      scale: LoRA scale.
      layers: after how many layers prompts are embedded.
      mesh: several devices, of which each has its own rows, response positions and prompts, one
        after the other; their indexes count within the device. None: one device.

    Returns:
      Of every response position its negative log-likelihood, whether it is the argmax, and the
      entropy; of every example the last and mean prompt embedding by layer, and the mean gates.
    """
    block = functools.partial(_block, scale=scale, layers=layers)
    if mesh is not None:
        all_, own = PartitionSpec(), PartitionSpec(CLIENTS)
        weights = [spec_of(weight, 2) for weight in (global_weight_BT, local_weight_BT)]
        block = jax.shard_map(
            block,
            mesh=mesh,
            in_specs=(all_, all_, all_, own, *weights, own),
            out_specs=own,
            axis_names={CLIENTS},
            check_vma=False,
        )
    return block(model, global_C, local_C, rows, global_weight_BT, local_weight_BT, prompts)


def _block(
    model: Model,
    global_C: Adapter | None,
    local_C: Adapter | None,
    rows: Rows,
    global_weight_BT: jax.Array | TokenGate,
    local_weight_BT: jax.Array | TokenGate,
    prompts: Prompts,
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
    nll_P, correct_P, entropy_P = by_positions(
        lambda hidden_PD, target_P: likelihoods(model.logits(hidden_PD), target_P),
        positions_at_once(model.config.vocab_size),
        *(states[-1][rows.row_P, rows.place_P], jnp.asarray(rows.target_P)),
    )
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
