import json
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer
from feddpa_jax.testing import write_tiny_hf_folder
from feddpa_jax.types import UserError

TEXTS = ["Hello, wörld 42", "", " a\n\tb ", "x<|end|>y <|end|>", "日本🙂"]


def test_bytes():
    tokenizer = byte_tokenizer()
    assert tokenizer.vocabulary_size == 257
    assert tokenizer.eos_id == tokenizer.pad_id == 256
    assert len(tokenizer.encode("é\x00\xff")) == 5
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == [
        text.replace("<|end|>", "") for text in TEXTS
    ]


def test_saved_tokenizer_is_read_by_transformers(tmp_path: Path):
    write_tiny_hf_folder(tmp_path)  # config.json says "llama", as in an exported model
    tokenizer = byte_tokenizer()
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    back = Tokenizer.from_folder(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
        assert back.encode(text) == ids
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (256, 256, None)
    assert (back.eos_id, back.pad_id, back.bos_id) == (256, 256, None)
    assert theirs.chat_template is None


def test_folder_first_token_stays_and_last_token_goes(tmp_path: Path):
    """A tokenizer.json that puts tokens around every text: a prompt must stay open."""
    tokenizer = byte_tokenizer()
    a, first, end = *tokenizer.encode("a!"), tokenizer.eos_id
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single="! $A <|end|>", special_tokens=[("!", first), ("<|end|>", end)]
    )
    tokenizer.backend.enable_truncation(2)
    tokenizer.backend.enable_padding(length=9)
    tokenizer.save(tmp_path)
    back = Tokenizer.from_folder(tmp_path)
    assert back.encode("aaa") == [first, a, a, a]
    assert back.encode("a<|end|>") == [first, a, end]  # the text's own end token stays
    assert back.encode_batch(["", "a"]) == [[first], [first, a]]


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


def test_every_token_that_ends_an_answer(tmp_path: Path):
    """The tokenizer's, then generation_config.json's, or config.json's where that is not there."""
    write_tiny_hf_folder(tmp_path)
    assert Tokenizer.from_folder(tmp_path).stop_ids == (256,)
    edit(tmp_path / "config.json", eos_token_id=[9, 256, 2])
    assert Tokenizer.from_folder(tmp_path).stop_ids == (256, 9, 2)
    edit(tmp_path / "config.json", eos_token_id=9)
    assert Tokenizer.from_folder(tmp_path).stop_ids == (256, 9)
    generation = tmp_path / "generation_config.json"
    edit(generation, eos_token_id=[5, 6, -1, 2**40])
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (256, (256, 5, 6))
    generation.write_text("{}")  # `transformers` does not look into config.json then.
    assert Tokenizer.from_folder(tmp_path).stop_ids == (256,)
    for wrong in ("2", [2.0], [[2]], True, {"a": 2}):
        edit(generation, eos_token_id=wrong)
        with pytest.raises(UserError, match=r"eos_token_id .* neither a token id nor a list"):
            Tokenizer.from_folder(tmp_path)


def test_generation_of_transformers_ends_with_the_same_tokens(tmp_path: Path):
    for name in ("config.json", "generation_config.json"):
        write_tiny_hf_folder(tmp_path / name)
        edit(tmp_path / name / name, eos_token_id=[256, 9, 2])
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name).generation_config
        assert tuple(theirs.eos_token_id) == Tokenizer.from_folder(tmp_path / name).stop_ids


def test_folder_errors(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="<none>")
    with pytest.raises(UserError, match="no eos_token"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json, line 1: broken JSON"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
