"""The adapters that a run starts from (`init.*`), read from PEFT folders."""

import dataclasses
import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import Adapter, bank_of, take
from feddpa_jax.config import Config
from feddpa_jax.federated.clients import ClientParts
from feddpa_jax.federated.method import FedState
from feddpa_jax.hf.peft_format import PeftAdapter, is_peft_folder, read_adapter
from feddpa_jax.hf.record import FILES, RECORD, check_files
from feddpa_jax.hf.tensors import read_json
from feddpa_jax.run.inputs import Prepared, make_method
from feddpa_jax.types import UserError


def start_from(config: Config, prepared: Prepared, fresh: FedState) -> FedState:
    """A method's fresh state with the adapters that `init` names in their places.

    Raises:
      UserError: an adapter cannot be read or does not fit, or the method starts without its like.
    """
    _check_places(config, fresh)
    global_ = global_adapter(config, prepared)
    server = fresh.server if global_ is None else {**fresh.server, "global": global_}
    return FedState(server, named_clients(config, prepared, fresh.clients))


def check_start(config: Config, prepared: Prepared, fresh: FedState) -> None:
    """Reads what `init` names, so that a command that cannot use it has written nothing yet.

    Raises:
      UserError: as `start_from` does.
    """
    _check_places(config, fresh)
    global_adapter(config, prepared)
    local_adapters(config, prepared)


def _check_places(config: Config, fresh: FedState) -> None:
    named = {"global": config.init.global_adapter, "local": config.init.local_adapter}
    if config.init.global_adapter is not None and config.lora.ranks is not None:
        raise UserError(
            "init.global_adapter: has one rank and cannot be cut to lora.ranks; leave one of them "
            "null"
        )
    there = {
        name
        for name, part in {**fresh.server, **_shapes(fresh.clients)}.items()
        if all(leaves.keys() == {"a", "b"} for leaves in part.values())
    }
    for part, folder in named.items():
        if folder is None or part in there:
            continue
        other = "local" if part == "global" else "global"
        remedy = f"use init.{other}_adapter, or another" if other in there else "use another"
        raise UserError(
            f"init.{part}_adapter: {config.fed.method} starts without a {part} adapter; "
            f"{remedy} fed.method"
        )


def _shapes(clients: ClientParts) -> dict[str, Any]:
    return {
        name: jax.eval_shape(lambda make=make: make([0])) for name, make in clients.fresh.items()
    }


def named_clients(config: Config, prepared: Prepared, clients: ClientParts) -> ClientParts:
    """Clients of which those that have not trained yet start as `init` says.

    A part that starts as a copy of the global adapter is a copy of the named one.
    """
    named: dict[str, Any] = {}
    global_ = global_adapter(config, prepared)
    if global_ is not None:
        global_1 = bank_of(global_)
        parts = make_method(config, prepared).parts
        copies = [name for name in clients.fresh if parts[name].new == "global"]
        named |= {name: lambda members: _for_all(global_1, len(members)) for name in copies}
    local_C = local_adapters(config, prepared) if "local" in clients.fresh else None
    if local_C is not None:
        named["local"] = lambda members: take(local_C, np.asarray(members))
    return dataclasses.replace(clients, fresh={**clients.fresh, **named})


def _for_all(bank_1: Adapter, count: int) -> Adapter:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), bank_1)


def global_adapter(config: Config, prepared: Prepared) -> Adapter | None:
    """The adapter of `init.global_adapter`; None if none is named."""
    name = config.init.global_adapter
    return None if name is None else _read("init.global_adapter", Path(name), config, prepared)


def local_adapters(config: Config, prepared: Prepared) -> Adapter | None:
    """The bank of `init.local_adapter`, an adapter a client; None if none is named.

    The folder is one adapter, which all clients get, or has a folder for every client (such as the
    `clients/` of an export).
    """
    name = config.init.local_adapter
    if name is None:
        return None
    field, folder = "init.local_adapter", Path(name)
    if is_peft_folder(folder):
        return _for_all(bank_of(_read(field, folder, config, prepared)), len(prepared.names))
    missing = [client for client in prepared.names if not is_peft_folder(folder / client)]
    if missing:
        raise UserError(
            f"{field}: {folder} is no PEFT folder, and has none for client {missing[0]!r}; name "
            "an adapter's folder, or one with a folder for every client"
        )
    adapters = [_read(field, folder / client, config, prepared) for client in prepared.names]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def _read(field: str, folder: Path, config: Config, prepared: Prepared) -> Adapter:
    folder = folder.expanduser()
    try:
        found = read_adapter(folder, prepared.base.model.config)
        _check_base(folder, prepared)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    _check_settings(field, folder, found, config)
    return found.adapter


def _check_settings(field: str, folder: Path, found: PeftAdapter, config: Config) -> None:
    """Refuses other LoRA settings than the run's, all of them at once."""
    lora = config.lora
    ranks = {target: pair["a"].shape[-1] for target, pair in found.adapter.items()}
    if len(set(ranks.values())) > 1 or not _all_close(found.scales.values()):
        told = ", ".join(f"{t} {rank} ({found.scales[t]:g})" for t, rank in ranks.items())
        raise UserError(
            f"{field}: {folder} has ranks (and scales) that differ by target: {told}; a run starts "
            "from an adapter of one rank and alpha: merge this one into the base that model.path "
            "names, or use another"
        )
    wrong = []
    if found.rank != lora.rank:
        wrong.append(f"rank {found.rank} (lora.rank is {lora.rank})")
    if not math.isclose(found.alpha, lora.alpha, rel_tol=1e-6):
        wrong.append(f"alpha {found.alpha!r} (lora.alpha is {lora.alpha!r})")
    if set(found.targets) != set(lora.targets):
        wrong.append(f"targets {', '.join(found.targets)} (lora.targets is {list(lora.targets)})")
    if wrong:
        # Written as the shell takes it, with every digit of alpha.
        options = {
            "--lora.rank": str(found.rank),
            "--lora.alpha": repr(found.alpha),
            "--lora.targets": f"[{', '.join(found.targets)}]",
        }
        remedy = shlex.join([word for pair in options.items() for word in pair])
        raise UserError(f"{field}: {folder} has {'; '.join(wrong)}; to use it: {remedy}")


def _all_close(values: Iterable[float]) -> bool:
    first, *others = values
    return all(math.isclose(first, other, rel_tol=1e-6) for other in others)


def _check_base(folder: Path, prepared: Prepared) -> None:
    """Refuses an adapter of ours that has changed, or was trained on other weights.

    An adapter of another program has no such record; one of ours that cannot be read protects
    nothing, so it is refused.
    """
    file = folder / RECORD
    if not file.exists():
        return
    record = read_json(file)
    check_files(folder, record.get(FILES, {}))  # Older versions listed none.
    trained_on = record.get("base")
    fingerprint = trained_on.get("fingerprint") if isinstance(trained_on, dict) else None
    if not isinstance(trained_on, dict) or not isinstance(fingerprint, str):
        raise UserError(
            f"{file} does not say which base the adapter was trained on; export the "
            "adapter again, or delete that file if you know that the base is right"
        )
    if fingerprint != prepared.base.fingerprint:
        raise UserError(
            f"{folder} was trained on another base ({trained_on.get('path')}, "
            f"{fingerprint}) than model.path {prepared.base.source} "
            f"({prepared.base.fingerprint}); use that base"
        )
