"""What the commands do, once their arguments are read."""

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import numpy as np
from rich.table import Table

from feddpa_jax.bench.command import Options, read_counts
from feddpa_jax.bench.command import bench as run_bench
from feddpa_jax.config import Config, describe_fields, dotted, load_config
from feddpa_jax.data.sample import write_sample
from feddpa_jax.data.statistics import describe, render
from feddpa_jax.data.templates import get_template
from feddpa_jax.data.tokenize import encode_prompt, other_prompt_note
from feddpa_jax.devices.processes import from_first, is_first, several, together
from feddpa_jax.evaluate.modes import available_modes, fixed_weights
from feddpa_jax.export.contents import Trained
from feddpa_jax.export.export_folder import check as check_export
from feddpa_jax.export.export_folder import check_target
from feddpa_jax.export.export_folder import export as write_export
from feddpa_jax.files.disk import writing
from feddpa_jax.files.lock import hold
from feddpa_jax.hf.load import load_model
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.scorer import Adapters
from feddpa_jax.laboratory.options import read_options
from feddpa_jax.laboratory.search import weigh as run_weigh
from feddpa_jax.methods.table import METHODS
from feddpa_jax.plan.ahead import Options as PlanOptions
from feddpa_jax.plan.ahead import plan as run_plan
from feddpa_jax.progress import Reporter
from feddpa_jax.run.checkpoint import rounds_saved
from feddpa_jax.run.evaluating import check_rule, evaluate_config, weighs_instances
from feddpa_jax.run.folder import EVALUATION, LABORATORY, RunFolder
from feddpa_jax.run.inputs import Prepared, encode, load_data, prepare, prepare_together
from feddpa_jax.run.loop import check_beginning, total_rounds
from feddpa_jax.run.loop import train as train_run
from feddpa_jax.run.opening import at_hand, check_folder, checked, reread, restored, start_alone
from feddpa_jax.run.prompt_weight import weigh_prompt
from feddpa_jax.run.starting_adapters import global_adapter, local_adapters
from feddpa_jax.run.trackers import check_installed, of_evaluation, of_round, tracking
from feddpa_jax.types import Example, UserError


def train(
    config_file: Path | None,
    overrides: Sequence[str],
    run_dir: Path,
    evaluates: bool,
    reporter: Reporter,
) -> None:
    """Trains, and evaluates at the end."""
    config = checked(load_config(config_file, overrides))
    check_installed(config.track.to)
    # A rule that does not work at the end is told before the training.
    possible = [METHODS[config.fed.method].answers_with] if evaluates and not several() else []
    if weighs_instances(config, possible):
        check_rule(config, reporter)
    run = RunFolder(run_dir)
    from_first(lambda: check_folder(config, run))
    prepared = prepare_together(config)
    together(lambda: check_beginning(config, prepared, run))
    with contextlib.ExitStack() as held:
        from_first(lambda: start_alone(config, run, held, reporter))
        _train(config, prepared, run, evaluates, reporter)
    reporter.say(f"run folder: {run.path}")


def _train(
    config: Config, prepared: Prepared, run: RunFolder, evaluates: bool, reporter: Reporter
) -> None:
    """Trains, and evaluates at the end, in a folder that this process holds."""
    counts = prepared.counts
    cut, dropped = sum(c.truncated for c in counts), sum(c.dropped for c in counts)
    held = sum(len(client.validation) for client in prepared.federation.clients)
    reporter.say(
        f"{sum(c.examples for c in counts)} training examples of {len(counts)} clients "
        f"({cut} cut, {dropped} dropped at {config.data.max_length} tokens"
        f"{f', {held} held out' if held else ''}); "
        f"{config.model.path} in {config.model.dtype}"
    )
    last = total_rounds(config) - 1
    if note := other_prompt_note(counts):
        reporter.say(f"training examples: {note}")
    # The first process alone follows the run.
    names = config.track.to if is_first() else ()
    with tracking(
        names,
        run.path,
        project=config.track.project,
        config=dotted(config),
        reporter=reporter,
    ) as log:
        state = train_run(
            config, prepared, run, reporter, lambda line: log(line["round"], of_round(line))
        )
        if evaluates and several():
            reporter.say(
                f"now evaluate with one process: feddpa eval --run-dir {quote(str(run.path))}"
            )
        elif evaluates and prepared.federation.test:
            _evaluate(config, prepared, at_hand(config, state), last, run, reporter)
            log(last, of_evaluation(run.read_summary() or {"modes": {}}))
        elif evaluates:
            reporter.say("no test instances, so nothing to evaluate")


def evaluate(
    config_file: Path | None,
    run_dir: Path,
    overrides: Sequence[str],
    step: str,
    reporter: Reporter,
) -> None:
    """Evaluates a run's checkpoint; or with a configuration, the adapters that `init` names."""
    if config_file is not None:
        _evaluate_named(config_file, run_dir, overrides, reporter)
        return
    run, config = reread(run_dir, overrides, reporter)
    prepared = prepare(config)
    adapters, number = restored(config, prepared, run, step, reporter)
    _evaluate(config, prepared, adapters, number, run, reporter)


def _evaluate_named(
    config_file: Path, run_dir: Path, overrides: Sequence[str], reporter: Reporter
) -> None:
    """Evaluates PEFT folders as they are, whoever trained them."""
    config = checked(load_config(config_file, overrides))
    if config.init.global_adapter is None and config.init.local_adapter is None:
        raise UserError(
            "--config: evaluates the adapters of init.global_adapter and init.local_adapter, and "
            "neither is set; set one, or leave --config out to evaluate the run in --run-dir"
        )
    run = RunFolder(run_dir)
    check_folder(config, run)
    if rounds_saved(run.checkpoints):
        raise UserError(f"--run-dir: {run.path} has checkpoints of its own; name a new folder")
    prepared = prepare(config)
    scale = config.lora.alpha / config.lora.rank
    global_, local_C = global_adapter(config, prepared), local_adapters(config, prepared)
    with contextlib.ExitStack() as held:
        start_alone(config, run, held, reporter)
        _evaluate(config, prepared, Adapters(global_, local_C, scale), None, run, reporter)


def _evaluate(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    round_number: int | None,
    run: RunFolder,
    reporter: Reporter,
) -> None:
    answers_with = METHODS[config.fed.method].answers_with
    possible = available_modes(adapters)
    with hold(run.path / EVALUATION, "wait for it, then use feddpa eval", reporter.say):
        evaluate_config(
            config,
            prepared,
            adapters,
            answers_with=answers_with if answers_with in possible else possible[-1],
            round_number=round_number,
            folder=run.evaluation,
            reporter=reporter,
        )
    reporter.say(f"every answer and weight: {run.evaluation / 'instances.jsonl'}")


def generate(
    run_dir: Path,
    overrides: Sequence[str],
    *,
    client: str,
    instruction: str,
    context: str,
    mode: str | None,
    step: str,
    reporter: Reporter,
) -> None:
    """Answers one prompt for one client and prints the weight that was used."""
    if not instruction.strip():
        raise UserError("--prompt: is empty")
    run, config = reread(run_dir, overrides, reporter)
    prepared = prepare(config)
    if client not in prepared.names:
        raise UserError(f"--client: no {client!r} in this run; it has {', '.join(prepared.names)}")
    adapters, _ = restored(config, prepared, run, step, reporter)
    mode = mode or METHODS[config.fed.method].answers_with
    if mode not in available_modes(adapters):
        raise UserError(
            f"--mode: {config.fed.method} has no {mode!r}; it has "
            f"{', '.join(available_modes(adapters))}"
        )
    tokens_T = encode_prompt(
        Example(instruction, "", context),
        prepared.base.tokenizer,
        get_template(config.data.template),
        config.data.max_length,
    )
    place = prepared.names.index(client)
    similarity = None
    if mode == "instance":
        check_rule(config, reporter)
        g, l, similarity = weigh_prompt(config, prepared, adapters, place, tokens_T)
    else:
        weights = fixed_weights(mode, 1, 1, fixed=config.weighting.fixed)
        g, l = float(weights.global_CI[0, 0]), float(weights.local_CI[0, 0])
    tokenizer = prepared.base.tokenizer
    answerer = Answerer(
        prepared.base.model,
        adapters,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        beams=config.eval.beams if config.eval.decoding == "beam" else 1,
        max_new_tokens=config.eval.max_new_tokens,
    )
    (answer_T,) = answerer([Prompt(place, tokens_T, g, l)])
    seen = "" if similarity is None else f", similarity {similarity:.4f}"
    mean = " (means over layers)" if np.ndim(l) else ""
    weights = f"global weight {np.mean(g):.4f}, local weight {np.mean(l):.4f}{mean}"
    reporter.say(f"{client}, {mode}: {weights}{seen}")
    reporter.answer(tokenizer.decode_continuation(answer_T))


def export(
    run_dir: Path,
    overrides: Sequence[str],
    *,
    out: Path,
    mixed: float | None,
    merged: str | None,
    step: str,
    checks: bool,
    reporter: Reporter,
) -> None:
    """Writes a run's adapters as PEFT folders; or compares such an export with the run."""
    run, config = reread(run_dir, overrides, reporter)
    if not checks:
        check_target(out)
    prepared = prepare(config)
    adapters, number = restored(config, prepared, run, step, reporter)
    summary = run.read_summary()
    if summary is not None and summary.get("round") != number:
        summary = None
    trained = Trained(config, prepared, adapters, number, summary)
    if checks:
        check_export(trained, out)
        reporter.say(f"{out}: every tensor equals the run's")
    else:
        write_export(trained, out, mixed=mixed, merged=merged, reporter=reporter)


def weigh(
    run_dir: Path, overrides: Sequence[str], known: argparse.Namespace, reporter: Reporter
) -> None:
    """Tries weighting rules on a run's checkpoint."""
    options = read_options(known)
    run, config = reread(run_dir, overrides, reporter)
    prepared = prepare(config)
    adapters, number = restored(config, prepared, run, known.step, reporter)
    folder = run.path / LABORATORY
    with hold(folder, "wait for it", reporter.say):
        run_weigh(
            config,
            prepared,
            adapters,
            options,
            round_number=number,
            folder=folder,
            reporter=reporter,
        )


def data(
    config_file: Path | None, overrides: Sequence[str], make: Path | None, reporter: Reporter
) -> None:
    """Writes the sample, or checks the configured data and prints their statistics."""
    config = checked(load_config(config_file, overrides))
    if make is not None:
        with writing(make):
            write_sample(make, config.seed)
        reporter.say(f"sample data written to {make}; use --data.path {quote(str(make))}")
        return
    federation = load_data(config)
    base = load_model(config.model.path, config.model.dtype)
    statistics = describe(federation, lambda own: encode(config, base.tokenizer, own))
    reporter.show(render(statistics))


def bench(
    config_file: Path | None,
    overrides: Sequence[str],
    known: argparse.Namespace,
    reporter: Reporter,
) -> None:
    """Measures ours against torch + peft."""
    options = Options(
        out=known.out,
        updates=known.updates,
        clients=read_counts(known.clients),
        instances=known.instances,
        repeat=known.repeat,
        torch=not known.no_torch,
    )
    run_bench(checked(load_config(config_file, overrides)), options, reporter)


def plan(
    config_file: Path | None,
    overrides: Sequence[str],
    known: argparse.Namespace,
    reporter: Reporter,
) -> None:
    """Compiles the round ahead of time."""
    options = PlanOptions(known.topology, known.clients, known.out)
    config = load_config(config_file, overrides)
    if options.topology is not None and config.model.dtype == "auto":
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, dtype="bfloat16")
        )
    run_plan(checked(config), options, reporter)


def fields(reporter: Reporter) -> None:
    """Prints every field of the configuration."""
    table = Table(box=None, pad_edge=False)
    for column in ("field", "type", "default", "what it is"):
        table.add_column(column, overflow="fold")
    for row in describe_fields():
        table.add_row(*row)
    reporter.show(table)
