import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tokenizers import pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    Qwen2Tokenizer,
)
from transformers.utils import logging as transformers_logging

from feddpa_jax.hf.folder_tokenizer import folder_tokenizer
from feddpa_jax.hf.tokenizer import byte_tokenizer
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
    back = folder_tokenizer(tmp_path)
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
    back = folder_tokenizer(tmp_path)
    assert back.encode("aaa") == [first, a, a, a]
    assert back.encode("a<|end|>") == [first, a, end]  # the text's own end token stays
    assert back.encode_batch(["", "a"]) == [[first], [first, a]]


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def test_where_special_tokens_are_named(tmp_path: Path):
    write_tiny_hf_folder(tmp_path)
    settings, config = tmp_path / "tokenizer_config.json", tmp_path / "config.json"
    edit(settings, eos_token={"__type": "AddedToken", "content": "a"}, pad_token=None)
    byte_a = byte_tokenizer().encode("a")[0]
    tokenizer = folder_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (byte_a, byte_a)
    edit(config, pad_token_id=-1)
    assert folder_tokenizer(tmp_path).pad_id == byte_a
    settings.unlink()
    edit(config, eos_token_id=[7, 8], pad_token_id=9)
    tokenizer = folder_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (7, 9)
    edit(tmp_path / "special_tokens_map.json", eos_token="<|end|>")
    assert folder_tokenizer(tmp_path).eos_id == 256


def test_every_token_that_ends_an_answer(tmp_path: Path):
    """The tokenizer's, then generation_config.json's, or config.json's where that is not there."""
    write_tiny_hf_folder(tmp_path)
    assert folder_tokenizer(tmp_path).stop_ids == (256,)
    edit(tmp_path / "config.json", eos_token_id=[9, 256, 2])
    assert folder_tokenizer(tmp_path).stop_ids == (256, 9, 2)
    edit(tmp_path / "config.json", eos_token_id=9)
    assert folder_tokenizer(tmp_path).stop_ids == (256, 9)
    generation = tmp_path / "generation_config.json"
    edit(generation, eos_token_id=[5, 6, -1, 2**40])
    tokenizer = folder_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (256, (256, 5, 6))
    generation.write_text("{}")  # `transformers` does not look into config.json then.
    assert folder_tokenizer(tmp_path).stop_ids == (256,)
    for wrong in ("2", [2.0], [[2]], True, {"a": 2}):
        edit(generation, eos_token_id=wrong)
        with pytest.raises(UserError, match=r"eos_token_id .* neither a token id nor a list"):
            folder_tokenizer(tmp_path)


def test_generation_of_transformers_ends_with_the_same_tokens(tmp_path: Path):
    for name in ("config.json", "generation_config.json"):
        write_tiny_hf_folder(tmp_path / name)
        edit(tmp_path / name / name, eos_token_id=[256, 9, 2])
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name).generation_config
        assert tuple(theirs.eos_token_id) == folder_tokenizer(tmp_path / name).stop_ids


def test_the_end_token_in_a_text_is_recognised(tmp_path: Path):
    """A plain token of the vocabulary too, if it is named as the end, as `transformers` does."""
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="a", pad_token=None)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), folder_tokenizer(tmp_path)
    for text in ("banana", "a", "xyz"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text.replace("a", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"additional_special_tokens": ["he"]}, "names the token 'he', which is no token of"),
        ({"extra_special_tokens": {"image_token": "<i>"}}, "names the token '<i>', which is no"),
        ({"image_token": "<i>"}, "names the token '<i>', which is no token of tokenizer.json"),
        ({"added_tokens_decoder": {"300": {"content": "lo"}}}, "names the token 'lo', which is"),
        ({"split_special_tokens": True}, "split_special_tokens is not supported"),
        ({"extra_special_tokens": 5}, r"transformers cannot read .* must be a list/tuple of"),
        ({"eos_token": {"content": "a"}}, "transformers cannot read the tokenizer .Special"),
        ({"padding_side": "up"}, "transformers cannot read the tokenizer .Padding side should"),
    ],
)
def test_tokens_that_tokenizer_json_does_not_have(tmp_path: Path, settings: dict, message: str):
    """`transformers` would add them, and cut texts at them."""
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", additional_special_tokens=["<|end|>"])
    assert folder_tokenizer(tmp_path).encode("a<|end|>")[-1] == 256
    edit(tmp_path / "tokenizer_config.json", **settings)
    with pytest.raises(UserError, match=message) as caught:
        folder_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"additional_special_tokens": ["a", "b"]},
        {"image_token": "n"},
        {"unk_token": "a", "pad_token": "b"},
        {"pad_token": "<pad>"},
        {"added_tokens_decoder": {"256": {"content": "<|end|>", "lstrip": True, "special": True}}},
    ],
)
def test_tokens_that_the_settings_name(tmp_path: Path, settings: dict):
    """Are recognised in a text as `transformers` does, be they added tokens or not."""
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", **settings)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), folder_tokenizer(tmp_path)
    for text in ("banana", "a  <|end|> b", "<pad>"):
        ids = theirs.encode(text)
        assert ours.encode(text) == ours.encode_batch([text])[0] == ids
        assert ours.encode_continuation(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_pad_token_that_tokenizer_json_does_not_have(tmp_path: Path):
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", pad_token="<pad>")
    assert folder_tokenizer(tmp_path).pad_id == 256
    edit(tmp_path / "config.json", pad_token_id=7)
    assert folder_tokenizer(tmp_path).pad_id == 7


def test_spaces_are_not_cleaned_up(tmp_path: Path):
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", clean_up_tokenization_spaces=True, model_max_length=2)
    tokenizer = folder_tokenizer(tmp_path)
    text = "I 'm  here , you do n't ."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode_continuation(tokenizer.encode_continuation(text)) == text


def test_chat_templates(tmp_path: Path):
    write_tiny_hf_folder(tmp_path)
    assert folder_tokenizer(tmp_path).chat_template is None
    several = [{"name": name, "template": name.upper()} for name in ("tool_use", "default")]
    edit(tmp_path / "tokenizer_config.json", chat_template=several)
    assert folder_tokenizer(tmp_path).chat_template == "DEFAULT"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert folder_tokenizer(tmp_path).chat_template == "{{ messages }}"


def test_only_tokenizer_json_is_read_and_no_code_runs(tmp_path: Path):
    """Whatever class, code or other files tokenizer_config.json names."""
    write_tiny_hf_folder(tmp_path / "model")
    folder = tmp_path / "model"
    ids = folder_tokenizer(folder).encode(TEXTS[0])
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    other = json.loads((folder / "tokenizer.json").read_text())
    other["model"]["vocab"]["H"], other["model"]["vocab"]["e"] = 0, 1
    (tmp_path / "tokenizer.1.0.json").write_text(json.dumps(other))
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.Own", "own.Own"]},
        tokenizer_class="Own",
        trust_remote_code=True,
        fast_tokenizer_files=["../tokenizer.1.0.json"],
        tokenizer_file=str(tmp_path / "tokenizer.1.0.json"),
        vocab_file=str(tmp_path / "tokenizer.1.0.json"),
    )
    assert folder_tokenizer(folder).encode(TEXTS[0]) == ids
    assert not (tmp_path / "ran").exists()


def test_nothing_is_asked_of_the_hub_or_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor is the form of old Mistral tokenizers, for which `transformers` looks into large ones."""
    write_tiny_hf_folder(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"token {i}": i for i in range(257, 100_300)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    edit(tmp_path / "config.json", model_type="mistral", transformers_version="4.50.0")
    edit(tmp_path / "tokenizer_config.json", model_max_length=3)
    told: list[str] = []

    def connect(*_: Any) -> None:
        raise AssertionError("nothing is to be asked of the network")

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    theirs = logging.getLogger("transformers")
    # Whatever other tests of this process have set, and what was told once already.
    monkeypatch.setattr(theirs, "disabled", False)
    monkeypatch.setattr(logging.getLogger(), "disabled", False)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    before = theirs.level
    theirs.setLevel(logging.WARNING)
    transformers_logging.warning_once.cache_clear()
    level, handler = theirs.level, Told()
    theirs.addHandler(handler)
    try:
        assert folder_tokenizer(tmp_path).encode("a" * 9) == byte_tokenizer().encode("a" * 9)
        assert told == [] and theirs.level == level
        AutoTokenizer.from_pretrained(tmp_path)
        # What `transformers` itself says here depends on what it said earlier in this process.
        assert all("incorrect regex pattern" in line for line in told)
    finally:
        theirs.removeHandler(handler)
        theirs.setLevel(before)


SPACE = "\u2581"
PIECES = [SPACE, *"abcehlo", SPACE + "a", "he", "ll", SPACE + "he", "hell"]
PAIRS: Any = [(SPACE, "a"), ("h", "e"), ("l", "l"), (SPACE, "he"), ("he", "ll")]


def kinds() -> dict[str, Any]:
    """Small tokenizers of the classes that the families have in `transformers`."""
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    byte_level = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "he",
        "ll",
        "\u0120a",
        "<|endoftext|>",
    ]

    def vocabulary(*tokens: str) -> dict[str, int]:
        return {token: index for index, token in enumerate(tokens)}

    llama = vocabulary("<unk>", "<s>", "</s>", *spelled, *PIECES)
    gemma = vocabulary("<pad>", "<eos>", "<bos>", "<unk>", *spelled, *PIECES)
    pairs: Any = [("h", "e"), ("l", "l"), ("\u0120", "a")]
    return {
        "llama": LlamaTokenizer(vocab=llama, merges=PAIRS),
        "mistral": LlamaTokenizer(vocab=llama, merges=PAIRS, add_prefix_space=False),
        "qwen2": Qwen2Tokenizer(vocab=vocabulary(*byte_level), merges=pairs),
        "gemma3_text": GemmaTokenizer(vocab=gemma, merges=PAIRS),
    }


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_eos_token": True}])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gemma3_text"])
def test_ids_of_transformers(tmp_path: Path, kind: str, settings: dict):
    """For folders that it wrote; a prompt stays open, whatever it puts behind a text."""
    kinds()[kind].save_pretrained(tmp_path)
    edit(tmp_path / "config.json", model_type=kind, eos_token_id=2)
    edit(tmp_path / "tokenizer_config.json", model_max_length=3, **settings)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), folder_tokenizer(tmp_path)
    assert ours.eos_id == theirs.eos_token_id
    for text in ["hello a", " hello", "a\n b", "h\u00e9llo", "", f"a{theirs.eos_token}b", "  a"]:
        ids = theirs.encode(text)
        if settings.get("add_eos_token") and ids[-1:] == [theirs.eos_token_id]:
            ids = ids[:-1]
        assert ours.encode(text) == ids


def test_folder_errors(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer.json"):
        folder_tokenizer(tmp_path)
    write_tiny_hf_folder(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="<none>")
    with pytest.raises(UserError, match="no eos_token"):
        folder_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json, line 1: broken JSON"):
        folder_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer"):
        folder_tokenizer(tmp_path)
