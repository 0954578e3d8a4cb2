"""What an export consists of: every folder's content, before anything is written.

The same plan writes a folder and checks it: what is read back must equal what the plan says.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from feddpa_jax.adapters.dual import merge, mixed_adapter
from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.adapters.padding import without_padding
from feddpa_jax.export.routed import RoutedOut, is_routed, split_experts
from feddpa_jax.export.trained import BASE, Trained
from feddpa_jax.hf.save import Change
from feddpa_jax.types import UserError

MERGED = "merged"


class AdapterOut(NamedTuple):
    """An adapter that becomes a PEFT folder.

    Attributes:
      adapter: the factors; ranks may differ by target.
      alpha: LoRA alpha, such that the scale is alpha / rank.
      client: whose it is; None if all clients share it.
      local_weight: of a mix of both adapters; None for one adapter alone.
      mode: "shared" for what the server sends this client alone; or the method's own mode that
        answers with it.
      expert: its number among the experts of a routed adapter.
      common: the factors that all clients share, "a" or "b", of a client's own adapter.
    """

    adapter: Adapter
    alpha: float
    client: str | None = None
    local_weight: float | None = None
    mode: str | None = None
    expert: int | None = None
    common: tuple[str, ...] = ()

    @property
    def private(self) -> bool:
        """Whether it holds what a client learned alone."""
        return self.client is not None

    @property
    def rank(self) -> int:
        """R, the largest of all targets'."""
        return max(pair["a"].shape[-1] for pair in self.adapter.values())

    @property
    def ranks(self) -> dict[str, int]:
        """R by target."""
        return {target: pair["a"].shape[-1] for target, pair in self.adapter.items()}

    @property
    def scales(self) -> dict[str, float]:
        """Alpha / R by target, as it is written; the same up to rounding."""
        return {t: self.alpha * (own / self.rank) / own for t, own in self.ranks.items()}


def in_words(out: AdapterOut) -> str:
    """What an adapter is, in a few words."""
    whose = "all clients" if out.client is None else out.client
    if out.expert is not None:
        return f"expert {out.expert} of what {whose} answers with in the mode {out.mode or 'local'}"
    if out.mode == "shared":
        return f"the server's adapter for {whose}"
    if out.mode is not None:
        return f"the adapter of {whose} in the mode {out.mode}"
    if out.client is None:
        return "the global adapter"
    if out.local_weight is None:
        return f"the local adapter of {whose}"
    return f"both adapters of {whose} at local weight {out.local_weight:g}, as one"


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
    routed: Mapping[str, RoutedOut] = MappingProxyType({})


def make_plan(trained: Trained, *, mixed: float | None, merged: str | None) -> Plan:
    """What to export.

    Args:
      trained: the federation.
      mixed: local weight of `clients/<name>-mixed`; None for no such folders.
      merged: "global", "NAME", "NAME:W" or another folder of `clients/`, of which `merged/` is
        made; None for none.

    Raises:
      UserError: the run has not the adapters that are asked for, or two folders have one name.
    """
    plan = _Places({}, {}, {})
    global_, bank_C = trained.shared(), trained.adapters.global_C
    names = trained.prepared.names
    if global_ is not None:
        _add(plan, trained, "global", global_)
    for name in names if trained.adapters.local_C is not None else ():
        _add(plan, trained, f"clients/{name}", trained.local(name), name, common=_common(trained))
    for name in names if bank_C and global_ is None else ():
        shared = trained.shared_by(name)
        assert shared is not None
        _add(plan, trained, f"clients/{name}-shared", shared, name, mode="shared")
    for mode in trained.adapters.others:
        if trained.is_for_all(mode):
            _add(plan, trained, mode, trained.other(names[0], mode), mode=mode)
            continue
        for name in names:
            _add(
                plan, trained, f"clients/{name}-{mode}", trained.other(name, mode), name, mode=mode
            )
    if mixed is not None:
        _add_mixed(plan, trained, mixed)
    if merged is not None:
        plan.models[MERGED] = _merged(trained, plan, merged)
    if trained.brings_base:
        plan.models[BASE] = ModelOut((), "the base")
    return Plan(*plan)


class _Places(NamedTuple):
    """A plan in the making."""

    adapters: dict[str, AdapterOut]
    models: dict[str, ModelOut]
    routed: dict[str, RoutedOut]


def _add(
    plan: _Places,
    trained: Trained,
    place: str,
    adapter: Adapter,
    client: str | None = None,
    **about: Any,
) -> None:
    """Adds an adapter to the plan, or a routed one's experts and router.

    Raises:
      UserError: the place is another adapter's.
    """
    if place in plan.adapters or place in plan.routed:
        raise UserError(f"export: {place} is another client's folder; rename that client")

    def out(adapter: Adapter, expert: int | None = None) -> AdapterOut:
        adapter = without_padding(adapter)
        rank = max(pair["a"].shape[-1] for pair in adapter.values())
        # The scale is the run's at any rank.
        alpha = trained.config.lora.alpha * (rank / trained.rank)
        return AdapterOut(adapter, alpha, client, expert=expert, **about)

    if not is_routed(adapter):
        plan.adapters[place] = out(adapter)
        return
    router, experts = split_experts(adapter)
    folders = tuple(f"expert_{k}" for k in range(len(experts)))
    plan.routed[place] = RoutedOut(router, folders, client, about.get("mode") or "local")
    for k, expert in enumerate(experts):
        plan.adapters[f"{place}/{folders[k]}"] = out(expert, k)


def _common(trained: Trained) -> tuple[str, ...]:
    """The factors of the clients' own adapters that all clients share."""
    bank_C = trained.adapters.local_C
    assert bank_C is not None
    if len(trained.prepared.names) == 1:
        return ()
    leaves = next(iter(bank_C.values()))
    return tuple(name for name, leaf in leaves.items() if leaf.shape[0] == 1)


def _add_mixed(plan: _Places, trained: Trained, weight: float) -> None:
    global_C, local_C = trained.adapters.global_C, trained.adapters.local_C
    if global_C is None or local_C is None:
        raise UserError(
            f"mixed: {trained.config.fed.method} has not both a global and local adapters"
        )
    if is_routed(global_C) or is_routed(local_C):
        raise UserError(
            f"mixed: {trained.config.fed.method} has routed adapters, which are no single adapter; "
            "leave it out"
        )
    _check_weight("--mixed", weight)
    for name in trained.prepared.names:
        shared = trained.shared_by(name)
        assert shared is not None
        own = without_padding(trained.local(name))
        if shared:
            both = mixed_adapter(without_padding(shared), own, weight)
        else:  # Mixed with the bare base.
            both = {target: {**pair, "b": weight * pair["b"]} for target, pair in own.items()}
        _add(plan, trained, f"clients/{name}-mixed", both, name, local_weight=weight)


def _merged(trained: Trained, plan: _Places, merged: str) -> ModelOut:
    method, names = trained.config.fed.method, trained.prepared.names
    if merged == "global":
        global_ = trained.shared()
        if global_ is None:
            raise UserError(f"merged: {method} has no global adapter; name a client")
        return ModelOut([(global_, 1.0)], "the base with the global adapter")
    name, colon, text = merged.partition(":")
    folder = f"clients/{merged}"
    if folder in plan.routed or f"clients/{name}" in plan.routed:
        raise UserError(f"merged: {name} is routed, which no full model can be; name another")
    out = plan.adapters.get(folder, plan.adapters.get(merged))
    if name not in names and out is not None:
        return ModelOut([(out.adapter, 1.0)], f"the base with {in_words(out)}", out.private)
    if name not in names:
        known = ", ".join(names)
        raise UserError(f"merged: no client {name!r}; use global, or one of {known}")
    if trained.adapters.local_C is None:
        raise UserError(f"merged: {method} has no local adapters; use {_instead(plan, name)}")
    if not colon:
        own = [(trained.local(name), 1.0)]
        return ModelOut(own, f"the base with {name}'s local adapter", private=True)
    try:
        weight = float(text)
    except ValueError:
        raise UserError(f"merged: {text!r} is no number; write NAME:W, as in {name}:0.5") from None
    _check_weight("--merged", weight)
    shared = trained.shared_by(name)
    if shared is None:
        raise UserError(f"merged: {method} has no global adapter; write {name} without a weight")
    theirs = f"{1 - weight:g} of the global and " if shared else ""
    return ModelOut(
        [(shared, 1.0 - weight), (trained.local(name), weight)],
        f"the base with {theirs}{weight:g} of {name}'s local adapter",
        private=True,
    )


def _instead(plan: _Places, name: str) -> str:
    """The other folders that can be merged for a client without a local adapter."""
    start = f"clients/{name}-"
    own = [place.removeprefix("clients/") for place in plan.adapters if place.startswith(start)]
    return " or ".join([*(["global"] if "global" in plan.adapters else []), *own]) or "a folder"


def _check_weight(option: str, weight: float) -> None:
    if not 0.0 <= weight <= 1.0:
        raise UserError(f"{option}: the local weight {weight:g} is not between 0 and 1")
