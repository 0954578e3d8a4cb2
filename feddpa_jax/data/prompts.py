"""Prompts as token ids, and which of them training's loss is on: earlier answers in them."""

from collections.abc import Sequence
from typing import NamedTuple

from feddpa_jax.data.chat import ChatTemplate, Piece, no_history
from feddpa_jax.data.templates import Template
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import Example


class PromptIds(NamedTuple):
    """A prompt's ids; and for each whether it is trained on, None if none is."""

    ids: list[int]
    trained: list[bool] | None = None


def encode_prompts(
    examples: Sequence[Example], tokenizer: Tokenizer, template: Template
) -> list[PromptIds]:
    """The prompts of examples.

    Earlier answers of the assistant are encoded as its last one is, apart from what is before them.

    Args:
      examples: any number.
      tokenizer: the model's.
      template: makes prompts.

    Raises:
      UserError: an example has a history, and the template no place for it.
    """
    if not isinstance(template, ChatTemplate):
        if any(example.history for example in examples):
            raise no_history(getattr(template, "__name__", "this template"))
        texts = [template(example) for example in examples]
        return [PromptIds(ids) for ids in tokenizer.encode_batch(texts)]
    prompts = [template.pieces(example) for example in examples]
    first = tokenizer.encode_batch([pieces[0].text for pieces in prompts])
    others = [piece for pieces in prompts for piece in pieces[1:]]
    ids = iter(_encoded(others, tokenizer))
    found = []
    for pieces, start in zip(prompts, first, strict=True):
        parts = [start, *(next(ids) for _ in pieces[1:])]
        answers = any(piece.answer for piece in pieces)
        trained = _trained(pieces, parts, tokenizer.eos_id) if answers else None
        found.append(PromptIds([i for part in parts for i in part], trained))
    return found


def encode_answers(
    examples: Sequence[Example], tokenizer: Tokenizer, template: Template
) -> list[list[int]]:
    """The ids of the examples' answers, each as what continues its prompt, without an end token."""
    if isinstance(template, ChatTemplate):
        return tokenizer.encode_plain_batch([template.answer(e.output) for e in examples])
    return tokenizer.encode_continuation_batch([example.output for example in examples])


def _encoded(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of pieces that go on after others."""
    special = iter(
        tokenizer.encode_continuation_batch([piece.text for piece in pieces if piece.special])
    )
    plain = iter(tokenizer.encode_plain_batch([p.text for p in pieces if not p.special]))
    return [next(special if piece.special else plain) for piece in pieces]


def _trained(pieces: Sequence[Piece], parts: Sequence[Sequence[int]], eos_id: int) -> list[bool]:
    """For each id whether it is of an earlier answer, the token that ends it included."""
    trained, ends = [], False
    for piece, ids in zip(pieces, parts, strict=True):
        own = [piece.answer] * len(ids)
        if ends and ids and ids[0] == eos_id:
            own[0] = True
        trained += own
        ends = piece.answer
    return trained
