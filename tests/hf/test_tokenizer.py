import json
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer
from feddpa_jax.testing import write_tiny_hf_folder
from feddpa_jax.types import UserError

TEXTS = ["Hello, wörld 42", "", " a\n\tb ", "x<|end|>y <|end|>", "日本🙂"]
FIELDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "1", "2", "12", "a", "b", "ab", "<tool>", "Ġ"],
    "tokenizer.ggml.merges": ["1 2", "a b"],
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1, 1, 4, 1],
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.bos_token_id": 0,
}


def test_bytes():
    tokenizer = byte_tokenizer()
    assert tokenizer.vocabulary_size == 257
    assert tokenizer.eos_id == tokenizer.pad_id == 256
    assert len(tokenizer.encode("é\x00\xff")) == 5
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == [
        text.replace("<|end|>", "") for text in TEXTS
    ]


@pytest.mark.parametrize("source", ["bytes", "gguf", "gguf_with_bos"])
def test_saved_tokenizer_is_read_by_transformers(tmp_path: Path, source: str):
    write_tiny_hf_folder(tmp_path)  # config.json says "llama", as in an exported model
    if source == "bytes":
        tokenizer = byte_tokenizer()
    else:
        begins = {"tokenizer.ggml.add_bos_token": source == "gguf_with_bos"}
        tokenizer = Tokenizer.from_gguf(FIELDS | begins, "file")
        tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    back = Tokenizer.from_folder(tmp_path)
    for text in [*TEXTS, "12 ab", "ab</s>1<tool>2"]:
        ids = tokenizer.encode(text)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
        assert back.encode(text) == ids
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert theirs.bos_token_id == tokenizer.bos_id
    assert (back.eos_id, back.pad_id, back.bos_id) == (
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.bos_id,
    )


def test_gguf_digits_merges_and_special_tokens():
    tokenizer = Tokenizer.from_gguf(FIELDS, "file")
    # "ab" is merged; "12" is not, since digits stand alone.
    assert tokenizer.encode("ab12") == [7, 2, 3]
    assert tokenizer.encode("a</s><tool>") == [5, 1, 8]
    # Control tokens are dropped, user-defined ones are text.
    assert tokenizer.decode([0, 5, 1, 8]) == "a<tool>"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (1, 1, 0)
    plain = Tokenizer.from_gguf(FIELDS | {"tokenizer.ggml.pre": "gpt-2"}, "file")
    assert plain.encode("ab12") == [7, 4]


def test_gguf_first_token():
    tokenizer = Tokenizer.from_gguf(FIELDS | {"tokenizer.ggml.add_bos_token": True}, "file")
    assert tokenizer.encode("ab") == [0, 7]
    assert tokenizer.encode_batch(["ab", ""]) == [[0, 7], [0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "file: tokenizer 'llama' .* not supported"),
        ({"tokenizer.ggml.pre": "qwen2"}, "pre-tokenizer 'qwen2' is not supported.*gpt-2, smollm"),
        ({"tokenizer.ggml.merges": ["a zz"]}, "file: damaged tokenizer"),
    ],
)
def test_gguf_errors(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        Tokenizer.from_gguf(FIELDS | changes, "file")
    missing = {name: value for name, value in FIELDS.items() if "merges" not in name}
    with pytest.raises(UserError, match=r"no field 'tokenizer.ggml.merges'"):
        Tokenizer.from_gguf(missing, "file")


def test_folder_first_token_stays_and_last_token_goes(tmp_path: Path):
    """A tokenizer.json that puts tokens around every text: a prompt must stay open."""
    tokenizer = Tokenizer.from_gguf(FIELDS, "file")
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.backend.enable_truncation(2)
    tokenizer.backend.enable_padding(length=9)
    tokenizer.save(tmp_path)
    back = Tokenizer.from_folder(tmp_path)
    assert back.encode("ab12") == [0, 7, 2, 3]
    assert back.encode("ab</s>") == [0, 7, 1]  # the text's own end token stays
    assert back.encode_batch(["", "ab"]) == [[0], [0, 7]]


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def test_where_special_tokens_are_named(tmp_path: Path):
    write_tiny_hf_folder(tmp_path)
    settings, config = tmp_path / "tokenizer_config.json", tmp_path / "config.json"
    edit(settings, eos_token={"content": "a"}, pad_token=None)
    byte_a = byte_tokenizer().encode("a")[0]
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (byte_a, byte_a)
    edit(config, pad_token_id=-1)
    assert Tokenizer.from_folder(tmp_path).pad_id == byte_a
    settings.unlink()
    edit(config, eos_token_id=[7, 8], pad_token_id=9)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (7, 9)
    edit(tmp_path / "special_tokens_map.json", eos_token="<|end|>")
    assert Tokenizer.from_folder(tmp_path).eos_id == 256


def test_folder_errors(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="<none>")
    with pytest.raises(UserError, match="no eos_token"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json: not valid JSON"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
