"""A response is encoded where its prompt ends: nothing is added before it, and it comes back."""

import json
import unicodedata

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from feddpa_jax.data.templates import alpaca_short
from feddpa_jax.data.tokenize import encode_examples, encode_prompt
from feddpa_jax.hf.continuation import continuation_backend
from feddpa_jax.hf.gguf_tokenizer import gguf_tokenizer
from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer
from feddpa_jax.types import Example
from tests.hf.test_gguf_tokenizer import GEMMA, LLAMA2, byte_level

RESPONSES = [
    "yes",
    " yes",
    "    return x + 1",
    "\nyes",
    "\n\nyes",
    "  \n yes\n",
    "\tyes",
    "\r\nyes",
    "正解です。",
    "　全角",  # an ideographic space
    "\u0301accent",
    "cafe\u0301 é",
    "हिन्दी",
    "🙂 yes",
    "👩‍💻\ufe0f🇯🇵",
    "▁yes",
    " ",
    "\n",
    "ответ",
    "- item\n- item",
    "#",
    "\xa0yes",
    "\u200byes",
]
PROMPT = "### Instruction:\nComplete the body of def f1(x):\n\n### Response:\n"
LINES = [PROMPT + response for response in RESPONSES for _ in range(3)] + ["a b  c   d    e"]
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
METASPACE = ["▁", "\n", "\t"]


def trained(backend: Backend, vocabulary: int = 700, **options) -> Backend:
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        **options,
    )
    backend.train_from_iterator(LINES, trainer)
    return backend


def byte_level_bpe(*, prefix: bool = False, regex: bool = True, split: str = "") -> Backend:
    backend = Backend(models.BPE())
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split:
        steps.append(pre_tokenizers.Split(Regex(split), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex and not split))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return trained(backend, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def spelled_in_bytes(learned: Backend) -> Backend:
    """The same BPE with a token for every byte, as SentencePiece's byte_fallback."""
    parts = json.loads(learned.to_str())
    vocabulary = parts["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    parts["model"]["byte_fallback"] = True
    return Backend.from_str(json.dumps(parts))


def plain_decoder(*, strips: bool) -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if strips else steps)


def sentencepiece_bpe(kind: str) -> Backend:
    """As Llama 2's tokenizer.json, by a normalizer or by Metaspace, or as Gemma's."""
    backend = Backend(models.BPE(fuse_unk=True))
    if kind == "prepend":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif kind == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    backend.decoder = plain_decoder(strips=kind != "gemma")
    backend = spelled_in_bytes(trained(backend, 300, limit_alphabet=60))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


def unigram(*, strips: bool = False) -> Backend:
    backend = Backend(models.Unigram())
    if strips:
        backend.normalizer = normalizers.Strip(left=True, right=False)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(LINES, trainer)
    return backend


def tokenizer_of(backend: Backend) -> Tokenizer:
    end = backend.token_to_id("</s>")
    assert end is not None
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return Tokenizer(backend, eos_id=end, pad_id=end)


KINDS = {
    "gpt2": lambda: tokenizer_of(byte_level_bpe()),
    "gpt2_prefix": lambda: tokenizer_of(byte_level_bpe(prefix=True)),
    "no_pieces": lambda: tokenizer_of(byte_level_bpe(regex=False)),
    "qwen": lambda: tokenizer_of(byte_level_bpe(split=QWEN)),
    "llama2": lambda: tokenizer_of(sentencepiece_bpe("prepend")),
    "metaspace_always": lambda: tokenizer_of(sentencepiece_bpe("always")),
    "metaspace_first": lambda: tokenizer_of(sentencepiece_bpe("first")),
    "gemma": lambda: tokenizer_of(sentencepiece_bpe("gemma")),
    "unigram": lambda: tokenizer_of(unigram()),
    "unigram_strips": lambda: tokenizer_of(unigram(strips=True)),
    "bytes": byte_tokenizer,
    "gguf_llama2": lambda: gguf_tokenizer(LLAMA2, "file"),
    "gguf_gemma": lambda: gguf_tokenizer(GEMMA, "file"),
    "gguf_llama3": lambda: gguf_tokenizer(byte_level("llama-bpe"), "file"),
    "gguf_qwen2": lambda: gguf_tokenizer(byte_level("qwen2"), "file"),
}
# Where no token reaches over the end of a prompt.
SEPARATE = ("bytes", "gguf_llama2")


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    return request.param, KINDS[request.param]()


def kept(name: str, text: str) -> str:
    """What the tokenizer keeps of a text: Qwen composes; SentencePiece cannot tell ▁ from space."""
    if name == "gguf_qwen2":
        return unicodedata.normalize("NFC", text)
    if any(part in name for part in ("llama2", "metaspace", "gemma", "unigram")):
        return text.replace("▁", " ")
    return text


def test_responses_come_back(kind: tuple[str, Tokenizer]):
    name, tokenizer = kind
    for text, ids in zip(RESPONSES, tokenizer.encode_continuation_batch(RESPONSES), strict=True):
        assert ids == tokenizer.encode_continuation(text)
        assert tokenizer.decode_continuation(ids) == kept(name, text), ids
    assert tokenizer.encode_continuation("") == []


def test_prompts_are_those_of_inference(kind: tuple[str, Tokenizer]):
    """In front of every response, and the response is all that follows, with the end token."""
    name, tokenizer = kind
    examples = [Example("Complete the body of def f1(x):", text) for text in RESPONSES]
    tokenized, _, counts = encode_examples(examples, tokenizer, alpaca_short, 4096)
    assert counts == (len(examples), 0, 0, 0)
    for example, (tokens_T, prompt, _) in zip(examples, tokenized, strict=True):
        asked_T = encode_prompt(example, tokenizer, alpaca_short, 4096)
        assert tokens_T[:prompt].tolist() == asked_T.tolist() == tokenizer.encode(PROMPT)
        assert tokens_T[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in tokens_T[prompt:-1]
        assert tokenizer.decode_continuation(tokens_T[prompt:-1]) == kept(name, example.output)
        # Both parts together are the whole text still.
        before = " " if name == "gpt2_prefix" else ""
        assert tokenizer.decode(tokens_T) == before + kept(name, PROMPT + example.output)


def test_joint_encoding_counts_other_prompts(kind: tuple[str, Tokenizer]):
    name, tokenizer = kind
    examples = [Example("Complete the body of def f1(x):", text) for text in RESPONSES]
    _, _, counts = encode_examples(examples, tokenizer, alpaca_short, 4096, "joint")
    prompt = tokenizer.encode(PROMPT)
    other = sum(tokenizer.encode(PROMPT + text)[: len(prompt)] != prompt for text in RESPONSES)
    assert counts.other_prompt == other
    assert (other > 0) == (name not in SEPARATE)


def test_transformers_gives_the_same_ids(kind: tuple[str, Tokenizer]):
    """Of a continuation, where the tokenizer puts nothing before a text anyway."""
    name, tokenizer = kind
    if name not in ("gpt2", "no_pieces", "qwen", "gemma", "gguf_gemma", "gguf_qwen2"):
        return
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    for text in RESPONSES:
        expected = theirs.encode(text, add_special_tokens=False)
        assert tokenizer.encode_continuation(text) == expected
        assert tokenizer.decode_continuation(expected) == theirs.decode(expected)


def test_no_space_is_put_before_a_word():
    """Llama 2: alone, a text starts with a space; after a prompt, with the word."""
    tokenizer = gguf_tokenizer(LLAMA2, "file")
    whole = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("the")]
    after = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode_continuation("the")]
    assert (whole, after) == (["<s>", "▁the"], ["t", "he"])
    spaced = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode_continuation(" the")]
    assert spaced == ["▁the"]
    ids = tokenizer.encode_continuation(" the")
    assert (tokenizer.decode(ids), tokenizer.decode_continuation(ids)) == ("the", " the")


def test_special_tokens_in_a_response_are_recognised():
    tokenizer = gguf_tokenizer(LLAMA2, "file")
    ids = tokenizer.encode_continuation("the</s> the")
    assert [tokenizer.backend.id_to_token(i) for i in ids] == ["t", "he", "</s>", "▁the"]
    assert tokenizer.decode_continuation(ids) == "the the"


def test_a_backend_that_adds_nothing_is_used_as_it_is():
    backend = byte_tokenizer().backend
    assert continuation_backend(backend) is backend
    llama2 = gguf_tokenizer(LLAMA2, "file").backend
    before = llama2.to_str()
    assert continuation_backend(llama2).to_str() != before
    assert llama2.to_str() == before
