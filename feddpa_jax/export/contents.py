"""What an export consists of: every folder's content, before anything is written.

The same plan writes a folder and checks it: what is read back must equal what the plan says.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from feddpa_jax.adapters.dual import Adapters, merge, mixed_adapter
from feddpa_jax.adapters.lora import Adapter, take
from feddpa_jax.config import Config
from feddpa_jax.hf.save import Change
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import UserError

# Where the base lies in an export, if `transformers` can load it from nowhere else.
BASE = "base"
MERGED = "merged"


class Trained(NamedTuple):
    """A trained federation.

    Attributes:
      config: the run's.
      prepared: base, clients, tokenized examples.
      adapters: global, local, LoRA scale.
      round_number: the round of the checkpoint that they come from.
      summary: the evaluation's summary.json, or None if there is none of this checkpoint.
    """

    config: Config
    prepared: Prepared
    adapters: Adapters
    round_number: int
    summary: dict[str, Any] | None

    @property
    def base_hub_id(self) -> str | None:
        """The base's hub id; None if it is from elsewhere: paths of this machine say nothing."""
        base, path = self.prepared.base, self.config.model.path
        return None if base.folder is None or Path(path).expanduser().exists() else path

    @property
    def base_name(self) -> str:
        """What the base is called: hub id, alias, or the name of its folder or file."""
        place = Path(self.config.model.path).expanduser()
        return place.resolve().name if place.exists() else self.config.model.path

    @property
    def base_reference(self) -> str:
        """What to load the base from, for a reader: `base/` of the export, hub id, or a folder."""
        if self.prepared.base.folder is None:
            return BASE
        return self.base_hub_id or f"path/to/{self.base_name}"

    def shared(self) -> Adapter | None:
        """The adapter that all clients share, if there is one."""
        bank = self.adapters.global_C
        return None if bank is None else jax.tree.map(lambda leaf: leaf[0], bank)

    def local(self, client: str) -> Adapter:
        """A client's local adapter."""
        assert self.adapters.local_C is not None
        index = self.prepared.names.index(client)
        one = take(self.adapters.local_C, np.array([index]))
        return jax.tree.map(lambda leaf: leaf[0], one)


class AdapterOut(NamedTuple):
    """An adapter that becomes a PEFT folder.

    Attributes:
      adapter: the factors.
      alpha: LoRA alpha, such that the scale is alpha / rank.
      client: whose it is; None for the global one.
      local_weight: of a mix of both adapters; None for one adapter alone.
    """

    adapter: Adapter
    alpha: float
    client: str | None = None
    local_weight: float | None = None

    @property
    def private(self) -> bool:
        """Whether it holds what a client learned alone."""
        return self.client is not None

    @property
    def rank(self) -> int:
        """R."""
        return next(iter(self.adapter.values()))["a"].shape[-1]


class ModelOut(NamedTuple):
    """A full model: the base with adapters added.

    Attributes:
      parts: (adapter, mixing weight) of what is added.
      what: the parts in words.
      private: whether a client's own adapter is among them.
    """

    parts: Sequence[tuple[Adapter, float]]
    what: str
    private: bool = False

    def change(self, scale: float) -> Change:
        """What each parameter of the base becomes."""

        def changed(path: str, leaf: jax.Array) -> jax.Array:
            match = re.fullmatch(r"layers\.(\d+)\.\w+\.(\w+)\.kernel", path)
            if match is None:
                return leaf
            layer, target = int(match[1]), match[2]
            pairs = [
                (adapter[target]["a"][layer], adapter[target]["b"][layer], weight)
                for adapter, weight in self.parts
                if target in adapter
            ]
            return merge(leaf, pairs, scale=scale) if pairs else leaf

        return changed


class Plan(NamedTuple):
    """The folders of an export by their place in it."""

    adapters: dict[str, AdapterOut]
    models: dict[str, ModelOut]


def make_plan(trained: Trained, *, mixed: float | None, merged: str | None) -> Plan:
    """What to export.

    Args:
      trained: the federation.
      mixed: local weight of `clients/<name>-mixed`; None for no such folders.
      merged: "global", "NAME" or "NAME:W", of which `merged/` is made; None for none.

    Raises:
      UserError: the run has not the adapters that are asked for.
    """
    alpha = trained.config.lora.alpha
    global_, local_C = trained.shared(), trained.adapters.local_C
    names = trained.prepared.names
    adapters: dict[str, AdapterOut] = {}
    if global_ is not None:
        adapters["global"] = AdapterOut(global_, alpha)
    if local_C is not None:
        for name in names:
            adapters[f"clients/{name}"] = AdapterOut(trained.local(name), alpha, name)
    if mixed is not None:
        if global_ is None or local_C is None:
            raise UserError(
                f"mixed: {trained.config.fed.method} has not both a global and local adapters"
            )
        _check_weight("--mixed", mixed)
        for name in names:
            place = f"clients/{name}-mixed"
            if place in adapters:
                raise UserError(f"mixed: {place} is another client's folder; rename that client")
            both = mixed_adapter(global_, trained.local(name), mixed)
            adapters[place] = AdapterOut(both, 2 * alpha, name, mixed)
    models: dict[str, ModelOut] = {}
    if merged is not None:
        models[MERGED] = _merged(trained, merged)
    if trained.prepared.base.folder is None:
        models[BASE] = ModelOut((), "the base")
    return Plan(adapters, models)


def _merged(trained: Trained, merged: str) -> ModelOut:
    global_, local_C = trained.shared(), trained.adapters.local_C
    method = trained.config.fed.method
    if merged == "global":
        if global_ is None:
            raise UserError(f"merged: {method} has no global adapter; name a client")
        return ModelOut([(global_, 1.0)], "the base with the global adapter")
    name, colon, text = merged.partition(":")
    if name not in trained.prepared.names:
        known = ", ".join(trained.prepared.names)
        raise UserError(f"merged: no client {name!r}; use global, or one of {known}")
    if local_C is None:
        raise UserError(f"merged: {method} has no local adapters; use global")
    if not colon:
        own = [(trained.local(name), 1.0)]
        return ModelOut(own, f"the base with {name}'s local adapter", private=True)
    try:
        weight = float(text)
    except ValueError:
        raise UserError(f"merged: {text!r} is no number; write NAME:W, as in {name}:0.5") from None
    _check_weight("--merged", weight)
    if global_ is None:
        raise UserError(f"merged: {method} has no global adapter; write {name} without a weight")
    return ModelOut(
        [(global_, 1.0 - weight), (trained.local(name), weight)],
        f"the base with {1 - weight:g} of the global and {weight:g} of {name}'s local adapter",
        private=True,
    )


def _check_weight(option: str, weight: float) -> None:
    if not 0.0 <= weight <= 1.0:
        raise UserError(f"{option}: the local weight {weight:g} is not between 0 and 1")
