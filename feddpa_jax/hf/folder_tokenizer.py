"""Tokenizers of Hugging Face folders, as `transformers` reads them; needs no torch."""

import contextlib
import logging
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from feddpa_jax.files.problems import reason
from feddpa_jax.files.strict_json import read_object
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import UserError

# What `transformers` reads besides tokenizer.json.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def folder_tokenizer(folder: Path | str) -> Tokenizer:
    """Reads tokenizer.json, and the special tokens from the configuration files beside it.

    `transformers` reads them, with the class that takes tokenizer.json as it is: the classes of the
    families that `AutoTokenizer` chooses put it together anew, each version in its own way, and ask
    for torch where it is installed. No code of the folder runs, and nothing is downloaded.

    Answers end with the tokenizer's end token and, as in `transformers`, with any of the
    `eos_token_id` of generation_config.json, or of config.json where that file is not there.

    Args:
      folder: a model's folder.

    Raises:
      UserError: a file is missing or damaged, no end token is named, or the files name a token that
        tokenizer.json does not have.

    >>> folder_tokenizer("models/tiny").encode("Hi")  # doctest: +SKIP
    [39, 72]
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder}: no tokenizer.json; save the model's fast tokenizer there")
    try:
        stored = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"{path}: not a tokenizer ({reason(error)}); get the file again") from None
    found = _of_transformers(folder, path)
    _check_extra(found, stored, folder)
    ids = _special_ids(found, stored, folder)
    backend, template = found.backend_tokenizer, found.chat_template
    backend.no_padding()
    backend.no_truncation()
    if isinstance(template, dict):  # Several by name.
        template = template.get("default")
    try:
        template = template if isinstance(template, str) else None
        return Tokenizer(backend, **ids, chat_template=template)
    except Exception as error:  # The library raises plain Exception: for one, no unknown token.
        raise UserError(f"{path}: encodes no text ({reason(error)}); get the file again") from None


def _of_transformers(folder: Path, path: Path) -> Any:
    """The folder's `PreTrainedTokenizerFast`.

    Raises:
      UserError: settings that are no JSON objects, or that it does not understand.
    """
    for name in _SETTINGS:
        _json(folder / name)
    with quiet():
        from transformers import PreTrainedTokenizerFast

        try:
            # The file is named lest tokenizer_config.json names another.
            found = PreTrainedTokenizerFast.from_pretrained(
                folder, tokenizer_file=str(path), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # Whatever settings of the wrong types lead to.
            raise UserError(
                f"{folder}: transformers cannot read the tokenizer ({reason(error)}); correct "
                "tokenizer_config.json or get it again"
            ) from None
    if found.split_special_tokens:
        raise UserError(f"{folder}: split_special_tokens is not supported; remove it")
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what `transformers` logs: that torch is missing, and advice on old files."""
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_error)  # On import: the library sets the level itself then.
    try:
        from transformers.utils import logging as theirs

        level = theirs.get_verbosity()
        theirs.set_verbosity_error()
        try:
            yield
        finally:
            theirs.set_verbosity(level)
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _check_extra(found: Any, stored: tokenizers.Tokenizer, folder: Path) -> None:
    """Refuses tokens that `transformers` adds and the model has never seen.

    Of the end, pad and other named tokens, that is said where they are needed.

    Raises:
      UserError: the configuration files name one.
    """
    named = {getattr(found, name) for name in type(found).SPECIAL_TOKENS_ATTRIBUTES}
    for token in found.added_tokens_decoder.values():
        text = token.content
        if text not in named and stored.token_to_id(text) is None:
            raise UserError(
                f"{folder}: tokenizer_config.json names the token {reprlib.repr(text)}, which is "
                "no token of tokenizer.json; load and save the tokenizer with transformers"
            )


def _special_ids(found: Any, stored: tokenizers.Tokenizer, folder: Path) -> dict[str, Any]:
    """The ids that `Tokenizer` takes, by its arguments.

    Raises:
      UserError: no end token, or end tokens that are no ids.
    """
    generation = _json(folder / "generation_config.json")
    config = generation | _json(folder / "config.json")
    ids = {
        kind: _token_id(stored, getattr(found, f"{kind}_token"), config.get(f"{kind}_token_id"))
        for kind in ("eos", "pad", "bos")
    }
    eos_id, pad_id = ids["eos"], ids["pad"]
    if eos_id is None:
        raise UserError(
            f"{folder}: no eos_token in tokenizer_config.json or config.json that tokenizer.json "
            "knows; name the token that ends an answer"
        )
    there = (folder / "generation_config.json").is_file()
    return {
        "eos_id": eos_id,
        "pad_id": eos_id if pad_id is None else pad_id,
        "bos_id": ids["bos"],
        "stop_ids": _stop_ids((generation if there else config).get("eos_token_id"), folder),
    }


def _json(path: Path) -> dict[str, Any]:
    """A file's object; of a file that is not there, an empty one."""
    return read_object(path) if path.exists() else {}


def _stop_ids(found: Any, folder: Path) -> list[int]:
    """The end tokens that a configuration names: none, one, or a list.

    Raises:
      UserError: something else.
    """
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for value in ids:
        if type(value) is not int:
            raise UserError(
                f"{folder}: eos_token_id {reprlib.repr(found)} in generation_config.json or "
                "config.json is neither a token id nor a list of them"
            )
    # No model says an id that no array of ids holds.
    return [value for value in ids if 0 <= value < 2**31]


def _token_id(stored: tokenizers.Tokenizer, token: str | None, fallback: Any) -> int | None:
    """The id of a token that tokenizer.json has; else what config.json says, if it has that."""
    found = None if token is None else stored.token_to_id(token)
    if found is not None:
        return found
    if isinstance(fallback, list):
        fallback = fallback[0] if fallback else None
    if type(fallback) is not int or not 0 <= fallback < 2**31:
        return None
    return fallback if stored.id_to_token(fallback) is not None else None
