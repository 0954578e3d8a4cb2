"""What weighting rules are tried on: held-out and test instances, and the evidence of both."""

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feddpa_jax.adapters.dual import Adapters, is_shared
from feddpa_jax.config import Config
from feddpa_jax.evaluate.evaluation import Setting
from feddpa_jax.evaluate.known_answers import can_match
from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.laboratory.choosing import Choosing, by_client, pooled
from feddpa_jax.laboratory.collect import Collected, collect, with_matches
from feddpa_jax.laboratory.evidence_cache import Cache, MemoryParts
from feddpa_jax.laboratory.findings import Split
from feddpa_jax.laboratory.keeping import check_enough
from feddpa_jax.laboratory.options import Options
from feddpa_jax.laboratory.origin import identify
from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.laboratory.stand_ins import StandIns, stand_ins
from feddpa_jax.progress import OnProgress, follow
from feddpa_jax.run.evaluating import base_prompts, decoding, make_setting, weighting_settings
from feddpa_jax.run.inputs import Prepared, encode
from feddpa_jax.types import Example, TokenizedExample, UserError, client_id
from feddpa_jax.weighting.gathering import prompt_alone
from feddpa_jax.weighting.looking import MIXES

_log = logging.getLogger(__name__)


class Material(NamedTuple):
    """What rules are tried on.

    Attributes:
      setting: the clients and the test instances.
      collected: evidence and scores of all instances: made-up prompts that settings are chosen on,
        if they are, then the held-out examples, then the test.
      scorer: of the base and the adapters.
      can_J: whether an instance's answer can be matched exactly.
      validation: the held-out instances.
      test: the test instances.
      choosing: what settings are chosen by.
    """

    setting: Setting
    collected: Collected
    scorer: Scorer
    can_J: np.ndarray
    validation: Split
    test: Split
    choosing: Choosing


def find_material(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    layers: tuple[int, ...],
    *,
    fields: frozenset[str],
    options: Options,
    folder: Path | None,
    told: OnProgress | None,
) -> Material:
    """Collects the evidence of a run, or reads it from its folder.

    Args:
      config: the run's.
      prepared: base, clients, tokenized training examples.
      adapters: of the checkpoint in question.
      layers: prompts are embedded after so many.
      fields: of `Evidence`, those that rules ask for.
      options: what is asked for; too little that is held out for `keep` is refused first.
      folder: where evidence goes; None to write none.
      told: of answers.

    Raises:
      UserError: nothing was held out, there is no test instance, or the evidence is another's.
    """
    held, held_tokens, own_held = _validation(config, prepared)
    dreams = base_prompts(config, prepared)
    own_tokens = tuple(tuple(held_tokens[j] for j in held_H) for held_H in own_held)
    setting, _ = make_setting(config, prepared, dreams, own_tokens)
    agreed = _agreed(config, prepared, adapters, options)
    first = len(agreed.examples)
    own_held = [held_H + first for held_H in own_held]
    questions = Questions(
        [client_id(client.name) for client in setting.clients],
        setting.training,
        [*agreed.tokenized, *held_tokens, *setting.tokenized],
        *(dreams, layers, own_held, fields),
        prepared.base.tokenizer.decode,
        weighting_settings(config).mixed_at,
        options.embed_with or tuple(MIXES),
    )

    def split(instances: tuple[Example, ...], start: int) -> Split:
        tasks = dataclasses.replace(setting, instances=instances).tasks()
        return Split(slice(start, start + len(instances)), tasks)

    validation = split(held, first)
    choosing = (
        by_client(
            *(own_held, slice(0, first), slice(0, validation.rows.stop), prepared.names),
            agreed.words,
        )
        if agreed.examples
        else pooled(validation.tasks, validation.rows)
    )
    if options.keep:
        check_enough(choosing)
    collected, scorer = _collect(config, prepared, adapters, questions, options.fresh, folder, told)
    can_J = can_match(
        [*agreed.examples, *held, *setting.instances],
        questions.instances,
        prepared.base.tokenizer,
        config.eval.max_new_tokens,
    )
    return Material(
        setting,
        with_matches(collected, can_J),
        scorer,
        can_J,
        validation,
        split(setting.instances, validation.rows.stop),
        choosing,
    )


def _agreed(config: Config, prepared: Prepared, adapters: Adapters, options: Options) -> StandIns:
    """Stand-ins for foreign prompts; none where they do not count or clients share no adapter."""
    if options.choose != "client":
        return StandIns()
    if adapters.global_C is None or not is_shared(adapters.global_C):
        _log.warning(
            f"choose: the clients of {config.fed.method} share no adapter to agree with; settings "
            "are chosen on the pooled held-out examples, which no federation has"
        )
        return StandIns()
    return stand_ins(config, prepared, adapters, options.foreign)


def _validation(
    config: Config, prepared: Prepared
) -> tuple[tuple[Example, ...], tuple[TokenizedExample, ...], list[np.ndarray]]:
    """All held-out examples that are left, tokenized, and which of them are each client's."""
    clients = prepared.federation.clients
    held = tuple(e for client in clients for e in client.validation)
    owner_J = np.repeat(np.arange(len(clients)), [len(client.validation) for client in clients])
    if not held:
        raise UserError(
            "data.validation: this run held nothing out, so there is nothing to choose rules on; "
            "train one with --data.validation 16"
        )
    found = encode(config, prepared.base.tokenizer, held)
    if not found.examples:
        raise UserError("data.max_length: no held-out example is left; raise it")
    owner_J = owner_J[list(found.kept)]
    own_held = [np.flatnonzero(owner_J == c) for c in range(len(clients))]
    return tuple(held[i] for i in found.kept), found.examples, own_held


def _collect(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    questions: Questions,
    fresh: bool,
    folder: Path | None,
    on_progress: OnProgress | None,
) -> tuple[Collected, Scorer]:
    if folder is None:
        cache = MemoryParts()
    else:
        cache = Cache(folder / "evidence", identify(config, prepared, adapters, questions))
        cache.open(fresh=fresh)
    examples = [*questions.instances, *questions.dreams]
    examples += [example for own in questions.training for example in own]
    total = questions.requests(adapters)
    scorer = Scorer.for_examples(
        prepared.base.model,
        adapters,
        [*examples, *map(prompt_alone, examples)],
        block_tokens=decoding(config, prepared).batch_tokens,
        times=total / (2 * len(examples)),
    )
    if isinstance(cache, Cache) and cache.holds(questions.parts()):
        _log.info(f"evidence: {cache.folder}, computed before")
        return collect(scorer, questions, cache), scorer
    with follow("collecting", total, "answers", on_progress) as advance:
        return collect(scorer, questions, cache, advance), scorer
