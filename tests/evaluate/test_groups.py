"""Groups of clients: what waits on the disk comes back as it was, and nobody is kept in memory."""

from pathlib import Path

import numpy as np
import pytest

from feddpa_jax.evaluate.evaluation import ModeResult
from feddpa_jax.evaluate.groups import Joined
from feddpa_jax.evaluate.modes import ModeWeights
from feddpa_jax.evaluate.results import make_evaluation, write_evaluation
from feddpa_jax.files.spool import SpooledTexts
from feddpa_jax.types import Client, SomeClients, UserError
from tests.evaluate.test_results import RESULTS, SETTING, SETTINGS


def part(result: ModeResult, rows: slice) -> ModeResult:
    """A group's part of a result."""
    weights, texts = result.weights, result.predictions_CI
    assert texts is not None
    similarity_CI = weights.similarity_CI
    return ModeResult(
        ModeWeights(
            weights.global_CI[rows],
            weights.local_CI[rows],
            None if similarity_CI is None else similarity_CI[rows],
        ),
        {name: scores_CI[rows] for name, scores_CI in result.scores_CI.items()},
        texts[rows],
    )


def test_groups_have_the_files_of_all_at_once(tmp_path: Path):
    joined = Joined(tmp_path)
    for rows in (slice(0, 1), slice(1, 2)):
        joined.add({mode: part(result, rows) for mode, result in RESULTS.items()})
    assert list(tmp_path.iterdir()) == []  # No kill leaves anything.
    for name, results in (("at_once", RESULTS), ("joined", joined.results())):
        write_evaluation(tmp_path / name, make_evaluation(results, SETTING, settings=SETTINGS))
    for name in ("instances.jsonl", "summary.json"):
        expected = (tmp_path / "at_once" / name).read_bytes()
        assert (tmp_path / "joined" / name).read_bytes() == expected
    texts = joined.results()["local"].predictions_CI
    assert texts is not None and texts[1:] == [["local 1 0", "local 1 1", "local 1 2", "local 1 3"]]


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    texts = SpooledTexts(tmp_path)

    class Full:
        seek = staticmethod(lambda place: None)

        @staticmethod
        def write(data: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(texts, "_file", Full())
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); make"):
        texts.add([["a"]])


def test_some_clients_are_read_when_they_are_asked_for():
    read = []

    class Watched(SomeClients):
        def __getitem__(self, place):
            read.append(place)
            return super().__getitem__(place)

    everyone = Watched([Client(name, ()) for name in ("anna", "ben", "clara")], [0, 1, 2])
    some = SomeClients(everyone, np.array([2, 0]))
    assert some.names == ("clara", "anna") and read == []
    assert some[0].name == "clara" and read == [2]
    assert [client.name for client in some[-1:]] == ["anna"] and read == [2, 0]
