import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from feddpa_jax.hf.folder_tokenizer import folder_tokenizer
from feddpa_jax.hf.gguf_tokenizer import gguf_tokenizer, merges_by_score
from feddpa_jax.testing import write_tiny_hf_folder
from feddpa_jax.types import UserError


def fields_of(model: str, **own: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in {"model": model, **own}.items()}


SMOLLM = fields_of(
    "gpt2",
    pre="smollm",
    tokens=["<s>", "</s>", "1", "2", "12", "a", "b", "ab", "<tool>", "Ġ"],
    merges=["1 2", "a b"],
    token_type=[3, 3, 1, 1, 1, 1, 1, 1, 4, 1],
    eos_token_id=1,
    bos_token_id=0,
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# What SentencePiece 0.2.3 learned from a few English lines: type "bpe", byte_fallback, identity
# normalization, split_digits, extra whitespace kept. The n-th of these has score -n.
LLAMA2_LEARNED = (
    "he ▁t ▁the ▁s an re her ther ▁b ▁f ▁se in ve ▁o ana ▁an ▁there ll og ro ▁a ▁n lls ▁fo ▁th "
    "▁bro ▁sea ▁she ather athers ab az ck ei en gh ho is ix ju me mp ne qu ur wn wo ▁T ▁c ▁d ▁g ▁ "
    "e h t a n s r o i b l f g u v c d m w x y , . T j k p q z"
)
LLAMA2_PIECES = LLAMA2_LEARNED.split()
LLAMA2 = fields_of(
    "llama",
    tokens=["<unk>", "<s>", "</s>", *BYTES, *LLAMA2_PIECES],
    scores=[0.0] * 259 + [-float(n) for n in range(len(LLAMA2_PIECES))],
    token_type=[2, 3, 3, *[6] * 256, *[1] * len(LLAMA2_PIECES)],
    bos_token_id=1,
    eos_token_id=2,
    unknown_token_id=0,
)
# As Gemma's: no space before the first word, and runs of spaces and newlines as user-defined
# tokens, which llama.cpp's converter spells with spaces and scores -1000.
GEMMA_LEARNED = (
    "he the ▁the an ▁s re ▁t ther ▁b ▁f ▁se in ve ana ▁an ll og ro ▁n ▁o lls ▁fo ▁th ▁bro ▁sea "
    "ather athers ▁there ab az ck ei en gh ho is ix ju me mp ne qu ur wn wo ▁a ▁c ▁d ▁g ▁l The azy "
    "▁ e h t a n s r o i b l f g u v c d m w x y , . T j k p q z"
)
GEMMA_PIECES = GEMMA_LEARNED.split()
GEMMA = fields_of(
    "llama",
    tokens=["<pad>", "</s>", "<s>", "<unk>", "  ", "   ", "\n\n", *BYTES, *GEMMA_PIECES],
    scores=[-1000.0] * 263 + [-float(n) for n in range(len(GEMMA_PIECES))],
    token_type=[3, 3, 3, 2, 4, 4, 4, *[6] * 256, *[1] * len(GEMMA_PIECES)],
    bos_token_id=2,
    eos_token_id=1,
    padding_token_id=0,
    unknown_token_id=3,
    add_space_prefix=False,
)
# The ids of `SentencePieceProcessor.encode` of the two models.
SENTENCEPIECE = {
    "the other feathers": ([261, 272, 266, 268, 311, 288], [264, 282, 270, 272, 316, 289]),
    "  two  spaces   here": (
        [310, 310, 260, 305, 310, 262, 337, 314, 326, 311, 316, 310, 310, 310, 259, 264],
        [4, 318, 307, 4, 321, 342, 319, 331, 316, 321, 5, 263, 268],
    ),
    "": ([], []),
    " ": ([310, 310], [315]),
    "banana": ([267, 263, 273], [325, 266, 276]),
    "Ünï 日 🙂": (
        [310, 198, 159, 315, 198, 178, 310, 233, 154, 168, 310, 243, 162, 156, 133],
        [202, 163, 320, 202, 182, 315, 237, 158, 172, 315, 247, 166, 160, 137],
    ),
    "line\n\nline\tthe\n": (
        [310, 321, 270, 311, 13, 13, 321, 270, 311, 12, 313, 259, 13],
        [326, 274, 316, 6, 326, 274, 316, 16, 264, 17],
    ),
    "aaaa anananana": (
        [279, 314, 314, 314, 274, 263, 263, 273],
        [319, 319, 319, 319, 277, 266, 266, 276],
    ),
    "9 of 10": ([310, 60, 272, 322, 310, 52, 51], [64, 282, 327, 315, 56, 55]),
}
# Where the pieces of the byte-level tokenizers end shows in these.
WORDS = [
    "I'LL say we've DON'T 's",
    "12345 1234567 3.14 ½²",
    "a\n\n b\r\n\r\n   c\t\t d  ",
    "foo.bar(x);\n\n--==/\n/n",
    "日本語 été naïve Ünïcode",
    "CamelCaseWord XMLFile iPhone",
    "🙂🙂 ok?!",
    "",
]


def learned() -> tuple[list[str], list[str]]:
    """A byte-level vocabulary, and merges that reach over every boundary."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator(WORDS, trainer)
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in model["merges"]]


TOKENS, MERGES = learned()


def byte_level(pre: str, **own: Any) -> dict[str, Any]:
    kinds = [3, 3, *[1] * (len(TOKENS) - 2)]
    fields = fields_of("gpt2", pre=pre, tokens=TOKENS, merges=MERGES, token_type=kinds)
    return {**fields, **fields_of("gpt2", bos_token_id=0, eos_token_id=1, **own)}


def write_gguf(path: Path, architecture: str, fields: dict[str, Any]) -> Path:
    """A file with a tokenizer and the sizes that `transformers` asks for beside it."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    for name, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("case", "fields"), [(0, LLAMA2), (1, GEMMA)], ids=["llama2", "gemma"])
def test_ids_of_sentencepiece(case: int, fields: dict[str, Any]):
    tokenizer = gguf_tokenizer(fields, "file")
    for text, expected in SENTENCEPIECE.items():
        ids = tokenizer.encode(text)
        assert ids == [fields["tokenizer.ggml.bos_token_id"], *expected[case]], text
        assert tokenizer.decode(ids) == text
    assert tokenizer.pad_id == (tokenizer.eos_id, 0)[case]


def test_scores_rank_the_merges_not_ids():
    pieces = LLAMA2_PIECES[::-1]
    fields = LLAMA2 | fields_of(
        "llama",
        tokens=["<unk>", "<s>", "</s>", *BYTES, *pieces],
        scores=[0.0] * 259 + [-float(n) for n in range(len(pieces))][::-1],
    )
    ours, turned = gguf_tokenizer(LLAMA2, "file"), gguf_tokenizer(fields, "file")
    for text in SENTENCEPIECE:
        expected = [ours.backend.id_to_token(i) for i in ours.encode(text)]
        assert [turned.backend.id_to_token(i) for i in turned.encode(text)] == expected


def test_sentencepiece_where_the_file_is_silent():
    silent = {
        name: value
        for name, value in LLAMA2.items()
        if name.rsplit(".", 1)[1] not in ("bos_token_id", "eos_token_id", "unknown_token_id")
    }
    tokenizer = gguf_tokenizer(silent, "file")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.encode("the") == [1, 261]
    without = gguf_tokenizer(silent | {"tokenizer.ggml.add_bos_token": False}, "file")
    assert without.encode("the") == [261]


def test_special_tokens_in_a_sentencepiece_text():
    tokenizer = gguf_tokenizer(LLAMA2, "file")
    # Behind a special token a word has its space, as llama.cpp and Llama 2's own file have it.
    assert tokenizer.encode("the</s>the") == [1, 261, 2, 261]
    assert tokenizer.decode([1, 261, 2]) == "the"
    assert tokenizer.encode("the<unk>") == [1, 261, 0]


def test_characters_without_bytes_are_one_unknown_token():
    fields = fields_of(
        "llama", tokens=["<unk>", "<s>", "</s>", "▁", "a"], token_type=[2, 3, 3, 1, 1]
    )
    assert gguf_tokenizer(fields, "file").encode("日本a") == [1, 3, 0, 4]


def test_merges_by_score():
    # Longest first part first, as in the published tokenizer.json files.
    found = merges_by_score(["a", "aa", "aaa"], [-3.0, -2.0, -1.0], [1, 1, 1])
    assert found == [("aa", "a"), ("a", "aa"), ("a", "a")]
    # A spelled-out byte, or what is not used, is not made of its characters.
    assert merges_by_score(["<", "1", "<1", "1<"], [0.0] * 4, [1, 1, 6, 5]) == []


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken"])
def test_ids_of_transformers_reading_the_file(tmp_path: Path, pre: str):
    fields = byte_level(pre, add_bos_token=False)
    architecture = "qwen2" if pre == "qwen2" else "llama"
    file = write_gguf(tmp_path / "a.gguf", architecture, fields)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    tokenizer = gguf_tokenizer(fields, "file")
    gpt2 = gguf_tokenizer(byte_level("gpt-2"), "file")
    for text in WORDS:
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert any(tokenizer.encode(text) != gpt2.encode(text) for text in WORDS)


def test_gemma_of_transformers_reading_the_file(tmp_path: Path):
    file = write_gguf(tmp_path / "a.gguf", "gemma3", GEMMA)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    tokenizer = gguf_tokenizer(GEMMA, "file")
    for text in SENTENCEPIECE:
        assert tokenizer.encode(text)[1:] == theirs.encode(text, add_special_tokens=False)


def test_pieces_of_llama3s_published_pattern():
    ours = gguf_tokenizer(byte_level("llama-bpe"), "file").backend.pre_tokenizer
    published = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert ours is not None
    for text in WORDS:
        assert ours.pre_tokenize_str(text) == published.pre_tokenize_str(text)


def test_qwen2_composes_characters():
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    pairs: Any = [tuple(pair.split(" ")) for pair in MERGES]
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=pairs)
    tokenizer = gguf_tokenizer(byte_level("qwen2"), "file")
    for text in [*WORDS, "e\u0301te\u0301 U\u0308"]:
        assert tokenizer.encode(text) == theirs.encode(text)


def test_first_token_where_the_file_is_silent():
    """llama.cpp starts texts with it for Llama 3 and Mistral, not for the others."""
    starts = {
        pre: gguf_tokenizer(byte_level(pre), "file").encode("a")[0] == 0
        for pre in ("llama-bpe", "llama3", "llama-v3", "tekken", "qwen2", "gpt-2", "smollm")
    }
    started = [pre for pre, start in starts.items() if start]
    assert started == ["llama-bpe", "llama3", "llama-v3", "tekken"]
    silent = gguf_tokenizer(byte_level("llama-bpe", add_bos_token=False), "file")
    assert silent.encode("a")[0] != 0


def test_words_that_no_merge_makes():
    """Llama 3 has tokens that its merges do not reach: such a word stays whole."""
    kinds = [*byte_level("llama-bpe")["tokenizer.ggml.token_type"], 1]
    word = {"tokenizer.ggml.tokens": [*TOKENS, "zqz"], "tokenizer.ggml.token_type": kinds}
    assert gguf_tokenizer(byte_level("llama-bpe") | word, "file").encode("zqz") == [0, len(TOKENS)]
    assert len(gguf_tokenizer(byte_level("qwen2") | word, "file").encode("zqz")) == 3


def test_digits_merges_and_special_tokens():
    tokenizer = gguf_tokenizer(SMOLLM, "file")
    # "ab" is merged; "12" is not, since digits stand alone.
    assert tokenizer.encode("ab12") == [7, 2, 3]
    assert tokenizer.encode("a</s><tool>") == [5, 1, 8]
    # Control tokens are dropped, user-defined ones are text.
    assert tokenizer.decode([0, 5, 1, 8]) == "a<tool>"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (1, 1, 0)
    plain = gguf_tokenizer(SMOLLM | {"tokenizer.ggml.pre": "gpt-2"}, "file")
    assert plain.encode("ab12") == [7, 4]


def test_first_token():
    tokenizer = gguf_tokenizer(SMOLLM | {"tokenizer.ggml.add_bos_token": True}, "file")
    assert tokenizer.encode("ab") == [0, 7]
    assert tokenizer.encode_batch(["ab", ""]) == [[0, 7], [0]]


@pytest.mark.parametrize(
    "fields",
    [
        SMOLLM,
        SMOLLM | {"tokenizer.ggml.add_bos_token": True},
        byte_level("llama-bpe"),
        byte_level("qwen2"),
        LLAMA2,
        GEMMA,
    ],
    ids=["smollm", "smollm_with_bos", "llama3", "qwen2", "llama2", "gemma"],
)
def test_saved_tokenizer_is_read_by_transformers(tmp_path: Path, fields: dict[str, Any]):
    write_tiny_hf_folder(tmp_path)  # config.json says "llama", as in an exported model
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    tokenizer = gguf_tokenizer(fields | {"tokenizer.chat_template": template}, "file")
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    back = folder_tokenizer(tmp_path)
    for text in [*WORDS, *SENTENCEPIECE, "12 ab", "ab</s>1<tool>2"]:
        ids = tokenizer.encode(text)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
        assert back.encode(text) == ids
    special = (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == special
    assert (back.eos_id, back.pad_id, back.bos_id) == special
    assert tokenizer.chat_template == theirs.chat_template == template
    chat = theirs.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "[user] ab"


def test_ids_that_are_no_tokens_are_passed_over():
    # Some files say -1, which is stored as this.
    none = {"tokenizer.ggml.padding_token_id": 4294967295, "tokenizer.ggml.bos_token_id": 10}
    tokenizer = gguf_tokenizer(SMOLLM | none | {"tokenizer.ggml.add_bos_token": True}, "file")
    assert (tokenizer.pad_id, tokenizer.bos_id) == (1, None)
    assert tokenizer.encode("ab") == [7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, "file: tokenizer 't5' .* not supported"),
        ({"pre": "gpt-4o"}, "pre-tokenizer 'gpt-4o' is not supported.*'llama'.*gpt-2, llama-bpe"),
        ({"merges": ["a zz"]}, "file: damaged tokenizer"),
        ({"eos_token_id": 10}, "file: tokenizer.ggml.eos_token_id is 10, which is no token"),
    ],
)
def test_errors(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        gguf_tokenizer(SMOLLM | fields_of(**{"model": "gpt2", **changes}), "file")
    missing = {name: value for name, value in SMOLLM.items() if "merges" not in name}
    with pytest.raises(UserError, match=r"no field 'tokenizer.ggml.merges'"):
        gguf_tokenizer(missing, "file")
