"""The loss on held-out examples after a round, against an evaluation of the same examples."""

import json
from pathlib import Path

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.run.checkpoint import at_step
from feddpa_jax.run.validation import JUDGES, judges
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample, UserError

pytestmark = pytest.mark.usefixtures("shared_steps")

FED = {"rounds": 2, "local_epochs": 1, "batch_size": 2, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def base() -> fd.Base:
    return fd.load_base("tiny", "float32")


def federation(held_out: bool = True) -> fd.Federation:
    """Three clients with one held-out example each; these are the test as well."""
    source = fd.load_federation("sample", max_train=4, max_test=1)
    chosen = [source.clients[c].train for c in (0, 3, 5)]
    clients = [
        fd.Client(f"client_{c}", own[: 2 + (c > 0)], own[3:] if held_out else ())
        for c, own in enumerate(chosen)
    ]
    return fd.Federation(tuple(clients), tuple(own[3] for own in chosen))


@pytest.mark.parametrize(
    ("method", "mode"),
    [("feddpa_t", "fixed"), ("fedit", "global"), ("fedalt", None), ("local", "local")],
)
def test_the_loss_is_that_of_the_answers(base: fd.Base, method: str, mode: str | None):
    """P in NLL of the same examples, in the mode that the method answers with."""
    config = fd.Config(
        fed={**FED, "method": method},
        weighting={"fixed": 0.25},
        eval={"metrics": ["nll"]},
        lora={"rank": 2},
    )
    run = fd.Experiment(base, federation(), config)
    last = list(run.rounds())[-1]
    scores = run.evaluate(modes=mode or run.answers_with)["nll"]
    assert last.validation_loss == pytest.approx(scores[mode or run.answers_with].p.value, abs=1e-4)
    # The training's own loss is something else.
    assert last.validation_loss is not None and last.loss is not None
    assert abs(last.validation_loss - last.loss) > 1e-3


def test_without_held_out_examples_no_checkpoint_is_the_best(base: fd.Base, tmp_path: Path):
    config = fd.Config(fed={**FED, "method": "fedit"}, lora={"rank": 2})
    run = fd.Experiment(base, federation(held_out=False), config, run_dir=tmp_path / "run")
    done = list(run.rounds())
    assert [round_.validation_loss for round_ in done] == [None, None]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all("validation_loss" not in json.loads(line) for line in lines)
    with pytest.raises(UserError, match=r"step: no checkpoint in .* is the best: nothing was held"):
        at_step(tmp_path / "run" / "checkpoints", "best", {})


def test_judges_are_drawn_by_name():
    """At most so many, of those that held something out, whatever the clients' order."""
    names = [f"client_{c}" for c in range(3 * JUDGES)]

    def drawn(order: np.ndarray, seed: int) -> list[str]:
        ordered = tuple(names[c] for c in order)
        example = TokenizedExample(np.ones(3, np.int32), 1)
        data = TrainingData(
            names=ordered,
            examples=((example,),) * len(ordered),
            seed=seed,
            epochs=1,
            batch_size=1,
            micro_batch_size=1,
            held_out=lambda client: () if ordered[client].endswith("7") else (example,),
        )
        return sorted(ordered[c] for c in judges(data, seed))

    order = np.arange(len(names))
    found = drawn(order, 0)
    assert len(found) == JUDGES and not any(name.endswith("7") for name in found)
    assert drawn(order[::-1], 0) == found != drawn(order, 1)
