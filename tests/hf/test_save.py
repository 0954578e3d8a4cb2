"""Models written out: what of the source's files is true of them, for older programs too."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from feddpa_jax.hf.families import read_hf_config
from feddpa_jax.hf.load import load_base
from feddpa_jax.hf.save import save_model
from feddpa_jax.hf.saved_config import saved_config
from feddpa_jax.hf.tensors import write_tensors
from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer
from feddpa_jax.models.model_config import ModelConfig, Rope
from feddpa_jax.testing import tiny_config, write_tiny_hf_folder

LLAMA3 = Rope(5e5, "llama3", 8.0, 1.0, 4.0, 32)


def gemma(local: Rope) -> ModelConfig:
    own: dict[str, Any] = {"norm_offset": 1.0, "post_norms": True, "qk_norm": True}
    own |= {"activation": "gelu_tanh", "query_scale": 0.25, "embedding_scale": 32**0.5}
    own |= {"window": 4, "local_layers": (0, 2), "rope": Rope(1e6, "linear", 8.0)}
    return tiny_config(family="gemma3_text", layers=4, local_rope=local, **own)


def test_what_is_untrue_stays_behind_and_the_rest_is_kept():
    raw = {
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "auto_map": {"AutoModelForCausalLM": "modeling.Own"},
        "transformers_version": "4.30.0",
        "_name_or_path": "/home/me/model",
        "_attn_implementation": "flash",
        "torch_dtype": "float16",
        "architectures": ["LlamaForSequenceClassification"],
        "initializer_range": 0.02,
        "eos_token_id": [1, 2],
    }
    found = saved_config(raw, tiny_config(), "bfloat16")
    assert not {"quantization_config", "auto_map", "transformers_version"} & found.keys()
    assert not [name for name in found if name.startswith("_")]
    assert found["dtype"] == found["torch_dtype"] == "bfloat16"
    assert found["architectures"] == ["LlamaForCausalLM"]
    assert found["initializer_range"] == 0.02 and found["eos_token_id"] == [1, 2]


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        (Rope(1e5), None),
        (Rope(3e5, "linear", 2.0), {"rope_type": "linear", "factor": 2.0}),
        (
            LLAMA3,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
    ],
)
@pytest.mark.parametrize("raw", [{}, {"rope_theta": 1.0, "rope_scaling": {"type": "linear"}}])
def test_both_forms_of_rope(rope: Rope, scaling: Any, raw: dict[str, Any]):
    """From what was computed with, whatever the source had, and either form alone is enough."""
    config = tiny_config(rope=rope)
    found = saved_config(raw, config, "float32")
    assert (found["rope_theta"], found["rope_scaling"]) == (rope.theta, scaling)
    assert found["rope_parameters"] == {"rope_type": rope.scaling, "rope_theta": rope.theta} | (
        scaling or {}
    )
    assert read_hf_config(found, "both") == config
    older = {k: v for k, v in found.items() if k != "rope_parameters"}
    assert read_hf_config(older, "older") == config
    newer = {k: v for k, v in found.items() if k not in ("rope_theta", "rope_scaling")}
    assert read_hf_config(newer, "newer") == config


def test_gemma_s_local_layers():
    found = saved_config({}, gemma(Rope(5e3)), "float32")
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 5e3)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert found["sliding_window_pattern"] == 2
    assert read_hf_config(found, "both") == gemma(Rope(5e3))
    # An older release cannot scale them, and stops at null instead of computing something else.
    found = saved_config({}, gemma(Rope(5e3, "linear", 2.0)), "float32")
    assert found["rope_local_base_freq"] is None


@pytest.mark.parametrize(
    ("local", "expected"), [((2, 3), 2), ((), 4), ((0, 1, 2, 3), 0), ((0, 2), None)]
)
def test_windows_before_layer_types(local: tuple[int, ...], expected: int | None):
    config = tiny_config(family="qwen2", layers=4, window=3, local_layers=local)
    assert saved_config({}, config, "float32").get("max_window_layers") == expected


def test_several_end_tokens_stay_a_list(tmp_path: Path):
    folder = write_tiny_hf_folder(tmp_path / "base")
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({**raw, "eos_token_id": [256, 10], "bos_token_id": 1}))
    base = load_base(str(folder), "float32")
    save_model(tmp_path / "out", base, lambda path, leaf: leaf)
    for name in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "out" / name).read_text())
        assert found["eos_token_id"] == [256, 10] and found["bos_token_id"] == 1
        assert found["pad_token_id"] == 256
    # The source's own generation_config.json comes before what config.json says.
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 3], "top_k": 5}')
    save_model(tmp_path / "again", load_base(str(folder), "float32"), lambda path, leaf: leaf)
    found = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert found == {"eos_token_id": [256, 3], "top_k": 5}


@pytest.mark.parametrize("named", [10, [10, 3], None])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_what_is_written_stops_where_training_ends_an_answer(tmp_path: Path, file: str, named: Any):
    """At the tokenizer's end token, though the base's own files do not name it."""
    folder = write_tiny_hf_folder(tmp_path / "base")
    raw = json.loads((folder / file).read_text()) if file == "config.json" else {"top_k": 5}
    (folder / file).write_text(json.dumps({**raw, "eos_token_id": named}))
    base = load_base(str(folder), "float32")
    assert base.tokenizer.eos_id == 256
    save_model(tmp_path / "out", base, lambda path, leaf: leaf)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id
    assert set(np.atleast_1d(found).tolist()) == {*base.tokenizer.stop_ids} >= {256}
    again = load_base(str(tmp_path / "out"), "float32").tokenizer
    assert again.stop_ids == base.tokenizer.stop_ids


def test_a_tokenizer_s_own_code_stays_behind(tmp_path: Path):
    folder = write_tiny_hf_folder(tmp_path / "base")
    file = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    own |= {"name_or_path": "/home/me/model", "model_max_length": 7}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    save_model(tmp_path / "out", load_base(str(folder), "float32"), lambda path, leaf: leaf)
    found = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert found.pop("tokenizer_class") == "PreTrainedTokenizerFast"
    assert found["model_max_length"] == 7 and found["eos_token"] == "<|end|>"
    assert not {"auto_map", "name_or_path"} & found.keys()


def settings_of(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    folder.mkdir()
    tokenizer.save(folder)
    return json.loads((folder / "tokenizer_config.json").read_text())


def test_only_special_tokens_are_named(tmp_path: Path):
    backend, end = byte_tokenizer().backend, byte_tokenizer().eos_id
    found = settings_of(tmp_path / "a", Tokenizer(backend, eos_id=end, pad_id=end, bos_id=1))
    assert found["eos_token"] == found["pad_token"] == "<|end|>" and "bos_token" not in found
    found = settings_of(tmp_path / "b", Tokenizer(backend, eos_id=2, pad_id=1))
    assert not {"eos_token", "pad_token", "bos_token"} & found.keys()
    backend.add_tokens([AddedToken("<mine>", special=False), AddedToken("<s>", special=True)])
    found = settings_of(
        tmp_path / "c", Tokenizer(backend, eos_id=end, pad_id=end + 1, bos_id=end + 2)
    )
    assert found["bos_token"] == "<s>" and "pad_token" not in found


def test_private_files_are_for_their_owner_alone(tmp_path: Path):
    (tmp_path / "plain").touch()
    plain = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert plain != 0o600  # Else this test says nothing.
    tensors = {"a": np.ones((2, 3), np.float32)}
    for private, mode in ((False, plain), (True, 0o600), (False, plain)):
        write_tensors(tmp_path / "x.safetensors", tensors, private=private)
        assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == mode
