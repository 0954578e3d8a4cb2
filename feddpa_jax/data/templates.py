"""Prompt templates by name."""

from collections.abc import Callable

from feddpa_jax.types import Example, UserError

Template = Callable[[Example], str]


def alpaca_short(example: Example) -> str:
    r"""The short Alpaca template, as the paper uses it.

    >>> alpaca_short(Example("Say hi.", "hi"))
    '### Instruction:\nSay hi.\n\n### Response:\n'
    """
    context = f"### Input:\n{example.input}\n\n" if example.input else ""
    return f"### Instruction:\n{example.instruction}\n\n{context}### Response:\n"


TEMPLATES: dict[str, Template] = {"alpaca_short": alpaca_short}


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
      UserError: there is none.
    """
    if name not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise UserError(f"data.template: {name!r} is unknown; known: {known}")
    return TEMPLATES[name]
