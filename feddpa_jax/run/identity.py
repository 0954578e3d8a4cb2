"""What a run is: a checkpoint goes on only with the settings, model, data and start it is from."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.config import Config
from feddpa_jax.data import digest
from feddpa_jax.data.digest import digest_of_parts
from feddpa_jax.data.token_file import TokenizedClients
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.run.own_code import digests
from feddpa_jax.run.starting_adapters import global_adapter, local_adapters


def identity(config: Config, prepared: Prepared) -> dict[str, Any]:
    """What a checkpoint must agree with.

    `init` is left out where a folder that it names is gone: a run that has begun may not need it
    any more, and one that needs it says what is wrong.

    Raises:
      UserError: an adapter that `init` names is there, but cannot be read.
    """
    found: dict[str, Any] = {
        "method": config.fed.method,
        "rank": config.lora.rank,
        "alpha": config.lora.alpha,
        "targets": list(config.lora.targets),
        "base": prepared.base.fingerprint,
        "clients": digest.names_in_short(prepared.names),
        "seed": config.seed,
        "data": data_digests(prepared),
    }
    named = (config.init.global_adapter, config.init.local_adapter)
    if all(Path(name).expanduser().exists() for name in named if name is not None):
        found["init"] = init_digests(config, prepared)
    code = digests(config)
    return {**found, "code": code} if code else found


def data_digests(prepared: Prepared) -> dict[str, str]:
    """By client, a digest of its examples: order, tokens, prompts, tasks; and what is held out.

    Clients that are not worked on have none. Many clients have one together, and none if some are
    not worked on.
    """
    training, clients = prepared.training, prepared.federation.clients
    if isinstance(training, TokenizedClients) and len(training) > digest.NAMED:
        return {digest.ALL: training.digest}
    found = {
        name: digest.client_digest(clients[place], training[place])
        for place, name in enumerate(prepared.names)
        if training[place]
    }
    return digest.digests_in_short(prepared.names, found)


def init_digests(config: Config, prepared: Prepared) -> dict[str, str]:
    """By field, a digest of the adapters that `init` names.

    Raises:
      UserError: one cannot be read.
    """
    found: dict[str, str] = {}
    if config.init.global_adapter is not None:
        found["global_adapter"] = _adapter_digest(global_adapter(config, prepared))
    if config.init.local_adapter is not None:
        found["local_adapter"] = _adapter_digest(local_adapters(config, prepared))
    return found


def _adapter_digest(adapter: Adapter | None) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(adapter))
    return digest_of_parts(
        part
        for path, leaf in leaves
        for part in (
            f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode(),
            np.asarray(leaf).tobytes(),
        )
    )
