"""Runs of Ditto, FedALT, FDLoRA and FedLEASE: resuming, answers in all modes, weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.cli.program import main

pytestmark = pytest.mark.usefixtures("shared_steps")

OPTIONS: dict[str, dict[str, Any]] = {
    "ditto": {"strength": 0.5},
    "fedalt": {},
    "fdlora": {"sync_every": 2, "fusion_examples": 2},
    "fedlease": {"clusters": 2},
}
# The mode that a method is judged by, besides those of every method with two adapters.
OWN_MODES = {"ditto": (), "fedalt": ("gate",), "fdlora": ("fused",), "fedlease": ("experts",)}


@pytest.fixture(scope="module")
def base() -> fd.Base:
    return fd.load_base("tiny", dtype="float32")


@pytest.fixture(scope="module")
def data() -> fd.Federation:
    def example(name: str, number: int) -> fd.Example:
        return fd.Example(f"{name} {number}", f"yes {number}", task=name)

    names = ("anna", "ben", "carl", "dora")
    clients = [
        fd.Client(
            name, tuple(example(name, n) for n in range(2 + at % 3)), (example(name, 8),) * (at % 2)
        )
        for at, name in enumerate(names)
    ]
    return fd.Federation(tuple(clients), tuple(example(name, 9) for name in names))


def config(name: str, init: dict[str, str] | None = None, **fed: Any) -> fd.Config:
    return fd.Config(
        init=init or {},
        lora={"rank": 2, "dropout": 0.1},
        data={"max_length": 64},
        fed={
            "method": name,
            "options": OPTIONS[name],
            "rounds": 3,
            "local_epochs": 1,
            "batch_size": 2,
            "micro_batch_size": None,
            "learning_rate": 1e-2,
            "clients_in_memory": 1,
            **fed,
        },
        eval={"metrics": ["nll"]},
        weighting={"support": 2},
    )


def bits(state: fd.FedState) -> list[tuple[str, bytes]]:
    """The type and the bits of all arrays of a state."""
    leaves = jax.tree.leaves((state.server, state.clients.all()))
    return [(str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in leaves]


SOME = {"clients_per_step": 2, "participation": 0.75}


@pytest.mark.parametrize(
    ("name", "some"), [*((name, SOME) for name in OPTIONS), ("fdlora", {}), ("fedlease", {})]
)
def test_a_stopped_run_goes_on_to_the_same_bits(base, data, tmp_path, name, some):
    made = config(name, **some)
    whole = fd.Experiment(base, data, made, run_dir=tmp_path / "whole")
    whole.train()
    stopped = fd.Experiment(base, data, made, run_dir=tmp_path / "stopped")
    for done in stopped.rounds():
        if done.number == 1:
            break
    again = fd.Experiment(base, data, made, run_dir=tmp_path / "stopped")
    assert [done.number for done in again.rounds()] == list(range(2, again.total_rounds))
    assert bits(again.state) == bits(whole.state)
    in_memory = fd.Experiment(base, data, made)
    assert bits(in_memory.train()) == bits(whole.state)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_mode_answers_and_every_instance_is_weighed(base, data, name):
    run = fd.Experiment(base, data, config(name))
    run.train()
    scores = run.evaluate()
    assert set(scores.modes) == {"base", "global", "local", "fixed", "instance", *OWN_MODES[name]}
    values = {mode: float(scores["nll"][mode].p.value) for mode in scores.modes}
    assert len({round(value, 9) for value in values.values()}) == len(values)
    assert run._trained().uploads == (name != "ditto")
    weight = run.weigh("anna", "anna 1")
    assert 0.0 < weight.local_weight < 1.0
    if name == "fedlease":  # The one whose answers differ the most from a mix of two adapters.
        _check_experts(run)
    answered = run.generate("ben", "ben 2")
    assert answered.mode == {"ditto": "local"}.get(name, (*OWN_MODES[name], "")[0])


def of_experts(entropy_BE):
    """How far the clusters' experts are from each other."""
    return jnp.abs(entropy_BE[:, 0] - entropy_BE[:, 1])


def _check_experts(run: fd.Experiment) -> None:
    """Weighting rules see every cluster's expert, of which one is what a client calls global."""
    adapters = run.adapters
    assert adapters.global_C is not None and len(adapters.shared) == 2
    own_C, *experts = (np.asarray(e["q_proj"]["b"]) for e in (adapters.global_C, *adapters.shared))
    assert [sum(np.array_equal(own, e[0]) for e in experts) for own in own_C] == [1] * 4
    found = run.laboratory(rules=["cosine", of_experts], scales=[0.5, 1.0], exact=0)
    (settings,) = (settings for _, settings in found.best if settings.rule == "of_experts")
    ours = {f.candidate.label: f.candidate for f in found.findings}["best of_experts"]
    expected = run.evaluate(weighting=settings, modes=["instance"]).instances
    np.testing.assert_allclose(
        ours.weight_CJ[:, -4:].reshape(-1), [line["local_weight"] for line in expected], atol=1e-4
    )
    line = expected[5]
    weight = run.weigh("ben", "ben 9", weighting=settings)
    assert line["client"] == "ben" and line["index"] == 1
    assert weight.local_weight == pytest.approx(line["local_weight"], abs=1e-4)


def test_the_named_adapter_is_where_copies_of_the_global_one_start(base, data, tmp_path):
    """Ditto's own adapters start as w, also where w comes from a folder."""
    first = fd.Experiment(base, data, config("ditto"))
    first.train()
    first.export(tmp_path / "export")
    named = config("ditto", init={"global_adapter": str(tmp_path / "export" / "global")})
    state = fd.Experiment(base, data, named).state
    own = state.clients.take([2])["local"]["q_proj"]["b"][0]
    np.testing.assert_array_equal(own, state.server["global"]["q_proj"]["b"])
    assert np.any(own)


def test_bytes_of_what_each_client_receives(base, data):
    """FedALT: the rest of the world, no gate; FedLEASE: at most 2 experts and the cluster's router.

    By target of width 32 to 32 and to 16, of 2 layers, in float32.
    """
    adapter = 4 * 2 * 2 * ((32 + 32) + (32 + 16))
    router = 4 * 2 * 2 * (32 * 3)
    moved = {
        name: [done.client_bytes for done in fd.Experiment(base, data, config(name)).rounds()]
        for name in ("fedalt", "fedlease")
    }
    assert moved["fedalt"] == 3 * [(adapter, adapter)]
    later = (2 * adapter + router, adapter + router)
    assert moved["fedlease"] == [(later[0], later[1] + adapter), later, later]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fed.method", "fdlora", "--fed.server_optimizer", "adam"], "fdlora has no mean"),
        (["--fed.method", "fedlease", "--fed.options", "{clusters: 9}"], "clusters is 9 for 8"),
        (["--fed.method", "ditto", "--fed.options", "{clusters: 2}"], "'clusters' is unknown"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, said):
    small = ["--model.path", "tiny", "--data.max_train", "1", "--data.max_length", "256"]
    assert main(["train", "--run-dir", str(tmp_path / "run"), *small, *options]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_clients_that_are_all_alike_are_told_of_in_one_line(base, data, monkeypatch):
    """So many clusters cannot be made of them: one would be empty."""
    monkeypatch.setattr("feddpa_jax.federated.fedlease.distances", lambda warm_C: np.zeros((4, 4)))
    with pytest.raises(fd.UserError, match="one would be empty; ask for fewer"):
        fd.Experiment(base, data, config("fedlease")).train()
