"""An evaluation as the configuration describes it."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.config import Config
from feddpa_jax.data.templates import bound
from feddpa_jax.data.tokenize import TokenCounts, other_prompt_note
from feddpa_jax.evaluate.evaluation import Decoding, Setting, evaluate
from feddpa_jax.evaluate.groups import Joined, evaluated, in_groups
from feddpa_jax.evaluate.metrics import METRICS, without_words
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.evaluate.own_tests import warn_without_own_tests
from feddpa_jax.evaluate.results import Evaluation, make_evaluation, write_evaluation
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.bucket import in_bucket
from feddpa_jax.inference.base_prompts import DREAMS, dream
from feddpa_jax.progress import OnProgress
from feddpa_jax.run.inputs import Prepared, encode
from feddpa_jax.run.own_code import announce
from feddpa_jax.types import SomeClients, TokenizedExample, UserError, client_id
from feddpa_jax.weighting.gathering import support_draw
from feddpa_jax.weighting.rule import RULES, is_transductive, learns, least_support
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.weights import make_weighting

_log = logging.getLogger(__name__)


def evaluated_clients(config: Config, names: Sequence[str]) -> np.ndarray | None:
    """The clients that the configuration has evaluated, by index; None: all of them, at once.

    Args:
      config: the run's.
      names: of all clients.
    """
    found = evaluated(names, config.eval.clients, config.seed)
    if found is not None and len(found) < len(names):
        _log.info(f"eval.clients: {len(found)} of {len(names)} clients are looked at")
    return found


def weighting_settings(config: Config) -> WeightingSettings:
    """How instances are weighed, with the draws' seed and the weight of mixed embeddings."""
    own = config.weighting
    seed = config.seed if own.seed is None else own.seed
    weight = trained_weight(config) if own.embed_weight is None else own.embed_weight
    return dataclasses.replace(own, seed=seed, embed_weight=weight)


def trained_weight(config: Config) -> float:
    """The local adapter's weight where it is trained beside the global one; else 1/2."""
    options = inspect.signature(METHODS.find(config.fed.method).build).parameters
    return config.fed.local_weight if "local_weight" in options else 0.5


def weighs_instances(config: Config, possible: Sequence[str]) -> bool:
    """Whether an evaluation weighs instances, and so runs the weighting rule.

    Args:
      config: the run's.
      possible: the modes that its adapters can answer in.
    """
    return "instance" in possible and (config.eval.modes is None or "instance" in config.eval.modes)


def check_rule(config: Config) -> None:
    """Tries the weighting rule; if it is from the user's own file, says first that it is run.

    A run folder may come from somebody else: its rule's file is run only where it is needed.

    Raises:
      UserError: an unknown rule, one that does not work, or a hyperparameter that it does not have.
    """
    announce(config, ["weighting.rule"])
    weighting = config.weighting
    make_weighting(weighting.rule, scale=1.0, scales="local", parameters=weighting.parameters)
    if is_transductive(weighting.rule):
        _log.warning(
            f"weighting.rule: {weighting.rule} is transductive: an instance's weight depends on "
            "those beside it, and differs between an evaluation, the laboratory and one prompt"
        )
    least = least_support(weighting.rule, weighting.parameters)
    if weighting.support < least:
        _log.warning(
            f"weighting.support: {weighting.rule} cannot tell instances apart by "
            f"{weighting.support} training prompts, and gives all the same weight; {least} or more "
            "are needed"
        )


def check_evaluation(config: Config, possible: Sequence[str]) -> None:
    """Refuses what an evaluation would refuse, before the training.

    Args:
      config: the run's.
      possible: the modes that it will be able to answer in.

    Raises:
      UserError: of the weighting rule or a metric.
    """
    if weighs_instances(config, possible):
        check_rule(config)
        check_learning(config)
    if possible:
        check_metrics(config)


def check_learning(config: Config) -> None:
    """Refuses a rule that learns from held-out examples where none are held out.

    Raises:
      UserError: nothing is held out, and the rule may not take training examples.
    """
    own = config.weighting
    learned = own.learn_from != "training" and learns(own.rule)
    if learned and not config.data.validation:
        raise UserError(
            f"data.validation: the rule {own.rule} learns from held-out examples, and nothing is "
            "held out; set it to 16, say, or weighting.learn_from to training"
        )


def check_metrics(config: Config) -> None:
    """Finds the metrics; of those in the user's own files, says first that these are run.

    Raises:
      UserError: an unknown metric, or a file that does not work.
    """
    announce(config, ["eval.metrics"])
    for name in config.eval.metrics:
        METRICS.find(name)


def base_prompts(config: Config, prepared: Prepared) -> tuple[TokenizedExample, ...]:
    """Prompts that the base model makes up, for rules that compare with them."""
    return dream(
        prepared.base.model,
        prepared.base.tokenizer,
        bound(config.data.template, prepared.base.tokenizer)[0],
        count=DREAMS,
        seed=config.seed,
        max_length=config.data.max_length,
    )


def made_up(
    config: Config, prepared: Prepared, settings: WeightingSettings
) -> tuple[TokenizedExample, ...]:
    """Base prompts, if the weighting rule asks for them; else none."""
    return base_prompts(config, prepared) if "dream_ND" in settings.sees() else ()


def learned_from(
    config: Config, prepared: Prepared, settings: WeightingSettings, *, only: str | None = None
) -> tuple[tuple[TokenizedExample, ...], ...]:
    """Each client's examples that a weighting rule learns from; none if it does not learn.

    These are the examples that the client held out; with `weighting.learn_from: training`, its
    support where it held none out.

    Args:
      config: the run's.
      prepared: base, clients, tokenized training examples.
      settings: the rule's.
      only: the one client that is weighed; the others have none then.

    Raises:
      UserError: a client held nothing out.
    """
    if not learns(settings.rule):
        return ()
    found: list[tuple[TokenizedExample, ...]] = [()] * len(prepared.names)
    for place, name in enumerate(prepared.names):
        if only not in (None, name):
            continue
        client, training = prepared.federation.clients[place], prepared.training[place]
        own = encode(config, prepared.base.tokenizer, client.validation).examples
        if not own and settings.learn_from == "training":
            draw = support_draw(len(training), settings, 1, client_id(client.name))
            own = tuple(training[i] for i in np.unique(draw))
        if not own:
            raise UserError(
                f"data.validation: the rule {settings.rule} learns from held-out examples, and "
                f"client {client.name!r} has none; train with --data.validation 16, or set "
                "weighting.learn_from to training"
            )
        found[place] = own
    return tuple(found)


def make_setting(
    config: Config,
    prepared: Prepared,
    dreams: tuple[TokenizedExample, ...],
    held: tuple[tuple[TokenizedExample, ...], ...] = (),
) -> tuple[Setting, TokenCounts]:
    """The clients and the test instances, and how many of these were cut or dropped.

    Args:
      config: the run's.
      prepared: base, clients, tokenized training examples.
      dreams: base prompts, if the weighting rule asks for them.
      held: each client's examples that the weighting rule learns from.

    Raises:
      UserError: there are no test instances.
    """
    if not prepared.federation.test:
        raise UserError(
            f"data.path: {config.data.path} has no test instance to evaluate on; "
            "name other data, or train with data.test_path"
        )
    test = encode(config, prepared.base.tokenizer, prepared.federation.test)
    counts = test.counts
    if counts.truncated or counts.dropped:
        _log.info(
            f"{counts.examples} test instances: {counts.truncated} cut, {counts.dropped} dropped "
            f"at data.max_length = {config.data.max_length}"
        )
    if note := other_prompt_note([counts]):
        _log.info(f"test instances: {note}")
    if not test.examples:
        raise UserError("data.max_length: no test instance is left; raise it")
    setting = Setting(
        clients=prepared.federation.clients,
        training=prepared.training,
        instances=tuple(prepared.federation.test[i] for i in test.kept),
        tokenized=test.examples,
        tokenizer=prepared.base.tokenizer,
        dreams=dreams,
        held=held,
    )
    return setting, counts


def decoding(config: Config, prepared: Prepared) -> Decoding:
    """How the configuration has answers made."""
    return Decoding(
        beams=config.eval.beams if config.eval.decoding == "beam" else 1,
        max_new_tokens=config.eval.max_new_tokens,
        batch_tokens=config.eval.batch_tokens or prepared.tokens_at_once,
    )


def _disk_of(folder: Path | None) -> Path | None:
    """The folder on a disk that a folder will be in; None if there is none."""
    if folder is None or in_bucket(folder) or not folder.parent.is_dir():
        return None
    return folder.parent


def _of_all(setting: Setting, prepared: Prepared, members: np.ndarray) -> Setting:
    """That of all clients from that of a group; who they are is read when it is asked for."""
    everyone = SomeClients(prepared.federation.clients, members)
    return dataclasses.replace(setting, clients=everyone, training=(), held=())


def evaluate_config(
    config: Config,
    prepared: Prepared,
    adapters: Callable[[np.ndarray | None], Adapters],
    members: np.ndarray | None,
    *,
    answers_with: str,
    round_number: int | None,
    folder: Path | None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Evaluates adapters on the configured test instances, and writes the results.

    Args:
      config: the run's.
      prepared: base, clients, tokenized training examples.
      adapters: gives those to evaluate of some clients, by index, or from None of all.
      members: the clients that are evaluated, by index; None: all, at once. More than `AT_ONCE` are
        evaluated in groups, so that memory does not grow with their number: what was answered waits
        in temporary files, beside `folder` if it is on a disk.
      answers_with: the mode that the method is judged by.
      round_number: the round of the checkpoint that they come from; None if from elsewhere.
      folder: where the results go; None to write none.
      on_progress: called as answers are done.

    Raises:
      UserError: there are no test instances, or a mode is asked for that the method has not.
    """
    check_metrics(config)
    weighting = weighting_settings(config)
    groups = [None] if members is None else in_groups(members)
    warn_without_own_tests(prepared.federation, members)
    own = adapters(groups[0])
    if weighs := weighs_instances(config, available_modes(own)):
        check_rule(config)
    dreams = made_up(config, prepared, weighting) if weighs else ()
    # Read before the work: a file may change, or go, meanwhile.
    files = RULES.sources([weighting.rule]) if weighs else {}
    joined, results, setting, counts = Joined(_disk_of(folder)), {}, None, TokenCounts()
    for number, group in enumerate(groups):
        some = prepared if group is None else prepared.of(group)
        held = learned_from(config, some, weighting) if weighs else ()
        setting, counts = make_setting(config, some, dreams, held)
        results = evaluate(
            prepared.base.model,
            adapters(group) if number else own,
            setting,
            modes=config.eval.modes,
            metrics=config.eval.metrics,
            weighting=weighting,
            fixed=config.weighting.fixed,
            decoding=decoding(config, prepared),
            on_progress=on_progress,
        )
        if len(groups) > 1:
            joined.add(results)
    assert setting is not None
    if members is not None and len(groups) > 1:
        setting, results = _of_all(setting, prepared, members), joined.results()
    found = make_evaluation(
        results,
        setting,
        settings={
            "method": config.fed.method,
            "answers_with": answers_with,
            "round": round_number,
            "weighting": dataclasses.asdict(config.weighting),
            **({"transductive": True} if weighs and is_transductive(weighting.rule) else {}),
            "decoding": dataclasses.asdict(config.eval),
            "clients": len(prepared.names),
            "instances": counts._asdict(),
            "targets_without_words": without_words([e.output for e in setting.instances]),
        },
    )
    if folder is not None:
        write_evaluation(folder, found, files if "instance" in results else {})
    return found
