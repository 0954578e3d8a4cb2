"""How much a device computes at once."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from feddpa_jax.devices.hardware import GIB
from feddpa_jax.models.sizes import known_sizes
from feddpa_jax.training.memory import tokens_at_once

SMALL, LARGE = known_sizes("smollm2-135m"), known_sizes("llama-2-7b")


def device(memory: int | None) -> SimpleNamespace:
    stats = None if memory is None else {"bytes_limit": memory}
    return SimpleNamespace(platform="gpu", device_kind="another", memory_stats=lambda: stats)


def test_an_accelerator_computes_what_its_memory_holds():
    assert tokens_at_once(jax.devices("cpu")[0], LARGE, jnp.float32) == 4096
    assert tokens_at_once(device(80 * GIB), SMALL, jnp.bfloat16) == 32768
    # 32 layers x (22 x 4096 + 8 x 11008) bytes a token: 28.6 GB hold 5,000.
    assert tokens_at_once(device(80 * GIB), LARGE, jnp.bfloat16) == 4096
    assert tokens_at_once(device(80 * GIB), LARGE, jnp.float32) == 2048
    assert tokens_at_once(device(1), LARGE, jnp.float32) == 1024
    assert tokens_at_once(device(None), SMALL, jnp.bfloat16) == 4096
