"""Rows of answers under way: ended ones are replaced by the next prompts, and all go on together.

Yu et al., *Orca: A Distributed Serving System for Transformer-Based Generative Models* (OSDI 2022),
schedule by step and not by batch: no row waits for the longest answer of those that it began with.
Here the steps run on the device until enough rows have ended for a group of prompts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import Adapter, Branch
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.devices.mesh import CLIENTS
from feddpa_jax.inference import beam, decode
from feddpa_jax.inference.decode import Answering, Decoded, Follow
from feddpa_jax.inference.score_block import by_layer, spec_of
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.kv_cache import empty_cache, with_rows


@dataclasses.dataclass(frozen=True)
class Search:
    """How answers are found.

    Attributes:
      beams: W; 1 is greedy.
      max_new_tokens: T, most tokens of an answer.
      stop_ids: the tokens of which any ends one.
      pad_id: what follows it.
    """

    beams: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int

    @property
    def slots(self) -> int:
        """Those of a cache that an answer takes."""
        return self.beams * self.max_new_tokens

    def begin(self, rows: int) -> Any:
        """What the search carries, before the first tokens."""
        ends = {"pad_id": self.pad_id, "max_new_tokens": self.max_new_tokens}
        if self.beams == 1:
            return decode.begin(rows, **ends)
        return beam.begin(rows, self.beams, **ends)

    @property
    def follow(self) -> Follow:
        """A step of it."""
        step = decode.follow if self.beams == 1 else beam.follow
        return functools.partial(step, stop_ids=self.stop_ids)

    def answers(self, search: Any) -> Decoded:
        """The answers of ended rows."""
        return decode.answers_of(search) if self.beams == 1 else beam.best(search, self.pad_id)


class Asked(NamedTuple):
    """Who answers in some rows: a client each, and its weights, which may be each layer's."""

    client_B: jax.Array
    global_weight: jax.Array | TokenGate
    local_weight: jax.Array | TokenGate

    def branches(
        self, banks: tuple[Adapter | None, Adapter | None], scale: float
    ) -> tuple[Branch, ...]:
        """The branches of a forward pass over these rows."""
        return dual_branches(
            *banks,
            self.client_B,
            by_layer(self.local_weight, 1),
            scale=scale,
            global_weight=by_layer(self.global_weight, 1),
        )

    def specs(self) -> "Asked":
        """How they are split over devices."""
        return Asked._make(spec_of(part, 1) for part in self)


class Advanced(NamedTuple):
    """Rows after some steps, which of them have not ended, and the answers of those that have."""

    rows: Answering
    open_B: jax.Array
    decoded: Decoded


def _rows_alone(model: Model, rows: int, length: int, search: Search) -> Answering:
    W, T = search.beams, search.max_new_tokens
    carried = search.begin(rows)
    return Answering(
        carried._replace(open_B=jnp.zeros(rows, bool)),
        jnp.zeros((rows, W), jnp.int32),
        jnp.ones(rows, jnp.int32),
        empty_cache(model.config, rows, length + search.slots, model.dtype),
        jnp.zeros((rows, W, T), jnp.int32),
        jnp.zeros(1, jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("rows", "length", "search", "mesh"))
def ended_rows(
    model: Model, *, rows: int, length: int, search: Search, mesh: Mesh | None
) -> Answering:
    """Rows of which all have ended.

    Args:
      model: the frozen base.
      rows: B, of all devices.
      length: most tokens of a prompt.
      search: how answers are found.
      mesh: the devices that rows are split over; None for one.
    """
    if mesh is None:
        return _rows_alone(model, rows, length, search)
    whole = _rows_alone(model, rows, length, search)
    clocks = jnp.zeros(mesh.shape[CLIENTS], jnp.int32)
    own = NamedSharding(mesh, PartitionSpec(CLIENTS))
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, own), whole._replace(clock_1=clocks)
    )


@functools.partial(jax.jit, static_argnames=("scale", "search", "mesh"), donate_argnames=("rows",))
def admit(
    model: Model,
    banks: tuple[Adapter | None, Adapter | None],
    rows: Answering,
    tokens_AT: jax.Array,
    length_A: jax.Array,
    asked: Asked,
    row_A: jax.Array,
    *,
    scale: float,
    search: Search,
    mesh: Mesh | None,
) -> Answering:
    """Puts prompts into rows that have ended.

    Args:
      model: the frozen base.
      banks: the shared adapters and the clients' own.
      rows: all rows, which are used up.
      tokens_AT: prompts, padded on the right.
      length_A: their lengths.
      asked: who answers them.
      row_A: the row of each one's device that it is put into; past the last one: into none.
      scale: LoRA scale.
      search: how answers are found.
      mesh: the devices that rows and prompts are split over; None for one.
    """

    def own(
        model: Model,
        banks: tuple[Adapter | None, Adapter | None],
        rows: Answering,
        tokens_AT: jax.Array,
        length_A: jax.Array,
        asked: Asked,
        row_A: jax.Array,
    ) -> Answering:
        prompt = decode.prefill(model, asked.branches(banks, scale), tokens_AT, length_A)
        followed = decode.first_tokens(
            model, prompt, search.begin(len(row_A)), search.follow, search.beams
        )

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[row_A].set(new, mode="drop")

        return rows._replace(
            search=jax.tree.map(put, rows.search, followed.search),
            token_BW=put(rows.token_BW, followed.token_BW),
            length_B=put(rows.length_B, length_A),
            cache=with_rows(rows.cache, row_A, prompt.cache),
        )

    split = PartitionSpec(CLIENTS)
    run = _by_device(own, mesh, split, split, split, asked.specs(), split)
    return run(model, banks, rows, tokens_AT, length_A, asked, row_A)


@functools.partial(jax.jit, static_argnames=("scale", "search", "mesh"), donate_argnames=("rows",))
def go_on(
    model: Model,
    banks: tuple[Adapter | None, Adapter | None],
    rows: Answering,
    asked: Asked,
    enough_1: jax.Array,
    *,
    scale: float,
    search: Search,
    mesh: Mesh | None,
) -> Advanced:
    """Goes on with all rows until enough of them have ended, each device by itself.

    Args:
      model: the frozen base.
      banks: the shared adapters and the clients' own.
      rows: all rows, which are used up.
      asked: who answers in them.
      enough_1: how many ended rows, for each device.
      scale: LoRA scale.
      search: how answers are found.
      mesh: the devices that rows are split over; None for one.
    """

    def own(
        model: Model,
        banks: tuple[Adapter | None, Adapter | None],
        rows: Answering,
        asked: Asked,
        enough_1: jax.Array,
    ) -> Advanced:
        branches = asked.branches(banks, scale)
        rows = decode.advance(model, branches, rows, search.follow, enough_1[0])
        return Advanced(rows, rows.search.open_B, search.answers(rows.search))

    split = PartitionSpec(CLIENTS)
    run = _by_device(own, mesh, split, asked.specs(), split)
    return run(model, banks, rows, asked, enough_1)


def _by_device(own: Callable[..., Any], mesh: Mesh | None, *specs: Any) -> Callable[..., Any]:
    """The same function on each device of a mesh, of its own part of the rows.

    Args:
      own: of the base and the banks, which every device has whole, and of what is split.
      mesh: the devices; None for one.
      *specs: how the other arguments are split.
    """
    if mesh is None:
        return own
    whole = PartitionSpec()
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(whole, whole, *specs),
        out_specs=PartitionSpec(CLIENTS),
        axis_names={CLIENTS},
        check_vma=False,
    )
