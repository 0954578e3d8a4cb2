"""All clients' examples as one's: the same opened as in memory, read once, and announced."""

import logging

import pytest

import feddpa_jax as fd
from feddpa_jax.data.token_file import TokenizedClients
from feddpa_jax.run import pooled_examples as pooled_module
from feddpa_jax.run.inputs import prepare, training_data


def test_opened_examples_are_read_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FEDDPA_CACHE", str(tmp_path / "cache"))
    examples = [
        (f"u{c}", fd.Example(f"Say {n}.", f"{n + c}", task="t")) for n in range(3) for c in range(4)
    ]
    fd.write_population(tmp_path / "people", examples)
    config = fd.Config(
        model={"path": "tiny"},
        data={"path": str(tmp_path / "people")},
        fed={"method": "centralized", "local_epochs": 2},
    )
    prepared = prepare(config, weights=False)
    assert isinstance(prepared.training, TokenizedClients)
    size = 12 * (400 + 2 * 290) + 5 * int(prepared.training.tokens_C.sum())
    monkeypatch.setattr(pooled_module, "_free_memory", lambda: size - 1)
    with caplog.at_level(logging.WARNING):
        data = training_data(config, prepared)
    assert "has all 12 examples of 4 clients in memory: about " in caplog.text
    assert "are free; lower data.max_train or fed.local_epochs" in caplog.text
    assert training_data(config, prepared).examples[0] is data.examples[0]
    assert len(caplog.records) == 1
    in_memory = [example for own in prepared.training for example in own]
    assert [e.tokens_T.tolist() for e in data.examples[0]] == [
        e.tokens_T.tolist() for e in in_memory
    ]
    again = prepare(config, weights=False)
    monkeypatch.setattr(pooled_module, "_free_memory", lambda: size)
    with caplog.at_level(logging.WARNING):
        training_data(config, again)
    assert len(caplog.records) == 1


def test_the_estimate_is_near_what_is_used():
    """Of arrays that point at tokens: views of 112 bytes, and what holds them."""
    import tracemalloc

    import numpy as np

    from feddpa_jax.types import TokenizedExample

    tokens = np.arange(64, dtype=np.int32)
    tracemalloc.start()
    kept = tuple(TokenizedExample(tokens[:32].copy(), 1000 + n) for n in range(2000))
    used = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    assert pooled_module.bytes_of(1, 32, epochs=0) == pytest.approx(used, rel=0.6)
