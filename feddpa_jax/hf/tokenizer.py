"""Tokenizers on the `tokenizers` library: from a Hugging Face folder, from GGUF, or of plain bytes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from feddpa_jax.types import UserError

# GGUF's token types that are control tokens or user-defined.
_CONTROL, _USER = 3, 4
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

    Special tokens that stand in a text are recognised as such, as `transformers` does.

    Attributes:
      backend: the `tokenizers.Tokenizer`.
      eos_id: the token that ends an answer.
      pad_id: the token that pads.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, eos_id: int, pad_id: int):
        """Args: the backend, and its end and pad tokens."""
        self.backend = backend
        self.eos_id = eos_id
        self.pad_id = pad_id

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, after the tokens that every sequence of this model starts with."""
        return self.backend.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        return [encoding.ids for encoding in self.backend.encode_batch(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json for `transformers.AutoTokenizer`."""
        self.backend.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.backend.id_to_token(self.eos_id),
            "pad_token": self.backend.id_to_token(self.pad_id),
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads tokenizer.json, and the end and pad tokens from the configuration files beside it.

        Raises:
          UserError: a file is missing or damaged, or no end token is named.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder}: no tokenizer.json; save the model's fast tokenizer there")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises plain Exception.
            raise UserError(f"{path}: not a tokenizer: {error}") from None
        settings = _json(folder / "tokenizer_config.json")
        config = _json(folder / "generation_config.json") | _json(folder / "config.json")
        eos_id = _token_id(backend, settings.get("eos_token"), config.get("eos_token_id"))
        if eos_id is None:
            raise UserError(f"{folder}: no eos_token in tokenizer_config.json or config.json")
        pad_id = _token_id(backend, settings.get("pad_token"), config.get("pad_token_id"))
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, eos_id=eos_id, pad_id=eos_id if pad_id is None else pad_id)

    @classmethod
    def from_gguf(cls, fields: dict[str, Any], source: str) -> "Tokenizer":
        """Builds the byte-level BPE tokenizer that a GGUF file describes.

        Args:
          fields: the file's metadata.
          source: its name, for messages.

        Raises:
          UserError: another kind of tokenizer.
        """
        kind = fields.get("tokenizer.ggml.model")
        pre = fields.get("tokenizer.ggml.pre", "gpt-2")
        if kind != "gpt2" or pre not in _PRETOKENIZERS:
            raise UserError(
                f"{source}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported; "
                f"supported: 'gpt2' with {', '.join(sorted(_PRETOKENIZERS))}"
            )
        tokens = fields["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = _PRETOKENIZERS[pre]()
        backend.decoder = decoders.ByteLevel()
        types = fields.get("tokenizer.ggml.token_type", [])
        added = [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=False)
            if kind in (_CONTROL, _USER)
        ]
        backend.add_tokens(added)
        backend.add_special_tokens([token for token in added if token.special])
        eos_id = int(fields["tokenizer.ggml.eos_token_id"])
        pad_id = int(fields.get("tokenizer.ggml.padding_token_id", eos_id))
        return cls(backend, eos_id=eos_id, pad_id=pad_id)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and an end token: the tokenizer of the built-in tiny model.

    >>> tokenizer = byte_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("été"))
    'été'
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    end = "<|end|>"
    vocabulary[end] = len(vocabulary)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    return Tokenizer(backend, eos_id=vocabulary[end], pad_id=vocabulary[end])


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
    if isinstance(token, str):
        return backend.token_to_id(token)
    if isinstance(fallback, list):
        fallback = fallback[0] if fallback else None
    return fallback if isinstance(fallback, int) else None
