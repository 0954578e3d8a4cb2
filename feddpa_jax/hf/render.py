"""The text of a conversation, by a Jinja template that `transformers` renders in its sandbox."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from feddpa_jax.files.problems import reason
from feddpa_jax.hf.folder_tokenizer import quiet
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import Turn, UserError

# Some templates write today's date, and so other tokens tomorrow. This is the date that those of
# Llama write where they know none.
_DATE = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24"}
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{code}', '{value}')" for code, value in _DATE.items())
    + " }}{%- endmacro +%}"
)
# Answers of the data are answers alone, so models that can think first are told not to.
VARIABLES = {"enable_thinking": False}


def render_chat(
    source: str,
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    *,
    name: str,
    answered: bool = False,
    variables: Mapping[str, str] | None = None,
) -> str:
    """The text of a conversation, as `apply_chat_template` of the model's tokenizer makes it.

    The date is always 26 July 2024, and `enable_thinking` is false.

    Args:
      source: the Jinja template.
      turns: at least one.
      tokenizer: its special tokens may stand in the template by name, such as `bos_token`.
      name: the template's name, for messages.
      answered: whether the last turn is the assistant's answer; if not, its answer is asked for.
      variables: more of the template's variables.

    Raises:
      UserError: the template fails, or refuses the turns.
    """
    if "strftime_now" in source:
        source = _FIXED_DATE + source
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    names = {key: tokenizer.backend.id_to_token(i) for key, i in ids.items() if i is not None}
    try:
        return _renderer().apply_chat_template(
            [{"role": turn.role, "content": turn.text} for turn in turns],
            chat_template=source,
            tokenize=False,
            add_generation_prompt=not answered,
            **{**names, **VARIABLES, **(variables or {})},
        )
    except Exception as error:  # A template may fail in any way.
        raise UserError(
            f"data.template: {name}: the template refuses the roles "
            f"{', '.join(turn.role for turn in turns)} or fails ({reason(error)}); change the data "
            "or choose another template"
        ) from None


@functools.cache
def _renderer() -> Any:
    """A tokenizer of `transformers` that renders; it has no tokens, as it encodes nothing."""
    with quiet():
        from transformers import PreTrainedTokenizerFast

        empty = tokenizers.Tokenizer(tokenizers.models.WordLevel({}))
        return PreTrainedTokenizerFast(tokenizer_object=empty)
