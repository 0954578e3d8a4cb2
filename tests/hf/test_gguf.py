from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util
from gguf import GGUFWriter

from feddpa_jax.hf.gguf import split_halves
from feddpa_jax.hf.load import load_model
from feddpa_jax.models.config import Rope
from feddpa_jax.models.decoder import Model
from feddpa_jax.testing import tiny_config, tiny_parameters, write_tiny_gguf
from feddpa_jax.types import UserError


def flat(model: Model) -> dict[str, np.ndarray]:
    leaves = traverse_util.flatten_dict(model.params)
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in leaves.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_configuration_and_weights_come_back(tmp_path: Path, tied: bool):
    config = tiny_config(vocab_size=260, head_dim=12, tied=tied, rope=Rope(5e4), rms_eps=1e-6)
    base = load_model(str(write_tiny_gguf(tmp_path / "a.gguf", config, seed=1)), "float32")
    assert base.model.config == config
    loaded = flat(base.model)
    expected = tiny_parameters(config, seed=1)
    assert set(loaded) == set(expected)
    for path, array in expected.items():
        stored = array if path.endswith("scale") else array.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(loaded[path], stored, err_msg=path)


def test_heads_are_split_each_on_its_own():
    # Two heads of four rows: pairs (0, 1) (2, 3) become halves (0, 2) (1, 3).
    rows_ED = np.arange(8.0)[:, None] * np.ones((1, 3))
    assert split_halves(rows_ED, heads=2)[:, 1].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_tokenizer_of_the_file(tmp_path: Path):
    tokenizer = load_model(str(write_tiny_gguf(tmp_path / "a.gguf")), "float32").tokenizer
    ids = tokenizer.encode("the<|end|>é")
    assert ids[0] == 257 and ids.count(tokenizer.eos_id) == 1  # "th" is merged
    assert tokenizer.decode(ids) == "theé"


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path):
    whole = write_tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(4, 400, 37), 2000, 5000, len(whole) // 2, len(whole) - 200]:
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut.gguf: .*cut short") as caught:
            load_model(str(cut), "float32")
        assert "\n" not in str(caught.value)


def test_not_a_gguf(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match="not a GGUF file"):
        load_model(str(tmp_path / "a.gguf"), "float32")
    with pytest.raises(UserError, match=r"b.gguf: no such file"):
        load_model(str(tmp_path / "b.gguf"), "float32")


def write_header(path: Path, architecture: str, **fields: int | str) -> str:
    writer = GGUFWriter(path, architecture)
    llama = {
        "attention.head_count": 4,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 8,
        "context_length": 64,
    }
    for name, value in (llama | fields).items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{name}", value)
        else:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    # A tensor, since a file without any is not one.
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("gemma3", {}, "architecture 'gemma3' is not supported; supported: llama"),
        ("llama", {"rope.scaling.type": "yarn"}, "rope scaling is not supported"),
        ("llama", {"expert_count": 8}, "mixtures of experts"),
        ("llama", {"rope.dimension_count": 4}, "rope over 4 of 8"),
        ("llama", {"embedding_length": "wide"}, "a.gguf: .*'wide'"),
        ("llama", {}, "no field 'tokenizer.ggml.tokens'"),
    ],
)
def test_unsupported(tmp_path: Path, architecture: str, fields: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_model(write_header(tmp_path / "a.gguf", architecture, **fields), "float32")
