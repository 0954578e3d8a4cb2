"""Prompts by a chat template: what in them is the template's, and what somebody said.

Special tokens are tokens in the template's own text alone. Where one is spelled in what somebody
said, it stays text, so that nobody can end a turn or start one. To tell the two apart, such places
are marked before the template is rendered, with characters that no text may hold.
"""

import dataclasses
import functools
import re
from difflib import get_close_matches
from typing import NamedTuple

from feddpa_jax.hf.render import render_chat
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import Example, Turn, UserError

# Unicode's noncharacters are for the inside of programs: around a special token's text, and around
# an answer of the assistant.
_TEXT, _TEXT_END, _ANSWER, _ANSWER_END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_MARKS = re.compile("([\ufdd0-\ufdd3])")
# What a Jinja template may look up besides what Jinja itself has.
_GIVEN = frozenset(
    [
        *("instruction", "input", "messages", "add_generation_prompt", "bos_token", "eos_token"),
        *("enable_thinking", "raise_exception", "strftime_now", "tools", "documents"),
    ]
)


class Piece(NamedTuple):
    """A part of a prompt.

    Attributes:
      text: the part.
      special: whether special tokens that are spelled in it are tokens.
      answer: whether it is an earlier answer of the assistant; training's loss is on it, and on the
        token behind it that ends the answer.
    """

    text: str
    special: bool = True
    answer: bool = False


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template made of a Jinja template and a tokenizer, for examples with a history too.

    The Jinja template has the variables of chat templates, `messages`, `add_generation_prompt`,
    `bos_token` and `eos_token`, and besides `instruction` and `input`. In `messages` an example's
    input follows its instruction after an empty line.

    Attributes:
      source: the Jinja template's text.
      name: for messages.
      tokenizer: the model's.
    """

    source: str
    name: str
    tokenizer: Tokenizer

    def __call__(self, example: Example) -> str:
        """The prompt as a text; first tokens that the tokenizer puts there anyway are left out."""
        return self.tokenizer.without_first(self._rendered(example))

    def pieces(self, example: Example) -> tuple[Piece, ...]:
        """The prompt in pieces, whose texts together are that of a call.

        Raises:
          UserError: the template refuses the example, or changes what was said.
        """
        text = self._rendered(example)
        special = re.compile("|".join(map(re.escape, self._by_length())) or "(?!)")
        said = [example.instruction, example.input, *(turn.text for turn in example.history)]
        if any(map(_MARKS.search, said)):
            raise UserError(
                f"data.template: {self.name}: a text holds one of the characters U+FDD0 to U+FDD3, "
                "which are no text; remove it"
            )

        def marked(text: str) -> str:
            return special.sub(lambda match: f"{_TEXT}{match[0]}{_TEXT_END}", text)

        history = tuple(
            Turn(turn.role, f"{_ANSWER}{marked(self.answer(turn.text))}{_ANSWER_END}")
            if turn.role == "assistant"
            else Turn(turn.role, marked(turn.text))
            for turn in example.history
        )
        ours = dataclasses.replace(
            example,
            instruction=marked(example.instruction),
            input=marked(example.input),
            history=history,
        )
        if ours == example:
            return (Piece(self.tokenizer.without_first(text)),)
        found = self._rendered(ours)
        if _MARKS.sub("", found) != text or found.count(_ANSWER) != found.count(_ANSWER_END):
            raise UserError(
                f"data.template: {self.name}: the template changes a text that spells a special "
                "token, or an earlier answer, perhaps because it thinks aloud (</think>); remove "
                "that from the text"
            )
        return _split(self.tokenizer.without_first(found))

    def answer(self, text: str) -> str:
        """An answer's text as the template writes it: many trim it."""
        return text.strip() if self._answers.trims else text

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        end = self._answers.end_id
        return self.tokenizer.eos_id if end is None else end

    @functools.cached_property
    def _variables(self) -> frozenset[str]:
        from jinja2 import TemplateSyntaxError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The extensions are those of `transformers`; only names are looked for.
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self.source)
        try:
            found = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except TemplateSyntaxError as error:
            raise UserError(
                f"data.template: {self.name}, line {error.lineno}: {error.message}; correct it"
            ) from None
        # Jinja writes nothing for a name that it does not know. Templates of models test names that
        # only others give them; a user's file that writes no messages has no reason to.
        strange = sorted(found - _GIVEN - environment.globals.keys())
        if "messages" in found:
            strange = [name for name in strange if get_close_matches(name, _GIVEN, cutoff=0.85)]
        if strange:
            raise UserError(
                f"data.template: {self.name} writes {strange[0]!r}, which nothing gives it; it may "
                f"write {', '.join(sorted(_GIVEN))}"
            )
        return found

    @functools.cached_property
    def _answers(self) -> "_Answers":
        """How the template writes answers, from one that it is given."""
        if "messages" not in self._variables:
            return _Answers(None, False)
        turns = [Turn("user", "Ask."), Turn("assistant", " Answer. ")]
        text = render_chat(self.source, turns, self.tokenizer, name=self.name, answered=True)
        trims = " Answer. " not in text
        _, _, after = text.partition("Answer." if trims else " Answer. ")
        ends = [token for token in self._by_length() if after.startswith(token)]
        return _Answers(self.tokenizer.special_tokens[ends[0]] if ends else None, trims)

    def _by_length(self) -> list[str]:
        """The special tokens; one comes before those that it starts with."""
        return sorted(self.tokenizer.special_tokens, key=len, reverse=True)

    def _check_written(self, example: Example) -> None:
        """Refuses an example of which the template leaves something out: Jinja says nothing."""
        if "messages" in self._variables:
            return
        if example.history:
            raise no_history(self.name)
        for name, text in (("instruction", example.instruction), ("input", example.input)):
            if text and name not in self._variables:
                raise UserError(
                    f"data.template: {self.name} does not write an example's {name}; write "
                    f"{{{{ {name} }}}}, or messages, in it"
                )

    def _rendered(self, example: Example) -> str:
        self._check_written(example)
        context = f"\n\n{example.input}" if example.input else ""
        return render_chat(
            self.source,
            [*example.history, Turn("user", example.instruction + context)],
            self.tokenizer,
            name=self.name,
            variables={"instruction": example.instruction, "input": example.input},
        )


class _Answers(NamedTuple):
    """The token that ends an answer, None if the template writes none; and whether it trims."""

    end_id: int | None
    trims: bool


def no_history(name: str) -> UserError:
    """What is said of an example with a history where the template has no place for it."""
    return UserError(
        f"data.template: {name} has no place for a system prompt or earlier turns, and an example "
        "has some; use chat, or a Jinja file that writes messages"
    )


def _split(marked: str) -> tuple[Piece, ...]:
    """A marked text's pieces."""
    pieces: list[Piece] = []
    special, answer = True, False
    for part in _MARKS.split(marked):
        if part in (_TEXT, _TEXT_END):
            special = part == _TEXT_END
        elif part in (_ANSWER, _ANSWER_END):
            answer = part == _ANSWER
        elif part:
            piece = Piece(part, special and not answer, answer)
            if pieces and pieces[-1][1:] == piece[1:]:
                piece = piece._replace(text=pieces.pop().text + part)
            pieces.append(piece)
    # What every sequence starts with stands in front of the first piece.
    return tuple(pieces if pieces and pieces[0].special else [Piece(""), *pieces])
