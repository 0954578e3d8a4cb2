"""Tokenizers that GGUF files describe: byte-level BPE, and the BPE of SentencePiece.

What a field means, and what holds where a file is silent, is llama.cpp's `src/llama-vocab.cpp`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors

from feddpa_jax.hf.tokenizer import Tokenizer, bpe_backend
from feddpa_jax.types import UserError

# `tokenizer.ggml.token_type`. All but the normal ones are recognised in a text as they stand.
_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_SPACE = "▁"


class _Cut(NamedTuple):
    """How a byte-level tokenizer cuts a text before the merges, by `tokenizer.ggml.pre`.

    Attributes:
      pattern: what matches is a piece; None for GPT-2's pattern.
      digits: whether digits stand alone, before the pattern is looked at.
      composed: whether the text is brought into Unicode's form NFC first.
      whole: whether a piece that is a token stays whole whatever the merges are.
      bos: whether texts start with the first token where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    composed: bool = False
    whole: bool = False
    bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The cut in the library's terms, with bytes spelled as GPT-2 spells them."""
        gpt2 = self.pattern is None
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2))
        return pre_tokenizers.Sequence(steps)


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _Cut(
    _WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _REST,
    whole=True,
    bos=True,
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CUTS = {
    "gpt-2": _Cut(),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _Cut(_WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _REST, composed=True),
    "smollm": _Cut(digits=True),
    # Of Mistral since Nemo.
    "tekken": _Cut(
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _REST,
        whole=True,
        bos=True,
    ),
}


def gguf_tokenizer(fields: Mapping[str, Any], source: str) -> Tokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Answers end with the file's end of sequence, of turn or of message. llama.cpp also stops at
    tokens that it knows by their text, such as "<|endoftext|>"; what a file does not say is not
    guessed here.

    Args:
      fields: the file's metadata.
      source: its name, for messages.

    Raises:
      UserError: a kind of tokenizer that is not supported, or a missing or damaged field.
    """
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    cut = _CUTS.get(str(pre)) if model == "gpt2" else None
    if cut is None and model != "llama":
        raise UserError(
            f"{source}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; "
            f"supported: 'llama', and 'gpt2' with {', '.join(sorted(_CUTS))}"
        )
    own: dict[str, Any] = {} if cut else {"bos_token_id": 1, "eos_token_id": 2}
    own |= {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    for name in ("tokens", "eos_token_id", *(["merges"] if cut else [])):
        if name not in own:
            raise UserError(f"{source}: no field 'tokenizer.ggml.{name}'; get the file again")
    tokens = own["tokens"]
    _check_types(own, source)
    kinds = own.get("token_type", [_NORMAL] * len(tokens))
    backend = _byte_level(own, cut, source) if cut else _sentencepiece(own, kinds, source)
    backend.add_tokens(
        [
            AddedToken(token, special=kind != _USER, normalized=False)
            for token, kind in zip(tokens, kinds, strict=False)
            if kind in (_UNKNOWN, _CONTROL, _USER)
        ]
    )
    # llama.cpp, too, passes over ids that are no token's.
    ids = {
        kind: own[name] if 0 <= own.get(name, -1) < len(tokens) else None
        for kind, name in (
            ("bos", "bos_token_id"),
            ("eos", "eos_token_id"),
            ("pad", "padding_token_id"),
            ("eot", "eot_token_id"),
            ("eom", "eom_token_id"),
        )
    }
    eos_id, bos_id = ids["eos"], ids["bos"]
    if eos_id is None:
        raise UserError(
            f"{source}: tokenizer.ggml.eos_token_id is {own['eos_token_id']}, which is no token; "
            "get the file again"
        )
    if own.get("add_bos_token", cut is None or cut.bos) and bos_id is not None:
        bos = tokens[bos_id]
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, bos_id)]
        )
    return Tokenizer(
        backend,
        eos_id=eos_id,
        pad_id=eos_id if ids["pad"] is None else ids["pad"],
        bos_id=bos_id,
        chat_template=fields.get("tokenizer.chat_template"),
        stop_ids=[i for i in (ids["eot"], ids["eom"]) if i is not None],
    )


def _check_types(own: Mapping[str, Any], source: str) -> None:
    """Refuses fields that hold something else than a tokenizer is made of."""
    lists = {"tokens": str, "merges": str, "scores": float, "token_type": int}
    for name, kind in lists.items():
        values = own.get(name, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise UserError(
                f"{source}: field tokenizer.ggml.{name} is not a list of {kind.__name__}; "
                "get the file again"
            )
    for name in ("scores", "token_type"):
        if name in own and len(own[name]) != len(own["tokens"]):
            raise UserError(
                f"{source}: field tokenizer.ggml.{name} has {len(own[name])} values for "
                f"{len(own['tokens'])} tokens; get the file again"
            )
    for name, value in own.items():
        if name.endswith("_token_id") and type(value) is not int:
            raise UserError(
                f"{source}: field tokenizer.ggml.{name} is {value!r}, not an integer; "
                "get the file again"
            )


def _byte_level(own: Mapping[str, Any], cut: _Cut, source: str) -> tokenizers.Tokenizer:
    pairs = [(left, right) for left, _, right in (pair.partition(" ") for pair in own["merges"])]
    backend = bpe_backend(own["tokens"], pairs, source, ignore_merges=cut.whole)
    backend.pre_tokenizer = cut.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    if cut.composed:
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(
    own: Mapping[str, Any], kinds: Sequence[int], source: str
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: spaces are "▁", and what has no token is spelled in bytes."""
    tokens = own["tokens"]
    scores = own.get("scores", [0.0] * len(tokens))
    unknown = own.get("unknown_token_id", 0)
    backend = bpe_backend(
        tokens,
        merges_by_score(tokens, scores, kinds),
        source,
        unk_token=tokens[unknown] if 0 <= unknown < len(tokens) else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    normal: list[Any] = [normalizers.Replace(" ", _SPACE)]
    plain: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if own.get("add_space_prefix", True):
        # As in the published tokenizer.json of Llama 2 and in llama.cpp, and unlike SentencePiece,
        # the text behind a special token gets one too.
        normal.insert(0, normalizers.Prepend(_SPACE))
        plain.append(decoders.Strip(" ", left=1))
    backend.normalizer = normalizers.Sequence(normal)
    backend.decoder = decoders.Sequence(plain)
    return backend


def merges_by_score(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges that SentencePiece's BPE makes, best first: every pair that is a normal token.

    SentencePiece stores no merges: it joins the neighbours whose union has the highest score.

    >>> merges_by_score(["a", "b", "ab", "aab"], [-3.0, -4.0, -2.0, -1.0], [1, 1, 1, 1])
    [('a', 'ab'), ('a', 'b')]
    """
    rows = zip(tokens, scores, kinds, strict=True)
    normal = {token: -score for token, score, kind in rows if kind == _NORMAL}
    return [
        (token[:cut], token[cut:])
        for token in sorted(normal, key=normal.__getitem__)  # Stable: ties by id.
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in normal and token[cut:] in normal
    ]
