"""Stand-ins: prompts that a client puts in the place of other clients' when it chooses settings.

A client does not know what others ask. It can let the base make prompts up, which needs nothing at
all, or take public ones: the more they are like real prompts of other tasks, the more its choice is
worth. Nobody's answers are read: the right answer of a stand-in is the shared adapter's own.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.config import Config
from feddpa_jax.data.hub import user_path
from feddpa_jax.data.records import read_file
from feddpa_jax.data.sample import TASKS, sample_federation
from feddpa_jax.data.tables import KINDS
from feddpa_jax.data.templates import bound
from feddpa_jax.files.escape import short
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.base_prompts import dream
from feddpa_jax.laboratory.choosing import AGREED
from feddpa_jax.run.evaluating import decoding
from feddpa_jax.run.inputs import Prepared, encode
from feddpa_jax.types import Example, TokenizedExample, UserError

_log = logging.getLogger(__name__)

# The source's name of those that the base makes up, and of those of the built-in sample.
BASE, SAMPLE = "base", "sample"


class StandIns(NamedTuple):
    """Prompts with the shared adapter's answers.

    Attributes:
      examples: with these answers as texts, and nothing else.
      tokenized: prompts and answers.
      words: what they are, in words; "" if there are none.
    """

    examples: tuple[Example, ...] = ()
    tokenized: tuple[TokenizedExample, ...] = ()
    words: str = ""


def stand_ins(config: Config, prepared: Prepared, adapters: Adapters, source: str) -> StandIns:
    """At most `AGREED` stand-ins, answered greedily by the adapter that all clients share.

    Args:
      config: the run's; its seed decides what is made up or drawn.
      prepared: base, clients, tokenized training examples.
      adapters: of which the global one is the same for all clients.
      source: `BASE`; `SAMPLE`; or the path of a file of examples, in any format that data have.

    Raises:
      UserError: no such file, a bad record, or no prompt of it that fits into `data.max_length`.
        Of the sample, that is a warning, and the base makes prompts up.
    """
    prompts, words = find_prompts(config, prepared, source)
    tokenizer, how = prepared.base.tokenizer, decoding(config, prepared)
    answerer = Answerer(
        prepared.base.model,
        adapters,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        max_new_tokens=how.max_new_tokens,
        batch_tokens=how.batch_tokens,
    )
    answers = answerer([Prompt(0, own_T, 1.0, 0.0, how.max_new_tokens) for own_T in prompts])
    examples, tokenized = [], []
    for prompt_T, answer_T in zip(prompts, answers, strict=True):
        # An answer of as many tokens as there may be need not have ended.
        end = [tokenizer.eos_id] if len(answer_T) < how.max_new_tokens else []
        tokens_T = np.concatenate([prompt_T, answer_T, end]).astype(np.int32)
        tokenized.append(TokenizedExample(tokens_T, len(prompt_T)))
        examples.append(Example("", tokenizer.decode_continuation(answer_T)))
    return StandIns(tuple(examples), tuple(tokenized), words)


def find_prompts(config: Config, prepared: Prepared, source: str) -> tuple[list[np.ndarray], str]:
    """The prompts' tokens, each int32 [T], and what they are.

    Args and Raises: as of `stand_ins`.
    """
    seed = (config.seed + 1) % 2**32  # Rules see other prompts, made up with the run's own seed.
    if source == BASE:
        return _made_up(config, prepared, seed), f"{AGREED} prompts made up by the base"
    if source == SAMPLE:
        each = -(-AGREED // len(TASKS))
        examples = sample_federation(seed, train=1, test=each).test
        words = "the built-in sample"
    else:
        check_source(source)
        examples = read_file(user_path(source))
        words = short(user_path(source).name)
    # What is behind a prompt is not looked at, and must not be why it is left out.
    asked = list(dict.fromkeys(dataclasses.replace(own, output=".") for own in examples))
    order = np.random.default_rng(seed).permutation(len(asked))
    found = encode(config, prepared.base.tokenizer, [asked[i] for i in order])
    fit = found.examples[:AGREED]
    if fit:
        if len(fit) < AGREED:
            _log.warning(f"foreign: {words} has {len(fit)} prompts that differ and fit")
        _warn_of_known(config, prepared, [asked[order[i]] for i in found.kept[:AGREED]], source)
        return [own.tokens_T[: own.prompt_length] for own in fit], (
            f"{len(fit)} public prompts of {words}"
        )
    room = f"has no prompt that fits into data.max_length = {config.data.max_length}"
    if source == SAMPLE:
        _log.warning(f"foreign: the built-in sample {room}; the base makes prompts up instead")
        return find_prompts(config, prepared, BASE)
    raise UserError(f"foreign: {short(source)} {room}; name shorter ones, or foreign: {BASE}")


def _warn_of_known(
    config: Config, prepared: Prepared, examples: Sequence[Example], source: str
) -> None:
    """Says where stand-ins are of the data that rules are scored on: the choice looks too good."""
    test = {(own.instruction, own.input) for own in prepared.federation.test}
    same = sum((own.instruction, own.input) in test for own in examples)
    remedy = "name a file of other public examples"
    if same:
        _log.warning(
            f"foreign: {same} of {len(examples)} stand-ins are test prompts, so settings are "
            f"chosen on what they are scored on; {remedy}"
        )
    elif source == SAMPLE == config.data.path:
        _log.warning(
            f"foreign: the data are the sample too, so the stand-ins are of the clients' own tasks "
            f"and the choice looks better than it is; {remedy}"
        )


def _made_up(config: Config, prepared: Prepared, seed: int) -> list[np.ndarray]:
    """The prompts' tokens that the base writes."""
    tokenizer = prepared.base.tokenizer
    found = dream(
        prepared.base.model,
        tokenizer,
        bound(config.data.template, tokenizer)[0],
        count=AGREED,
        seed=seed,
        max_length=config.data.max_length,
    )
    return [own.tokens_T[: own.prompt_length] for own in found]


def check_source(source: str) -> None:
    """Refuses what is neither a source's name nor a file of examples.

    Raises:
      UserError: what it may be.
    """
    if source in (BASE, SAMPLE):
        return
    path = user_path(source, "foreign")
    if not path.is_file() or path.suffix.lower() not in KINDS:
        raise UserError(
            f"foreign: {short(source)!r} is no file of examples; give {BASE}, {SAMPLE}, or a file "
            f"({', '.join(KINDS)})"
        )
