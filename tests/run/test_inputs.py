"""Sizes that the base cannot have are refused before anything is made of them."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from feddpa_jax.config import load_config
from feddpa_jax.models.model_shapes import model_shapes
from feddpa_jax.models.sizes import SIZES
from feddpa_jax.run.backend import attention_on, loops
from feddpa_jax.run.inputs import prepare
from feddpa_jax.testing import tiny_config
from feddpa_jax.types import UserError

TINY = ("--model.path", "tiny", "--model.dtype", "float32", "--data.max_train", "2")


@pytest.mark.parametrize(
    ("field", "most", "words"),
    [
        ("data.max_length", 4096, "more than the 4096 positions of tiny; lower it"),
        ("eval.max_new_tokens", 4096, "more than the 4096 positions of tiny; lower it"),
        ("lora.rank", 32, "more than the 32 rows of the widest adapted map of tiny; lower it"),
    ],
)
def test_sizes_of_the_base_are_limits(field, most, words):
    for value in (most + 1, 2**31 - 1):
        with pytest.raises(UserError, match=f"{field}: {value} is {words}"):
            prepare(load_config(None, [*TINY, f"--{field}", str(value)]), weights=False)
    prepared = prepare(load_config(None, [*TINY, f"--{field}", str(most)]), weights=False)
    assert len(prepared.names) == 8


def test_the_widest_adapted_map_limits_the_rank():
    targets = ("--lora.targets", "[q_proj, down_proj]")
    prepare(load_config(None, [*TINY, *targets, "--lora.rank", "64"]), weights=False)
    with pytest.raises(UserError, match=r"lora\.rank: 65 is more than the 64 rows"):
        prepare(load_config(None, [*TINY, *targets, "--lora.rank", "65"]), weights=False)


def test_attention_that_the_devices_do_not_have_is_refused():
    for asked in ("cudnn", "splash"):
        with pytest.raises(UserError, match=f"model.attention: {asked} does not serve cpu devices"):
            prepare(load_config(None, [*TINY, "--model.attention", asked]), weights=False)
    prepared = prepare(load_config(None, [*TINY, "--model.attention", "explicit"]), weights=False)
    assert prepared.base.model.attention == "explicit"


def test_gpus_older_than_ampere_have_no_kernel():
    def mesh(capability: str) -> Any:
        device = SimpleNamespace(platform="gpu", compute_capability=capability)
        return SimpleNamespace(devices=np.array([[device]]), shape={"clients": 1, "model": 1})

    model = model_shapes(tiny_config(), "bfloat16")
    auto, asked = (load_config(None, ["--model.attention", a]) for a in ("auto", "cudnn"))
    for capability, found in (("8.6", "cudnn"), ("7.5", "explicit"), ("gfx942", "explicit")):
        assert attention_on(mesh(capability), auto, model) == found
    assert attention_on(mesh("8.6"), asked, model) == "cudnn"
    with pytest.raises(UserError, match=r"cudnn does not serve gpu devices of compute capa.* 7\.5"):
        attention_on(mesh("7.5"), asked, model)


def test_heads_that_a_tpu_pads_are_explicit_unless_asked():
    device = SimpleNamespace(platform="tpu")
    mesh: Any = SimpleNamespace(devices=np.array([[device]]), shape={"clients": 1, "model": 1})
    auto, asked = (load_config(None, ["--model.attention", a]) for a in ("auto", "splash"))
    for head_dim, found in ((64, "explicit"), (128, "splash")):
        sizes = dataclasses.replace(tiny_config(), head_dim=head_dim)
        model = model_shapes(sizes, "bfloat16")
        assert attention_on(mesh, auto, model) == found
        assert attention_on(mesh, asked, model) == "splash"


def test_layers_are_a_loop_where_products_bound_them():
    """On TPUs whose memory is fast enough, in wide models; elsewhere only if asked."""

    def mesh(platform: str, kind: str) -> Any:
        return SimpleNamespace(
            devices=np.array([[SimpleNamespace(platform=platform, device_kind=kind)]])
        )

    auto, asked = (load_config(None, ["--model.layers", a]) for a in ("auto", "looped"))
    narrow, wide = (
        model_shapes(SIZES[name], "bfloat16") for name in ("smollm2-135m", "llama-2-7b")
    )
    v5p = mesh("tpu", "TPU v5")
    assert [loops(v5p, auto, model) for model in (narrow, wide)] == [False, True]
    assert loops(v5p, asked, narrow)
    for elsewhere in (mesh("tpu", "TPU v6 lite"), mesh("gpu", "NVIDIA H200"), mesh("cpu", "cpu")):
        assert not loops(elsewhere, auto, wide)
