"""Tokenizers on the `tokenizers` library: from a Hugging Face folder, or plain bytes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from feddpa_jax.escape import json_text
from feddpa_jax.types import UserError


class Tokenizer:
    """Text to ids and back, with the model's special tokens.

    Special tokens that stand in a text, be it a user's, are recognised as such, as `transformers`
    does.

    Attributes:
      backend: the `tokenizers.Tokenizer`.
      eos_id: the token that ends an answer.
      pad_id: the token that pads.
      bos_id: the token that the model calls its first; the backend puts it there or does not.
      chat_template: the Jinja template of a chat that a GGUF file brings; folders keep theirs in
        files of their own.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        pad_id: int,
        bos_id: int | None = None,
        chat_template: str | None = None,
    ):
        """Args: the backend, its end, pad and first tokens, and the template."""
        self.backend = backend
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.bos_id = bos_id
        self.chat_template = chat_template
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
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        text = json_text(settings, indent=2) + "\n"
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


def bpe_backend(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], source: str, **options: Any
) -> tokenizers.Tokenizer:
    """A byte-pair encoder that does not cut, normalise or decode yet.

    Args:
      tokens: the vocabulary in the order of the ids.
      merges: pairs of tokens, the first ones merged first.
      source: where they come from, for messages.
      options: more of `tokenizers.models.BPE`.

    Raises:
      UserError: merges of what is not in the vocabulary.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=list(merges), **options)
        return tokenizers.Tokenizer(model)
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"{source}: damaged tokenizer ({error}); get the file again") from None


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and an end token: the tokenizer of the built-in tiny model.

    >>> tokenizer = byte_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("été"))
    'été'
    """
    end = "<|end|>"
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), end]
    backend = bpe_backend(tokens, [], "byte tokenizer")
    backend.decoder = decoders.ByteLevel()
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
