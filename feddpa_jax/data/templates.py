"""Prompt templates: from an example to the text in front of its answer."""

from collections.abc import Callable
from typing import Any, cast

from feddpa_jax.registry import Registry
from feddpa_jax.types import Example

Template = Callable[[Example], str]


def _template(function: Any) -> Template:
    """A template as it is registered.

    Raises:
      TypeError: it is no function.
    """
    if not callable(function):
        raise TypeError("a template is a function of an Example")
    return cast(Template, function)


TEMPLATES: Registry[Template] = Registry(
    "prompt template", "data.template", group="feddpa_jax.templates", wrap=_template
)


@TEMPLATES.register
def alpaca_short(example: Example) -> str:
    r"""The short Alpaca template, as the paper uses it.

    >>> alpaca_short(Example("Say hi.", "hi"))
    '### Instruction:\nSay hi.\n\n### Response:\n'
    """
    context = f"### Input:\n{example.input}\n\n" if example.input else ""
    return f"### Instruction:\n{example.instruction}\n\n{context}### Response:\n"
