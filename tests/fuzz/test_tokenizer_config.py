"""Changed `tokenizer_config.json` files: refused in one line, or the ids of `AutoTokenizer`."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from feddpa_jax.hf.folder_tokenizer import folder_tokenizer
from feddpa_jax.testing import write_tiny_hf_folder
from feddpa_jax.types import UserError
from tests.fuzz.conftest import fuzz

ADDED = {"__type": "AddedToken", "content": "b", "lstrip": True, "special": True}
TOKENS = [None, "a", "<|end|>", "<none>", "", ADDED, {"content": "a"}, 5, ["a"]]
LISTS = [None, ["a"], ["<|end|>", "n"], ["<none>"], [ADDED], {"image_token": "n"}, ["a", 5], "a"]
DECODER = {"256": {"content": "<|end|>", "special": True, "rstrip": True}}
VALUES: dict[str, list[Any]] = {
    **{f"{kind}_token": TOKENS for kind in ("eos", "pad", "bos", "unk", "image", "sep", "mask")},
    "additional_special_tokens": LISTS,
    "extra_special_tokens": LISTS,
    "model_specific_special_tokens": LISTS,
    "added_tokens_decoder": [{}, DECODER, {"256": {"content": "a"}}, {"x": {}}, {"256": "a"}, []],
    "chat_template": ["{{ messages }}", [{"name": "default", "template": "x"}], [{"name": "x"}]],
    "model_max_length": [1, 1e30, -1],
    "padding_side": ["left", "up"],
    "truncation_side": ["left", 5],
    "tokenizer_truncation": [{"max_length": 2, "stride": 0, "strategy": "longest_first"}],
}
OTHERS = ("clean_up_tokenization_spaces", "split_special_tokens", "add_bos_token")
OTHERS += ("add_eos_token", "legacy", "add_prefix_space", "model_input_names")
OTHERS += ("tokenizer_object", "tokenizer_file", "vocab_file", "vocab", "merges")
OTHERS += ("post_processor", "gguf_file", "backend", "name_or_path", "is_local")
OTHERS += ("fast_tokenizer_files", "max_length", "init_inputs", "local_files_only")
OTHERS += ("fix_mistral_regex", "processor_class", "encode", "trust_remote_code")
ANY = [None, True, False, 0, 1, -1, 0.5, "", "x", [], {}, [1], {"a": 1}]
TEXTS = ["banana", " a b", "x<|end|> n", ""]


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """What is changed in the tiny model's tokenizer_config.json."""
    names = st.sampled_from([*VALUES, *VALUES, *OTHERS])
    changed = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    return {
        name: draw(st.sampled_from(VALUES[name] if name in VALUES and draw(st.booleans()) else ANY))
        for name in changed
    }


def outcome(folder: Path, changed: dict[str, Any]) -> str:
    """What became of the settings; fails where we read them and `AutoTokenizer` differs."""
    file = folder / "tokenizer_config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | changed))
    try:
        ours = folder_tokenizer(folder)
        theirs: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError as error:
        assert str(error).startswith(str(folder)) and "\n" not in str(error)
        return "refused"
    finally:
        file.write_text(before)
    theirs.model_max_length = 10**30  # It warns of longer texts; ours does not.
    assert ours.chat_template is None or isinstance(ours.chat_template, str)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), changed
    return "equal"


_seen: list[str] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hf_folder(tmp_path_factory.mktemp("model"))


@given(changed=settings())
@fuzz(60)
@example(changed={"chat_template": 5})
@example(changed={"tokenizer_object": {"a": 1}})
@example(changed={"vocab_file": "/dev/null", "gguf_file": "/dev/null"})
def test_refused_or_equal(folder: Path, changed: dict[str, Any]):
    """Never a traceback, never other ids."""
    _seen.append(outcome(folder, changed))


def test_enough_is_read():
    """The fuzzer above compared ids, and not refusals alone."""
    assert _seen.count("equal") > 0.25 * len(_seen) and _seen.count("refused") > 10
