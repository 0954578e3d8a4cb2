"""The laboratory's cost stays bounded as clients grow: what is drawn, and what is in memory."""

import dataclasses
import mmap
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.population import Population
from feddpa_jax.data.population_writer import write_population
from feddpa_jax.evaluate.estimating import MIN_PER_TASK
from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.laboratory import collect as collecting
from feddpa_jax.laboratory import grid as scoring
from feddpa_jax.laboratory.cells import LEAST, draw, part_of
from feddpa_jax.laboratory.choosing import AGREED
from feddpa_jax.laboratory.collect import collect
from feddpa_jax.laboratory.evidence_cache import MemoryParts
from feddpa_jax.laboratory.grid import Grid, make_curves, score_rule
from feddpa_jax.laboratory.options import Options
from feddpa_jax.laboratory.parts import parts_of
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import Client, Example, Federation, SomeClients
from feddpa_jax.weighting.rule import RULES


def example(task: str, number: int) -> Example:
    return Example(f"{task} {number}", "yes", task=task)


def federation(clients: int, tasks: int, held: int = 16, test: int = 100) -> Federation:
    """Each client has one of the tasks; some share one."""
    return Federation(
        tuple(
            Client(
                f"c{c}",
                (example(f"t{c % tasks}", 0),),
                tuple(example(f"t{c % tasks}", 1 + n) for n in range(held)),
            )
            for c in range(clients)
        ),
        tuple(example(f"t{k}", 100 + n) for k in range(tasks) for n in range(test)),
    )


def prepared_of(data: Federation) -> Prepared:
    """Without a base: nothing of it is looked at."""
    names = tuple(client.name for client in data.clients)
    return Prepared(*cast(Any, (None, data, names, names, None)))


def banks(clients: int) -> Adapters:
    rows = {"q_proj": {"a": jnp.arange(clients)[:, None] * jnp.ones((1, 3))}}
    shared = {"q_proj": {"a": jnp.ones((1, 3))}}
    return Adapters(shared, rows, 2.0, {"mine": rows}, (shared, rows))


@pytest.mark.parametrize(("clients", "tasks"), [(20, 20), (200, 8), (200, 200), (1000, 1000)])
def test_cells_stay_below_the_limit(clients, tasks):
    data, most = federation(clients, tasks, test=10), Options().cells
    prompts_C = [50] * clients
    drawn = draw(data, prompts_C, most=most, seed=3)
    whole = clients * (AGREED + 16 * clients + 10 * tasks) + 2 * 50 * clients
    if drawn is None:
        assert whole <= most
        return
    assert whole > most
    smaller = part_of(prepared_of(data), drawn, drawn.clients, seed=3)
    adapters = banks(clients).of(np.array(drawn.clients))
    found = smaller.federation
    held = sum(len(client.validation) for client in found.clients)
    C = len(found.clients)
    cells = C * (AGREED + held + len(found.test)) + 2 * 50 * C
    # Not above the limit, and no further client or instance has room.
    assert 0.8 * most < cells <= most
    assert drawn.each >= LEAST > MIN_PER_TASK
    # All of a part belongs together: names, adapters, training, and the tests of their tasks.
    assert [f"c{c}" for c in drawn.clients] == list(smaller.names) == list(smaller.training)
    assert adapters.local_C is not None and adapters.global_C is not None
    for bank in (adapters.local_C, adapters.others["mine"], adapters.shared[1]):
        np.testing.assert_array_equal(bank["q_proj"]["a"][:, 0], drawn.clients)
    for bank in (adapters.global_C, adapters.shared[0]):
        assert bank["q_proj"]["a"].shape == (1, 3)
    assert adapters.scale == 2.0
    assert {e.task for e in found.test} == {t for client in found.clients for t in client.tasks}
    assert set(found.test) <= set(data.test) and len(set(found.test)) == len(found.test)


def test_the_seed_decides_what_is_drawn():
    data, prompts_C = federation(60, 60), [5] * 60
    drawn = [draw(data, prompts_C, most=8_000, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] is not None
    found = [
        part_of(prepared_of(data), drawn[0], drawn[0].clients, seed=seed).federation
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    words = drawn[0].words()
    assert f"{len(drawn[0].clients)} of 60 clients, at most {drawn[0].each} held-out" in words


def test_one_client_is_left():
    drawn = draw(federation(3, 3), [10_000] * 3, most=100, seed=0)
    assert drawn is not None
    assert (len(drawn.clients), drawn.each, len(drawn.tasks)) == (1, LEAST, 1)


def test_no_others_are_read_than_those_that_there_is_room_for(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    data = federation(300, 300)
    records = ((own.name, e) for own in data.clients for e in (*own.train, *own.validation))
    write_population(tmp_path / "people", records, data.test)
    opened = load_federation(str(tmp_path / "people"), validation=16)
    read = []
    whole = Population.__getitem__
    monkeypatch.setattr(
        Population, "__getitem__", lambda self, place: read.append(place) or whole(self, place)
    )
    some = SomeClients(opened.clients, np.arange(299, -1, -1))
    drawn = draw(dataclasses.replace(opened, clients=some), [5] * 300, most=20_000, seed=3)
    assert drawn is not None and 10 < len(drawn.clients) < 60
    # Those drawn, which are last of all by name, and a few for which there was no room.
    assert {299 - c for c in drawn.clients} <= set(read)
    assert len(set(read)) < 2 * len(drawn.clients)
    # In memory the same are drawn.
    by_name = {client.name: client for client in data.clients}
    loaded = Federation([by_name[name] for name in reversed(opened.names)], data.test)
    assert draw(loaded, [5] * 300, most=20_000, seed=3) == drawn


class Watched:
    """A scorer that remembers of which clients it was asked for embeddings at once."""

    def __init__(self, scorer: Scorer):
        self.model, self.adapters, self.scorer = scorer.model, scorer.adapters, scorer
        self.at_once: list[int] = []

    def __call__(self, requests, on_done, *, layers, tokens=False):
        if layers:
            self.at_once.append(len({request.client for request in requests}))
        return self.scorer(requests, on_done, layers=layers, tokens=tokens)

    def under(self, adapters: Adapters) -> Scorer:
        return self.scorer.under(adapters)


@pytest.fixture
def by_token_too():
    @RULES.register
    def by_token_too(query_BD, support_MD, query_nll_BTA):
        return query_BD[:, 0] * support_MD.mean() + query_nll_BTA.mean(axis=(1, 2))

    yield "by_token_too"
    RULES.remove("by_token_too")


def test_few_clients_are_computed_and_scored_at_once(laboratory, monkeypatch, by_token_too):
    """One at a time: the same evidence and scores."""
    own, part, grid = laboratory.collected, laboratory.test, Grid((0.5,), (3,), (1,))
    curves = make_curves(own, laboratory.tasks, part)
    expected = score_rule("cosine", grid, own, curves, part, seed=0).score_NXZ
    # 4 models x 2 poolings, 4 instances, 2 held-out examples, 5 dreams and 3 of the support.
    width = laboratory.scorer.model.config.width
    assert scoring.bytes_of_client("cosine", grid, own, part) == 4 * 8 * (4 + 2 + 5 + 3) * width
    # A rule that sees embeddings and tokens too is given those as often.
    tokens = own.asked["query_nll_BTA"][0].nbytes
    by_token = scoring.bytes_of_client(by_token_too, grid, own, part)
    assert by_token == 4 * 8 * (4 + 2 + 5 + 3) * width + 8 * tokens
    assert [one.clients for one in parts_of("cosine", own.questions, 2)] == [[0, 1]]
    assert [one.clients for one in parts_of("cosine", own.questions, 1)] == [[0], [1]]

    monkeypatch.setattr(collecting, "BLOCK", 1)
    monkeypatch.setattr(scoring, "BLOCK", 1)
    watched = Watched(laboratory.scorer)
    found = collect(cast(Scorer, watched), laboratory.questions, MemoryParts())
    assert max(watched.at_once) == 1
    np.testing.assert_allclose(found.nll_CJW, own.nll_CJW, atol=1e-4)
    for model in own.embeddings:
        for ours, theirs in zip(found.embeddings[model], own.embeddings[model], strict=True):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-4)
    scores = score_rule("cosine", grid, found, curves, part, seed=0).score_NXZ
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_parts_on_disk_are_not_in_memory(laboratory):
    """What is read again, and what has just been written."""
    for query, support, dream in laboratory.collected.embeddings["local"]:
        for values in (query, support, dream):
            base = values
            while isinstance(base, np.ndarray):
                base = base.base
            assert isinstance(base, mmap.mmap)
            assert not values.flags.writeable
