"""Tokenizers on the `tokenizers` library: from a Hugging Face folder, GGUF, or plain bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from feddpa_jax.types import UserError

# The token types of GGUF that are recognised in a text as they stand.
_CONTROL, _USER = 3, 4
# How a text is cut before the merges, by `tokenizer.ggml.pre`: "smollm" takes digits one by one.
_PRETOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
}


class Tokenizer:
    """Text to ids and back, with the model's special tokens.

    Special tokens that stand in a text, be it a user's, are recognised as such, as `transformers`
    does.

    Attributes:
      backend: the `tokenizers.Tokenizer`.
      eos_id: the token that ends an answer.
      pad_id: the token that pads.
      bos_id: the token that the model calls its first; the backend puts it there or does not.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, eos_id: int, pad_id: int, bos_id: int | None = None
    ):
        """Args: the backend, and its end, pad and first tokens."""
        self.backend = backend
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.bos_id = bos_id
        # Some tokenizers end every text with a token; a prompt must stay open.
        around = backend.encode("a").special_tokens_mask
        self._appended = next((n for n, special in enumerate(reversed(around)) if not special), 0)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, after the tokens that every sequence of this model starts with."""
        return self._open(self.backend.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        return [self._open(encoding.ids) for encoding in self.backend.encode_batch(list(texts))]

    def _open(self, ids: list[int]) -> list[int]:
        return ids[: len(ids) - self._appended]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json for `transformers.AutoTokenizer`."""
        self.backend.save(str(Path(folder) / "tokenizer.json"))
        tokens = {"eos_token": self.eos_id, "pad_token": self.pad_id, "bos_token": self.bos_id}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        } | {name: self.backend.id_to_token(i) for name, i in tokens.items() if i is not None}
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / "tokenizer_config.json").write_text(text, encoding="utf-8")

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Tokenizer":
        """Reads tokenizer.json, and the special tokens from the configuration files beside it.

        Raises:
          UserError: a file is missing or damaged, or no end token is named.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder}: no tokenizer.json; save the model's fast tokenizer there")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises plain Exception.
            raise UserError(f"{path}: not a tokenizer ({error}); get the file again") from None
        settings = _json(folder / "special_tokens_map.json")
        settings |= _json(folder / "tokenizer_config.json")
        config = _json(folder / "generation_config.json") | _json(folder / "config.json")
        ids = {
            kind: _token_id(backend, settings.get(f"{kind}_token"), config.get(f"{kind}_token_id"))
            for kind in ("eos", "pad", "bos")
        }
        eos_id, pad_id = ids["eos"], ids["pad"]
        if eos_id is None:
            raise UserError(
                f"{folder}: no eos_token in tokenizer_config.json or config.json that "
                "tokenizer.json knows; name the token that ends an answer"
            )
        backend.no_padding()
        backend.no_truncation()
        pad_id = eos_id if pad_id is None else pad_id
        return cls(backend, eos_id=eos_id, pad_id=pad_id, bos_id=ids["bos"])

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any], source: str) -> "Tokenizer":
        """Builds the byte-level BPE tokenizer that a GGUF file describes.

        Args:
          fields: the file's metadata.
          source: its name, for messages.

        Raises:
          UserError: another kind of tokenizer, or a missing or damaged field.
        """
        model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
        if model != "gpt2" or pre not in _PRETOKENIZERS:
            raise UserError(
                f"{source}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; "
                f"supported: 'gpt2' with {', '.join(sorted(_PRETOKENIZERS))}"
            )
        for name in ("tokens", "merges", "eos_token_id"):
            if f"tokenizer.ggml.{name}" not in fields:
                raise UserError(f"{source}: no field 'tokenizer.ggml.{name}'; get the file again")
        own = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
        eos_id, bos_id = own["eos_token_id"], own.get("bos_token_id")
        backend = _byte_bpe(own["tokens"], own["merges"], source)
        backend.pre_tokenizer = _PRETOKENIZERS[pre]()
        backend.add_tokens(
            [
                AddedToken(token, special=kind == _CONTROL, normalized=False)
                for token, kind in zip(own["tokens"], own.get("token_type", ()), strict=False)
                if kind in (_CONTROL, _USER)
            ]
        )
        if own.get("add_bos_token") and bos_id is not None:
            bos = own["tokens"][bos_id]
            backend.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], special_tokens=[(bos, bos_id)]
            )
        pad_id = own.get("padding_token_id", eos_id)
        return cls(backend, eos_id=eos_id, pad_id=pad_id, bos_id=bos_id)


def _byte_bpe(tokens: list[str], merges: list[str], source: str) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"{source}: damaged tokenizer ({error}); get the file again") from None
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and an end token: the tokenizer of the built-in tiny model.

    >>> tokenizer = byte_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("été"))
    'été'
    """
    end = "<|end|>"
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), end]
    backend = _byte_bpe(tokens, [], "byte tokenizer")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    eos_id = len(tokens) - 1
    return Tokenizer(backend, eos_id=eos_id, pad_id=eos_id)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _token_id(backend: tokenizers.Tokenizer, token: Any, fallback: Any) -> int | None:
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and backend.token_to_id(token) is not None:
        return backend.token_to_id(token)
    if isinstance(fallback, list):
        fallback = fallback[0] if fallback else None
    known = isinstance(fallback, int) and backend.id_to_token(max(0, fallback)) is not None
    return fallback if known and fallback >= 0 else None
