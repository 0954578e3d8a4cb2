"""The part of a tokenizer that reads and writes text in the middle of a sequence.

A response continues where its prompt ends. A tokenizer of whole texts may put a space before the
first word (Llama 2, T5), and removes a leading space when it decodes; a continuation must do
neither, or responses that start with white space change.
"""

import json
from typing import Any

import tokenizers

_LISTS = ("normalizers", "pretokenizers", "decoders")
# By part: the fields of its steps that change the start of a text, and what leaves it as it is.
_AT_START: dict[str, dict[str, Any]] = {
    "normalizer": {"strip_left": False},
    "pre_tokenizer": {"prepend_scheme": "never", "add_prefix_space": False},
    "decoder": {"prepend_scheme": "never", "start": 0},
}


def continuation_backend(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer of the same tokens that adds and removes nothing at the start of a text.

    Tokens that the post-processor puts around a text are the caller's matter
    (`add_special_tokens=False`).

    Returns:
      `backend` itself if it is such a tokenizer.
    """
    parts = json.loads(backend.to_str())
    changed = {name: _inside(parts[name], fields) for name, fields in _AT_START.items()}
    if all(parts[name] == part for name, part in changed.items()):
        return backend
    return tokenizers.Tokenizer.from_str(json.dumps(parts | changed))


def _inside(step: dict[str, Any] | None, fields: dict[str, Any]) -> dict[str, Any] | None:
    """A step, with those that it consists of, without what it does at the start of a text."""
    if step is None or step["type"] == "Prepend":
        return None
    step = step | {name: value for name, value in fields.items() if name in step}
    for name in _LISTS:
        if name in step:
            steps = [_inside(own, fields) for own in step[name]]
            step[name] = [own for own in steps if own is not None]
    return step
