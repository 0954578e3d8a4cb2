"""Text to ids and back, whatever a tokenizer was read from; and the tokenizer of plain bytes."""

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from feddpa_jax.files.escape import json_text
from feddpa_jax.files.problems import reason
from feddpa_jax.hf.continuation import continuation_backend
from feddpa_jax.types import UserError


class Tokenizer:
    """Text to ids and back, with the model's special tokens.

    A sequence is a prompt (`encode`) and what follows it (`encode_continuation`); both are encoded
    separately, so the ids of a prompt do not depend on its response.

    Special tokens that stand in a text, be it a user's, are recognised as such, as `transformers`
    does; not so by `encode_plain_batch`.

    Attributes:
      backend: the `tokenizers.Tokenizer`.
      eos_id: the token that ends an answer in training.
      stop_ids: the tokens that end an answer in decoding, `eos_id` first.
      pad_id: the token that pads.
      bos_id: the token that the model calls its first; the backend puts it there or does not.
      chat_template: the Jinja template of a chat, if the model brings one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        pad_id: int,
        bos_id: int | None = None,
        chat_template: str | None = None,
        stop_ids: Sequence[int] = (),
    ):
        """Args: the backend, its end, pad and first tokens, the template, more end tokens."""
        self.backend = backend
        self.eos_id = eos_id
        self.stop_ids = tuple(dict.fromkeys((eos_id, *stop_ids)))
        self.pad_id = pad_id
        self.bos_id = bos_id
        self.chat_template = chat_template
        # Some tokenizers end every text with a token; a prompt must stay open.
        around = backend.encode("a").special_tokens_mask
        self._appended = next((n for n, special in enumerate(reversed(around)) if not special), 0)
        self._without_row: frozenset[int] = frozenset()

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.backend.get_vocab_size()

    @property
    def refused(self) -> list[int]:
        """The tokens that a text may not spell, because the model has no row for them."""
        return sorted(self._without_row)

    def limit(self, rows: int, source: str) -> None:
        """Fits the tokenizer to a model with so many rows in its embedding.

        An added token may be without a row, as that of images is in Gemma 3's models of text: it is
        in a text only where it is spelled out, and such a text is refused when it is encoded.

        Args:
          rows: of the embedding.
          source: the model's name, for messages.

        Raises:
          UserError: a token of the vocabulary, or one that every sequence starts or ends with, has
            no row.
        """
        vocabulary, added = self.backend.get_vocab(), self.backend.get_added_tokens_decoder()
        beyond = {index: token for token, index in vocabulary.items() if index >= rows}
        needed = {self.eos_id, *self.encode("")}
        plain = [index for index in beyond if index not in added or index in needed]
        if plain:
            raise UserError(
                f"{source}: the tokenizer has {len(vocabulary)} tokens, and "
                f"{beyond[max(plain)]!r} has id {max(plain)}; the model only {rows} rows; put the "
                "model's own tokenizer beside it"
            )
        self._without_row = frozenset(beyond)
        if self.pad_id in beyond:
            self.pad_id = self.eos_id

    @functools.cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of the tokens that are special where they are spelled, by their text."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    def without_first(self, text: str) -> str:
        """A text without the tokens at its start that `encode` puts there anyway."""
        first = self.backend.decode(self.encode(""), skip_special_tokens=False)
        return text.removeprefix(first)

    def ending_with(self, eos_id: int) -> "Tokenizer":
        """The same tokenizer, whose answers end with another token first of all."""
        if eos_id == self.eos_id:
            return self
        other = copy.copy(self)
        other.eos_id = eos_id
        other.stop_ids = tuple(dict.fromkeys((eos_id, *self.stop_ids)))
        return other

    def encode(self, text: str) -> list[int]:
        """Ids of a text, after the tokens that every sequence of this model starts with.

        Raises:
          UserError: the text spells a token that the model has no row for, as the other functions
            that encode.
        """
        return self._open(self.backend.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        return [self._open(encoding.ids) for encoding in self.backend.encode_batch(list(texts))]

    def _open(self, ids: list[int]) -> list[int]:
        return self._with_rows(ids[: len(ids) - self._appended])

    def _with_rows(self, ids: list[int]) -> list[int]:
        if not self._without_row.isdisjoint(ids):
            token = self.backend.id_to_token(min(self._without_row.intersection(ids)))
            raise UserError(
                f"a text holds {token!r}, a token that the model has no embedding for; remove it "
                "from the texts"
            )
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a whole sequence's ids, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    @functools.cached_property
    def _continuation(self) -> tokenizers.Tokenizer:
        return continuation_backend(self.backend)

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that goes on after others: no first token and no space is put before it.

        >>> byte_tokenizer().encode_continuation(" a")
        [220, 64]
        """
        return self._with_rows(self._continuation.encode(text, add_special_tokens=False).ids)

    def encode_continuation_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_continuation` for many texts at once."""
        encodings = self._continuation.encode_batch(list(texts), add_special_tokens=False)
        return [self._with_rows(encoding.ids) for encoding in encodings]

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._continuation.to_str())
        plain.encode_special_tokens = True
        return plain

    def encode_plain_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_continuation_batch`, but special tokens that are spelled in a text stay text."""
        encodings = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [self._with_rows(encoding.ids) for encoding in encodings]

    def decode_continuation(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids that go on after others, such as an answer's: leading spaces stay.

        The inverse of `encode_continuation`, as far as the tokenizer keeps the text: some bring it
        into Unicode's form NFC, and special tokens that stand in it are left out.
        """
        return self._continuation.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_whole(self, ids: Sequence[int] | np.ndarray, *, start: bool = True) -> str:
        """The text of ids with special tokens spelled out, for people to read.

        Args:
          ids: of a sequence, or of a part of one.
          start: whether they are the first ones; if not, leading spaces stay.

        >>> byte_tokenizer().decode_whole([64, 256])
        'a<|end|>'
        """
        backend = self.backend if start else self._continuation
        return backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json for `transformers.AutoTokenizer`.

        It makes special whatever tokenizer_config.json names, and leaves that out of texts. So only
        tokens that are special here are named; ids alone, such as a 1 that stands in every
        config.json of a kind, are no reason.
        """
        self.backend.save(str(Path(folder) / "tokenizer.json"))
        added = self.backend.get_added_tokens_decoder()
        tokens = {"eos_token": self.eos_id, "pad_token": self.pad_id, "bos_token": self.bos_id}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        } | {
            name: added[i].content
            for name, i in tokens.items()
            if i is not None and i in added and added[i].special
        }
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        text = json_text(settings, indent=2) + "\n"
        (Path(folder) / "tokenizer_config.json").write_text(text, encoding="utf-8")


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
        raise UserError(
            f"{source}: damaged tokenizer ({reason(error)}); get the file again"
        ) from None


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
