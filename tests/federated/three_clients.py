"""Experiments of three unequal clients that take seconds, and what their participants sent."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import feddpa_jax as fd
from feddpa_jax.federated.method import METHODS, FedState, Lora, Method
from feddpa_jax.federated.server import Uploads
from feddpa_jax.run.beginning import make_federation
from feddpa_jax.run.inputs import make_method, training_data
from feddpa_jax.run.loop import play_round

NAMES, COUNTS, TARGETS, ALPHA = ("anna", "bert", "carl"), (3, 7, 5), ("q_proj", "v_proj"), 8.0


def federation() -> fd.Federation:
    """Three clients of three, seven and five examples, one held out, and two test instances."""
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefgh "))

    def example(task: str) -> fd.Example:
        words = ["x" + "".join(draw.choice(letters, int(draw.integers(2, 9)))) for _ in range(2)]
        return fd.Example(*words, task=task)

    clients = tuple(
        fd.Client(
            name,
            train=tuple(example(name) for _ in range(count)),
            validation=(example(name),),
        )
        for name, count in zip(NAMES, COUNTS, strict=True)
    )
    return fd.Federation(clients=clients, test=(example("anna"), example("bert")))


def experiment(method: str, *, lora: Mapping[str, Any] | None = None, **fed: Any) -> fd.Experiment:
    """Three rounds of two clients each; carl, bert and carl rest, by the default seed."""
    common = {"method": method, "rounds": 3, "participation": 0.7, "local_epochs": 1}
    common |= {"batch_size": 2, "learning_rate": 1e-2, "aggregation": "examples"}
    run_dir, init = fed.pop("run_dir", None), fed.pop("init", {})
    config = fd.Config(
        fed=common | fed,
        lora={"rank": 4, "alpha": ALPHA, "targets": TARGETS, **(lora or {})},
        data={"max_length": 64},
        init=init,
        eval={"metrics": ("nll",)},
        weighting={"support": 2},
    )
    return fd.Experiment(
        fd.load_base("tiny", dtype="float32"), federation(), config, run_dir=run_dir
    )


@contextlib.contextmanager
def spied(method: str) -> Iterator[tuple[str, list[Uploads]]]:
    """A method that does what another does, its name, and all that its participants send."""
    entry, name, seen = METHODS.find(method), f"spied_{method}", list[Uploads]()

    @functools.wraps(entry.build)  # With its options.
    def build(lora: Lora, **options: Any) -> Method:
        made = entry.build(lora, **options)

        def step(before: Callable[..., Any] | None) -> Callable[..., Any]:
            def watched(sent: Uploads, server: Mapping[str, Any], moment: Any) -> Any:
                seen.append(sent)
                return {} if before is None else before(sent, server, moment)

            return watched

        phases = [
            dataclasses.replace(phase, reduce="stack", server=step(phase.server))
            for phase in made.phases
        ]
        return dataclasses.replace(made, phases=tuple(phases))

    METHODS.register(name, entry._replace(build=build))
    try:
        yield name, seen
    finally:
        METHODS.remove(name)


def mean_product(sent: Uploads, target: str, factor_K: np.ndarray | None = None) -> np.ndarray:
    """The shares' mean of the products A B, each times its factor: [L, D, E] in float64."""
    pair = sent.parts_K["global"][target]
    weight_K = np.asarray(sent.share_K, np.float64)
    weight_K = weight_K / weight_K.sum() * (1.0 if factor_K is None else factor_K)
    return np.einsum("K,KLDR,KLRE->LDE", weight_K, *(pair[leaf].astype(float) for leaf in "ab"))


def product(pair: Mapping[str, Any]) -> np.ndarray:
    """A B in float64."""
    return np.asarray(pair["a"], float) @ np.asarray(pair["b"], float)


def round_from(run: fd.Experiment, state: FedState, number: int) -> FedState:
    """One round of an experiment from any state."""
    config, data = run.config, training_data(run.config, run.prepared)
    method, clients = make_method(config, run.prepared), make_federation(config, run.prepared, None)
    shapes = data.shapes(config.fed.rounds)
    return play_round(method, clients, state, data, shapes, config, number)[0]


def go_on_from(run: fd.Experiment, state: FedState) -> None:
    """Puts another state in the place of a running experiment's."""
    assert run.state is not None and run._start is not None
    run._start = run._start._replace(state=state)


def bits(tree: Any) -> dict[str, bytes]:
    """The bits of all arrays of a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
