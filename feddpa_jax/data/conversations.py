"""Conversations of data files: `messages` as chat models have them, and those of ShareGPT."""

from collections.abc import Sequence
from typing import Any

from feddpa_jax.types import Turn, UserError

# What the turns of data sets call their speakers.
_ROLES = {
    **{"system": "system", "user": "user", "human": "user"},
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"),
}


def read_turns(value: Any, source: str) -> tuple[Turn, ...]:
    """The turns of a conversation, whose last one is the assistant's answer to a user.

    A turn is an object with `role` and `content`, as in `messages`, or with `from` and `value`, as
    in ShareGPT. Content may be a list of parts, all of them text.

    Args:
      value: the conversation as it was read.
      source: file, line and field, for messages.

    Raises:
      UserError: something else than turns of text; or no system's turn first, the user's next, and
        the assistant's answer to the user last.

    >>> read_turns([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "here")
    (Turn(role='user', text='Hi'), Turn(role='assistant', text='Hello'))
    """
    if not isinstance(value, list):
        raise UserError(f"{source} is not a list of turns; write CSV data as JSON lines or Parquet")
    turns = tuple(_turn(own, f"{source}, turn {n}") for n, own in enumerate(value, start=1))
    roles = [turn.role for turn in turns]
    if roles[-2:] != ["user", "assistant"]:
        raise UserError(
            f"{source} does not end with a user's turn and the assistant's answer; remove the "
            "turns behind the last answer, or the conversation"
        )
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken[0] != "user" or "system" in spoken:
        raise UserError(
            f"{source} has the roles {', '.join(roles)}; a conversation starts with at most one "
            "system turn and then the user's; correct it"
        )
    return turns


def _turn(value: Any, source: str) -> Turn:
    if not isinstance(value, dict):
        raise UserError(f"{source} is not an object with role and content")
    names = ("role", "content") if "role" in value else ("from", "value")
    role, text = (value.get(name) for name in names)
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(
            f"{source} is by {role!r}; a turn has a role of {', '.join(_ROLES)}; leave out "
            "conversations with others, such as tools"
        )
    text = _text(text)
    if text is None or not (text.strip() or _ROLES[role] == "system"):
        raise UserError(f"{source} has no text; leave out turns that are empty or call tools")
    return Turn(_ROLES[role], text)


def _text(content: Any) -> str | None:
    """A turn's text, also of a list of parts; None if it is something else."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts and len(texts) == len(parts) else None
    return content if isinstance(content, str) else None


def check_history(history: Sequence[Any], source: str) -> None:
    """Refuses a history that no conversation could have before its last instruction.

    Raises:
      UserError: a turn is no `Turn` of text, or the roles do not fit.
    """
    for number, turn in enumerate(history, start=1):
        if not isinstance(turn, Turn):
            raise UserError(
                f"{source}: turn {number} of its history is {turn!r}; make it with Turn"
            )
    if history:
        turns = [*history, Turn("user", "-"), Turn("assistant", "-")]
        read_turns(
            [turn._asdict() | {"content": turn.text} for turn in turns], f"{source}: history"
        )
