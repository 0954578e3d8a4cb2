import dataclasses
import inspect
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from gguf import GGUFWriter, Keys

from feddpa_jax.hf.gguf import gguf_config, open_gguf, split_halves
from feddpa_jax.hf.gguf_fields import known_fields
from feddpa_jax.hf.gguf_tokenizer import gguf_tokenizer
from feddpa_jax.hf.load import load_base
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.model_config import ModelConfig, Rope
from feddpa_jax.testing import tiny_config, tiny_parameters, write_tiny_gguf
from feddpa_jax.types import UserError


def flat(model: Model) -> dict[str, np.ndarray]:
    leaves = traverse_util.flatten_dict(model.params)
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in leaves.items()}


QKV = ("q_proj", "k_proj", "v_proj")
# Seven layers: the sixth is global.
GEMMA3 = tiny_config(
    family="gemma3_text",
    vocab_size=260,
    layers=7,
    head_dim=12,
    rope=Rope(1e6),
    local_rope=Rope(1e4),
    window=5,
    local_layers=(0, 1, 2, 3, 4, 6),
    rms_eps=1e-6,
    norm_offset=1.0,
    post_norms=True,
    qk_norm=True,
    activation="gelu_tanh",
    query_scale=12**-0.5,
    embedding_scale=32**0.5,
)


def changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    return dataclasses.replace(config, **changes)


LLAMA = tiny_config(vocab_size=260, head_dim=12, rope=Rope(5e4), rms_eps=1e-6)
FAMILIES = {
    "llama": LLAMA,
    "llama_untied": changed(LLAMA, tied=False),
    "llama_linear": changed(LLAMA, rope=Rope(5e4, "linear", 4.0)),
    "llama3": changed(LLAMA, head_dim=64, rope=Rope(5e5, "llama3", 32.0)),
    "mistral": changed(LLAMA, family="mistral", window=7, local_layers=(0, 1)),
    "qwen2": changed(LLAMA, family="qwen2", biased=QKV, rope=Rope(1234567.0)),
    "qwen3": changed(LLAMA, family="qwen3", qk_norm=True, tied=False),
    "gemma3": GEMMA3,
    "gemma3_other_locals": changed(
        GEMMA3,
        rope=Rope(1e6, "linear", 8.0),
        local_rope=Rope(5e3),
        local_layers=(1, 3, 6),
    ),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_configuration_and_weights_come_back(tmp_path: Path, case: str):
    config = FAMILIES[case]
    base = load_base(str(write_tiny_gguf(tmp_path / "a.gguf", config, seed=1)), "float32")
    assert base.model.config == config
    loaded = flat(base.model)
    expected = tiny_parameters(config, seed=1)
    assert set(loaded) == set(expected)
    for path, array in expected.items():
        if array.ndim > 1:
            array = array.astype(np.float16).astype(np.float32)
        # One is added to Gemma's norms and taken off again.
        atol = 2e-7 if config.norm_offset else 0
        np.testing.assert_allclose(loaded[path], array, rtol=0, atol=atol, err_msg=path)


def test_a_biased_llama_is_qwen2_with_interleaved_heads(tmp_path: Path):
    config = changed(LLAMA, biased=QKV)
    base = load_base(str(write_tiny_gguf(tmp_path / "a.gguf", config, seed=1)), "float32")
    assert base.model.config == changed(config, family="qwen2")
    assert base.hf_config["model_type"] == "qwen2"
    expected = tiny_parameters(config, seed=1)
    for name in QKV:
        path = f"layers.1.attention.{name}.bias"
        np.testing.assert_array_equal(flat(base.model)[path], expected[path])


def test_heads_are_split_each_on_its_own():
    # Two heads of four rows: pairs (0, 1) (2, 3) become halves (0, 2) (1, 3).
    rows_ED = np.arange(8.0)[:, None] * np.ones((1, 3))
    assert split_halves(rows_ED, heads=2)[:, 1].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_tokenizer_of_the_file(tmp_path: Path):
    tokenizer = load_base(str(write_tiny_gguf(tmp_path / "a.gguf")), "float32").tokenizer
    ids = tokenizer.encode("the<|end|>é")
    assert ids[0] == 257 and ids.count(tokenizer.eos_id) == 1  # "th" is merged
    assert tokenizer.decode(ids) == "theé"


def test_fields_that_say_nothing_new(tmp_path: Path):
    """Written by some converters with what holds anyway."""
    fields = {"attention.causal": True, "logit_scale": 1.0, "rope.scaling.attn_factor": 1.0}
    fields |= {"expert_count": 0, "final_logit_softcapping": 0.0, "pooling_type": 3}
    assert read_header(tmp_path / "a.gguf", "llama", **fields) == read_header(
        tmp_path / "b.gguf", "llama"
    )


def test_every_field_of_llama_cpp_is_decided_about():
    """The names that computation is known to depend on; a newer one fails here until it is read."""
    names = {
        name.removeprefix("{arch}.")
        for keys in vars(Keys).values()
        if inspect.isclass(keys)
        for name in vars(keys).values()
        if isinstance(name, str) and name.startswith("{arch}.")
    }
    assert len(names) > 80
    undecided = names - known_fields("gemma3")
    part = re.compile(
        r"expert|moe|lora|ssm|kda|wkv|posnet|convnext|shortconv|classifier|dense|altup|swiglu|swin|"
        r"group|time_|token_shift|decoder_block|deepstack|nextn|relative|_mla|temperature|yarn"
    )
    assert {name for name in undecided if not part.search(name)} == {
        "activation_sparsity_scale",
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
        "attention.output_scale",
        "attention.scale",
        "attention.shared_kv_layers",
        "attn_logit_softcapping",
        "embedding_length_out",
        "embedding_length_per_layer_input",
        "features_length",
        "final_logit_softcapping",
        "full_attention_interval",
        "rescale_every_n_layers",
        "rope.dimension_sections",
        "rope.scaling.alpha",
        "router_logit_softcapping",
        "use_parallel_residual",
    }


def test_end_of_turn_and_message_end_an_answer(tmp_path: Path):
    path = write_tiny_gguf(tmp_path / "a.gguf")
    fields = dict(open_gguf(path).fields)
    assert gguf_tokenizer(fields, "file").stop_ids == (256,)
    more = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 10**6}
    assert gguf_tokenizer(fields | more, "file").stop_ids == (256, 7)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path):
    whole = write_tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(4, 400, 37), 2000, 5000, len(whole) // 2, len(whole) - 200]:
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut.gguf: .*cut short") as caught:
            load_base(str(cut), "float32")
        assert "\n" not in str(caught.value)


def test_not_a_gguf(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match="not a GGUF file"):
        load_base(str(tmp_path / "a.gguf"), "float32")
    with pytest.raises(UserError, match=r"b.gguf: no such file"):
        load_base(str(tmp_path / "b.gguf"), "float32")


def write_header(
    path: Path,
    architecture: str,
    rope_divisors: list[float] | None = None,
    bias: str | None = None,
    tokens: bool = True,
    **fields: Any,
) -> str:
    writer = GGUFWriter(path, architecture)
    needed = {
        "attention.head_count": 4,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 8,
        "context_length": 64,
    }
    for name, value in (needed | fields).items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{name}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{name}", value)
        elif isinstance(value, list):
            writer.add_array(f"{architecture}.{name}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"{architecture}.{name}", value)
        else:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    if tokens:
        writer.add_token_list(["a", "b", "c"])
    # A tensor, since a file without any is not one.
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    if rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_divisors, np.float32))
    if bias is not None:
        writer.add_tensor(f"blk.0.{bias}.bias", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def read_header(path: Path, architecture: str, **fields: Any) -> ModelConfig:
    return gguf_config(open_gguf(Path(write_header(path, architecture, **fields))))


def converted_divisors(theta: float, size: int, factor: float, original: int) -> list[float]:
    """What llama.cpp's converter stores for Llama 3: the formula of Meta's code, by wavelengths."""
    divisors = []
    for pair in range(size // 2):
        length = 2 * math.pi * theta ** (2 * pair / size)
        if length < original / 4:
            divisors.append(1.0)
        elif length > original:
            divisors.append(factor)
        else:
            smooth = (original / length - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


@pytest.mark.parametrize(
    ("size", "factor", "original"),
    [(128, 8.0, 8192), (64, 32.0, 8192), (64, 4.0, 4096)],
    ids=["3.1-8B", "3.2-1B", "shorter"],
)
def test_rope_of_llama3(tmp_path: Path, size: int, factor: float, original: int):
    divisors = converted_divisors(5e5, size, factor, original)
    fields = {"rope.freq_base": 5e5, "attention.key_length": size}
    config = read_header(tmp_path / "a.gguf", "llama", rope_divisors=divisors, **fields)
    assert config.rope == Rope(5e5, "llama3", factor, original_positions=original)


def test_rope_of_llama3_without_partly_scaled_frequencies(tmp_path: Path):
    # Frequencies 1, 0.1, 0.01, 0.001 turn 5.1, 0.5, 0.05 and 0.005 times in 32 positions.
    config = read_header(tmp_path / "a.gguf", "llama", rope_divisors=[1.0, 8.0, 8.0, 8.0])
    expected_F = np.array([1, 0.1 / 8, 0.01 / 8, 0.001 / 8])
    np.testing.assert_allclose(config.rope.frequencies(8), expected_F, rtol=1e-5)
    plain = read_header(tmp_path / "b.gguf", "llama", rope_divisors=[1.0] * 4)
    assert plain.rope == Rope(1e4)


@pytest.mark.parametrize(
    "divisors", [[1.0, 2.0, 3.0, 8.0], [8.0, 1.0, 8.0, 8.0], [1.0, 8.0], [0.0] * 4]
)
def test_other_rope_divisors_are_refused(tmp_path: Path, divisors: list[float]):
    with pytest.raises(UserError, match=r"rope_freqs.weight is not the rope scaling of Llama 3"):
        read_header(tmp_path / "a.gguf", "llama", rope_divisors=divisors)


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}, Rope(1e4, "linear", 2.5)),
        ({"rope.scaling.factor": 2.0}, Rope(1e4, "linear", 2.0)),
        ({"rope.scale_linear": 2.0}, Rope(1e4, "linear", 2.0)),
        ({"rope.scale_linear": 1.0}, Rope(1e4)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, Rope(1e4)),
    ],
)
def test_linear_rope(tmp_path: Path, fields: dict, rope: Rope):
    assert read_header(tmp_path / "a.gguf", "qwen3", **fields).rope == rope


def test_gemma3_where_the_file_is_silent(tmp_path: Path):
    path = tmp_path / "a.gguf"
    config = read_header(path, "gemma3", **{"attention.sliding_window": 4, "block_count": 12})
    assert config.local_layers == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    assert (config.window, config.local_rope) == (4, Rope(1e4))
    fields = {"attention.sliding_window": 4, "block_count": 4}
    every_second = {"attention.sliding_window_pattern": 2}
    assert read_header(path, "gemma3", **fields, **every_second).local_layers == (0, 2)
    everywhere = read_header(path, "gemma3", block_count=12)
    assert (everywhere.window, everywhere.local_layers) == (None, ())


def test_queries_of_the_largest_gemma3(tmp_path: Path):
    """The 27B model's: by its width a head, 5376 / 32, not by the size of a head, 128."""
    fields = {
        "embedding_length": 5376,
        "attention.head_count": 32,
        "attention.head_count_kv": 16,
        "attention.key_length": 128,
    }
    largest = read_header(tmp_path / "a.gguf", "gemma3", **fields, block_count=62)
    assert largest.query_scale == 168**-0.5
    other = read_header(tmp_path / "a.gguf", "gemma3", **fields, block_count=48)
    assert other.query_scale == 128**-0.5


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("gemma2", {}, "'gemma2' is not supported; supported: llama, qwen2, qwen3, gemma3"),
        ("llama", {"rope.scaling.type": "yarn"}, "'yarn' is not supported.*none, linear, llama3"),
        ("llama", {"expert_count": 8}, "expert_count 8 is not supported for llama"),
        (
            "gemma3",
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping 30.0 is not supported",
        ),
        (
            "gemma3",
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping 50.0 is not supported",
        ),
        ("qwen2", {"rope.dimension_count": 4}, "rope over 4 of 8"),
        ("qwen3", {"attention.value_length": 4}, "values over 4 of 8"),
        ("llama", {"rope.scaling.factor": 2.0, "rope_divisors": [1.0] * 4}, "scaled in two ways"),
        ("llama", {"bias": "attn_q"}, "biases of q_proj are not supported"),
        (
            "gemma3",
            {"attention.sliding_window": 4, "attention.sliding_window_pattern": [True, False]},
            "a.gguf: ",
        ),
        ("llama", {"attention.causal": False}, "attention.causal false is not supported for llama"),
        ("llama", {"logit_scale": 0.5}, "logit_scale 0.5 is not supported for llama"),
        ("llama", {"attention.clamp_kqv": 8.0}, "attention.clamp_kqv 8.0 is not supported"),
        ("llama", {"attention.scale": 0.1}, "attention.scale .* is not supported for llama"),
        ("llama", {"rope.scaling.attn_factor": 0.5}, "rope.scaling.attn_factor 0.5 is not"),
        ("llama", {"rope.dimension_sections": [1, 1, 2]}, "rope.dimension_sections .* is not"),
        ("llama", {"rope.freq_base_swa": 1e4}, "rope.freq_base_swa 10000.0 is not supported"),
        ("llama", {"of_the_future": 1}, "of_the_future 1 is not supported for llama"),
        ("llama", {"feed_forward_length": [8, 8]}, r"feed_forward_length is \[8, 8\], not an int"),
        ("llama", {"block_count": 10**9}, "layers is 1000000000, not a positive integer up to"),
        ("llama", {"block_count": 900}, "no tensor for layers.0; the configuration has 900"),
        ("llama", {"rope.freq_base": float("inf")}, "rope.freq_base is inf, not a finite number"),
        ("qwen2", {"attention.sliding_window": 4}, "attention.sliding_window 4 is not supported"),
        ("gemma3", {"attention.key_length_swa": 4}, "local keys over 4 of 8"),
        ("llama", {"embedding_length": "wide"}, "a.gguf: .*'wide'"),
        ("llama", {"tokens": False}, "no field 'tokenizer.ggml.tokens'"),
    ],
)
def test_unsupported(tmp_path: Path, architecture: str, fields: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_base(write_header(tmp_path / "a.gguf", architecture, **fields), "float32")
