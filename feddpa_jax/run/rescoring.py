"""An evaluation's tables made again from its saved answers, without the model."""

import logging
from collections.abc import Sequence
from pathlib import Path

from feddpa_jax.config import Config
from feddpa_jax.data.folders import load_federation
from feddpa_jax.evaluate.results import (
    Evaluation,
    make_evaluation,
    settings_in,
    write_evaluation,
)
from feddpa_jax.evaluate.saved_answers import read_answers, saved_metrics
from feddpa_jax.files.bucket import folder_at
from feddpa_jax.files.lock import hold
from feddpa_jax.files.manifest import Checked
from feddpa_jax.files.result_files import read_rules
from feddpa_jax.run.evaluating import check_metrics
from feddpa_jax.run.folder import EVALUATION, RunFolder, results_of
from feddpa_jax.run.history import parse_lines
from feddpa_jax.run.opening import reread
from feddpa_jax.types import UserError

_log = logging.getLogger(__name__)


def rescore(run_dir: Path | str, overrides: Sequence[str] = ()) -> Evaluation:
    """Makes a run's `eval/` again from the answers that it holds (instances.jsonl).

    An older version's evaluation gets today's intervals and comparisons, and a metric that compares
    texts can be added where texts were generated. No model is loaded, and no answer changes.

    Args:
      run_dir: the run's folder, or gs://bucket/folder; it needs no checkpoint.
      overrides: such as ["--eval.metrics", "[rouge1, nll]"]; without, the metrics are those that
        the answers have.

    Raises:
      UserError: there is no evaluation, it is damaged, the data differ from those of the
        answers, or a metric needs the model.

    Example:
      ```
      found = fd.rescore("runs/dataset1/feddpa_t")
      print(found["exact_match"]["instance"].p.text(1), found.most_common["exact_match"].p.value)
      ```
    """
    run, config = reread(folder_at(run_dir), overrides)
    check_metrics(config)
    files = results_of(run.path, EVALUATION)
    with hold(run.path / EVALUATION, "wait for it, then use feddpa eval", _log.warning):
        found = _again(run, config, files)
        write_evaluation(run.evaluation, found, read_rules(run.evaluation))
    return found


def _again(run: RunFolder, config: Config, files: Checked) -> Evaluation:
    summary, content = run.read_summary(), files.read("instances.jsonl")
    place = run.evaluation / "instances.jsonl"
    if summary is None or content is None:
        raise UserError(f"run_dir: {run.path} has no evaluation; make one with feddpa eval")
    lines = parse_lines(place, content, files.remedy, cut=False)
    data = config.data
    federation = load_federation(
        data.path,
        seed=config.seed,
        max_train=data.max_train,
        validation=data.validation,
        cache=data.cache,
        columns=data.columns,
        test_path=data.test_path,
    )
    try:
        answered = {line["client"] for line in lines}
        clients = {
            name: federation.clients[place]
            for place, name in enumerate(federation.names)
            if name in answered
        }
        same = config.eval.metrics == run.read_config().eval.metrics
        metrics = saved_metrics(lines[0]) if same else config.eval.metrics
        results, questions = read_answers(lines, clients, federation.test, metrics)
        settings = settings_in(summary)
        settings["decoding"] = {**settings["decoding"], "metrics": list(metrics)}
    except UserError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{place}: is damaged ({error}); {files.remedy}") from None
    return make_evaluation(results, questions, settings=settings)
