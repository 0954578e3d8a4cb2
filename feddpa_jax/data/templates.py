"""Prompt templates: from an example to the text in front of its answer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from feddpa_jax.data.chat import ChatTemplate
from feddpa_jax.files.strict_json import read_text
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.registry import Registry
from feddpa_jax.types import Example, UserError

Template = Callable[[Example], str]


@dataclasses.dataclass(frozen=True)
class OfTokenizer:
    """A template that is made for a tokenizer, as the model's own chat template is.

    Attributes:
      make: makes it.
    """

    make: Callable[[Tokenizer], Template]

    def __call__(self, example: Example) -> str:
        """Refuses: a template is made first.

        Raises:
          UserError: always.
        """
        raise UserError(
            "data.template: this one is made for a tokenizer first; use bound(name, it)"
        )


def _template(function: Any, *, tokenizer: bool = False) -> Template:
    """A template as it is registered.

    Args:
      function: of an `Example`.
      tokenizer: whether it is a function of a `Tokenizer` that makes such a function.

    Raises:
      TypeError: it is no function.
    """
    if not callable(function):
        raise TypeError("a template is a function of an Example")
    return OfTokenizer(cast(Any, function)) if tokenizer else cast(Template, function)


def _jinja_file(path: Path) -> Template:
    """The template that a user's Jinja file is.

    Raises:
      UserError: it cannot be read.
    """
    source = read_text(path)
    return OfTokenizer(lambda tokenizer: ChatTemplate(source, str(path), tokenizer))


TEMPLATES: Registry[Template] = Registry(
    "prompt template",
    "data.template",
    group="feddpa_jax.templates",
    wrap=_template,
    files={".jinja": _jinja_file},
)


def bound(name: str, tokenizer: Tokenizer) -> tuple[Template, Tokenizer]:
    """A template for a model's tokenizer, and the tokenizer whose answers end as the template's do.

    A chat model ends its turns with a token that need not be the one that ends its texts.

    Args:
      name: registered, FILE.py:NAME, or a Jinja file.
      tokenizer: the model's.

    Raises:
      UserError: an unknown template, or one that this model cannot have.

    >>> from feddpa_jax.hf.tokenizer import byte_tokenizer
    >>> bound("alpaca_short", byte_tokenizer())[0] is alpaca_short
    True
    """
    template = TEMPLATES.find(name)
    if isinstance(template, OfTokenizer):
        template = template.make(tokenizer)
    if isinstance(template, ChatTemplate):
        tokenizer = tokenizer.ending_with(template.end_id)
    return template, tokenizer


@TEMPLATES.register
def alpaca_short(example: Example) -> str:
    r"""The short Alpaca template, as the paper uses it.

    >>> alpaca_short(Example("Say hi.", "hi"))
    '### Instruction:\nSay hi.\n\n### Response:\n'
    """
    context = f"### Input:\n{example.input}\n\n" if example.input else ""
    return f"### Instruction:\n{example.instruction}\n\n{context}### Response:\n"


@TEMPLATES.register
def alpaca(example: Example) -> str:
    """The long Alpaca template: two sentences on the task, then the short template.

    Reference: templates/alpaca.json of Alpaca-LoRA. Stanford's own has no line feed at the end.

    >>> alpaca(Example("Say hi.", "hi"))[:58]
    'Below is an instruction that describes a task. Write a res'
    """
    paired = ", paired with an input that provides further context" if example.input else ""
    return (
        f"Below is an instruction that describes a task{paired}. Write a response that "
        f"appropriately completes the request.\n\n{alpaca_short(example)}"
    )


@TEMPLATES.register(tokenizer=True)
def chat(tokenizer: Tokenizer) -> Template:
    """The chat template that the model brings.

    Raises:
      UserError: it brings none.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "data.template: chat: the model brings no chat template; name a model that does, "
            "usually one called instruct, chat or it, or choose another template"
        )
    return ChatTemplate(tokenizer.chat_template, "chat", tokenizer)
