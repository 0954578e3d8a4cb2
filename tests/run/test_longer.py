"""A run that has begun, or ended, goes on for more rounds, with the bits of a long one."""

import dataclasses
from pathlib import Path

import pytest

import feddpa_jax as fd
from feddpa_jax.run.longer import without_more_rounds
from feddpa_jax.run.opening import reread
from feddpa_jax.types import UserError
from tests.run.test_populations import files_of

pytestmark = pytest.mark.usefixtures("shared_steps")


def configured(rounds: int, **fed) -> fd.Config:
    return fd.Config(
        model={"path": "tiny"},
        data={"max_train": 3, "max_test": 1},
        lora={"rank": 2},
        fed={"rounds": rounds, "local_epochs": 1, "batch_size": 2, "participation": 0.5, **fed},
    )


@pytest.mark.parametrize("method", ["feddpa_t", "rolora"])
def test_the_bits_are_those_of_a_long_run(tmp_path: Path, method: str):
    """Of one that ended, and of one that was stopped; the configuration is the long one's."""
    long, ended, stopped = (tmp_path / name for name in ("long", "ended", "stopped"))
    more = {"method": method, "keep_checkpoints": 4}
    if method == "rolora":
        more["server_optimizer"] = "adam"
    fd.Experiment.from_config(configured(4, **more), run_dir=long).train()
    fd.Experiment.from_config(configured(2, **more), run_dir=ended).train()
    rounds = fd.Experiment.from_config(configured(3, **more), run_dir=stopped).rounds()
    next(iter(rounds))
    rounds.close()
    for run, first in ((ended, 2), (stopped, 1)):
        again = fd.Experiment.from_config(configured(4, **more), run_dir=run)
        assert [done.number for done in again.rounds()] == list(range(first, 4))
        assert files_of(run) == files_of(long) and len(files_of(run)) > 9
        assert (run / "config.yaml").read_bytes() == (long / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"another configuration \(fed\.rounds: 4 -> 3\)"):
        fd.Experiment.from_config(configured(3, **more), run_dir=ended)
    # What only reads a run takes no other number.
    with pytest.raises(UserError, match=r"fed\.rounds: 4 -> 5"):
        reread(ended, ["--fed.rounds", "5"])


@pytest.mark.parametrize(
    ("fed", "saved", "why"),
    [
        ({"rate_over_rounds": "cosine"}, [0], "its learning rate falls over 2"),
        ({"method": "fedex_lora"}, [0], "the sizes of fedex_lora follow from their number"),
        ({"method": "feddpa_f"}, [1, 2], "its clients have trained for themselves after the last"),
    ],
)
def test_rounds_that_would_have_been_others(fed: dict, saved: list[int], why: str):
    old, new, run = configured(2, **fed), configured(3, **fed), Path("run")
    with pytest.raises(UserError, match=f"the run in run cannot have 3 rounds: {why}"):
        without_more_rounds(old, new, saved, run)
    assert without_more_rounds(old, old, saved, run) == old
    assert without_more_rounds(new, old, saved, run) == old
    # Before the clients train for themselves, rounds may follow.
    before = configured(2, method="feddpa_f")
    longer = dataclasses.replace(before, fed=dataclasses.replace(before.fed, rounds=3))
    assert without_more_rounds(before, longer, [0, 1], run) == before
