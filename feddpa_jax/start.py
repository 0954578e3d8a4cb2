"""The adapters that a run starts from (`init.*`), read from PEFT folders."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import Adapter, bank_of, take
from feddpa_jax.config import Config
from feddpa_jax.fed.clients import LocalAdapters
from feddpa_jax.fed.method import FedState
from feddpa_jax.hf.peft_format import PeftAdapter, is_peft_folder, read_adapter
from feddpa_jax.prepare import Prepared
from feddpa_jax.strict_json import read_object
from feddpa_jax.types import UserError


def start_from(config: Config, prepared: Prepared, fresh: FedState) -> FedState:
    """A method's fresh state with the adapters that `init` names in their places.

    Raises:
      UserError: an adapter cannot be read or does not fit, or the method starts without its like.
    """
    for field, named, own in (
        ("global", config.init.global_adapter, fresh.global_),
        ("local", config.init.local_adapter, fresh.local),
    ):
        if named is not None and own is None:
            other = "local" if field == "global" else "global"
            raise UserError(
                f"init.{field}_adapter: {config.fed.method} starts without a {field} adapter; "
                f"use init.{other}_adapter, or another fed.method"
            )
    global_ = global_adapter(config, prepared)
    return FedState(
        fresh.global_ if global_ is None else global_,
        None if fresh.local is None else start_local(config, prepared, fresh.local),
    )


def start_local(config: Config, prepared: Prepared, local: LocalAdapters) -> LocalAdapters:
    """Local adapters of which those that have not trained yet are the ones that `init` names."""
    named_C = local_adapters(config, prepared)
    if named_C is None:
        return local
    return dataclasses.replace(local, fresh=lambda members: take(named_C, np.asarray(members)))


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
        bank = bank_of(_read(field, folder, config, prepared))
        count = len(prepared.names)
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), bank)
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
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    _check_settings(field, folder, found, config)
    _check_base(field, folder, prepared)
    return found.adapter


def _check_settings(field: str, folder: Path, found: PeftAdapter, config: Config) -> None:
    """Refuses other LoRA settings than the run's, all of them at once."""
    lora = config.lora
    wrong = []
    if found.rank != lora.rank:
        wrong.append(f"rank {found.rank} (lora.rank is {lora.rank})")
    if abs(found.alpha - lora.alpha) > 1e-6 * lora.alpha:
        wrong.append(f"alpha {found.alpha:g} (lora.alpha is {lora.alpha:g})")
    if set(found.targets) != set(lora.targets):
        wrong.append(f"targets {', '.join(found.targets)} (lora.targets is {list(lora.targets)})")
    if wrong:
        raise UserError(
            f"{field}: {folder} has {'; '.join(wrong)}; to use it: --lora.rank {found.rank} "
            f"--lora.alpha {found.alpha:g} --lora.targets '[{', '.join(found.targets)}]'"
        )


def _check_base(field: str, folder: Path, prepared: Prepared) -> None:
    """Refuses an adapter of ours that was trained on other weights of the same shape."""
    try:
        trained_on = read_object(folder / "feddpa.json")["base"]
        fingerprint = trained_on["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if fingerprint != prepared.base.fingerprint:
        raise UserError(
            f"{field}: {folder} was trained on another base ({trained_on.get('path')}, "
            f"{fingerprint}) than model.path {prepared.base.source} "
            f"({prepared.base.fingerprint}); use that base"
        )
