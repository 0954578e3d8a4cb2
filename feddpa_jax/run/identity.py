"""What a run is: a checkpoint goes on only with the settings, model, data and start it is from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.config import Config
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
        "clients": list(prepared.names),
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

    Clients that are not worked on have none.
    """

    def parts(place: int) -> Iterable[bytes]:
        client = prepared.federation.clients[place]
        for tokens_T, prompt_length, trained_T in prepared.training[place]:
            yield np.append(tokens_T, prompt_length).astype("<i8").tobytes()
            if trained_T is not None:
                yield trained_T.tobytes()
        for example in client.train:
            yield example.task.encode()
        for example in client.validation:
            for text in (example.instruction, example.input, example.output, example.task):
                yield text.encode()
            for turn in example.history:
                yield f"{turn.role} {turn.text}".encode()

    return {
        name: digest_of_parts(parts(place))
        for place, name in enumerate(prepared.names)
        if prepared.training[place]
    }


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


def digest_of_parts(parts: Iterable[bytes]) -> str:
    """A digest of some parts, which tells where one ends: 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]
