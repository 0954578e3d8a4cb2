"""The work of a run, planned and done."""

import dataclasses
import functools

import numpy as np
import pytest

from feddpa_jax.comparison.contender import contenders
from feddpa_jax.comparison.work import nearest, with_tokens, work_of
from feddpa_jax.config import Config
from feddpa_jax.experiment import Experiment
from feddpa_jax.hf.load import load_base
from feddpa_jax.run.inputs import training_data
from feddpa_jax.types import Client, Example, Federation

pytestmark = pytest.mark.usefixtures("shared_steps")

GREET = tuple(Example(f"Greet {name}.", f"Hi {name}!", task="greet") for name in "ABC")
SUM = tuple(Example(f"1 + {n}?", str(n + 1), task="sum") for n in range(6))
DATA = Federation((Client("anna", GREET[:2]), Client("ben", SUM[:5])), (GREET[2], SUM[5]))
CONFIG = Config(
    fed={"rounds": 3, "local_epochs": 2, "batch_size": 2, "participation": 0.5},
    lora={"rank": 2},
)


@pytest.fixture(scope="module")
def first() -> Experiment:
    return Experiment(load_base("tiny"), DATA, CONFIG)


@pytest.mark.parametrize(
    "method", ["fedit", "feddpa_t", "feddpa_f", "local", "centralized", "fdlora", "fedalt"]
)
def test_what_is_planned_is_done(first: Experiment, method: str) -> None:
    (contender,) = contenders(method)
    # FDLoRA begins with everybody, and ends with a search.
    run = first.sibling(contender.config(CONFIG, 0))
    work = work_of(run.config, run.prepared)
    lines = [done.line for done in run.rounds()]
    assert work.tokens == sum(line["real_tokens"] for line in lines)
    assert work.updates == sum(line["updates"] for line in lines)
    assert work.rounds == 3


def test_updates_by_hand(first: Experiment) -> None:
    """Anna makes 2 epochs of 1 batch, Ben 2 of 3: one of them takes part in each round."""
    config = dataclasses.replace(CONFIG, fed=dataclasses.replace(CONFIG.fed, method="feddpa_f"))
    work = work_of(config, first.prepared)
    data = training_data(config, first.prepared)
    members = [place for number in range(3) for place in data.participants(number).tolist()]
    assert len(members) == 3
    assert work.updates == sum((2, 6)[place] for place in members) + 2 + 6


def test_rounds_for_as_many_tokens(first: Experiment) -> None:
    everybody = dataclasses.replace(CONFIG.fed, participation=1.0, rounds=6, method="fedit")
    config = dataclasses.replace(CONFIG, fed=everybody)
    target = work_of(config, first.prepared).tokens
    (one,) = contenders("feddpa_t")
    found = with_tokens(one.config(config, 0), first.prepared, target)
    # A round is 1, and from the second on 2 phases: 1 + 2 (r - 1) is 5 or 7 for 6.
    assert found.fed.rounds == 4
    assert work_of(found, first.prepared).tokens * 6 == target * 7
    (same,) = contenders("local")
    assert with_tokens(same.config(config, 0), first.prepared, target).fed.rounds == 6


def test_nearest_is_the_nearest_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        amounts = np.cumsum(rng.integers(0, 9, 40)) + 1
        target = int(rng.integers(0, amounts[-1]))
        found = nearest(functools.partial(_amount, amounts), target)
        assert abs(amounts[found - 1] - target) == np.abs(amounts - target).min()


def _amount(amounts: np.ndarray, count: int) -> int:
    return int(amounts[min(count, len(amounts)) - 1])
