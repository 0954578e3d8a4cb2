"""Settings are chosen on what each client can know: foreign answers change nothing."""

import dataclasses
import logging

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory import material
from feddpa_jax.laboratory import search as searching
from feddpa_jax.laboratory.choosing import AGREED, by_client, pooled
from feddpa_jax.laboratory.material import Material


def example(name: str, number: int) -> fd.Example:
    return fd.Example(f"{name} {number}", f"yes {number % 3}", task=name)


@pytest.fixture(scope="module")
def run() -> fd.Experiment:
    """Three clients, of which one held nothing out, one one example, and one two."""
    clients = [
        fd.Client(
            name,
            tuple(example(name, n) for n in range(3)),
            tuple(example(name, 7 + n) for n in range(held)),
        )
        for held, name in enumerate(("anna", "ben", "carl"))
    ]
    test = tuple(example(name, 20 + n) for name in ("anna", "ben", "carl") for n in range(2))
    fed = {"rounds": 2, "local_epochs": 2, "batch_size": 3, "learning_rate": 0.05}
    config = fd.Config(
        fed=fed,
        lora={"rank": 2},
        data={"max_length": 64},
        eval={"metrics": ["nll"], "max_new_tokens": 4},
    )
    experiment = fd.Experiment(
        fd.load_base("tiny", "float32"), fd.Federation(tuple(clients), test), config
    )
    experiment.train()
    return experiment


OPTIONS = {
    "rules": ["constant", "cosine"],
    "layers": [2],
    "exact": 0,
    "by": ["nll", "exact_match"],
    "foreign": "base",
}


def tried(run: fd.Experiment, monkeypatch: pytest.MonkeyPatch, change, **options):
    """What the laboratory chooses where its material is changed."""
    find, seen = searching.find_material, []

    def changed(*given, **how) -> Material:
        seen.append(change(find(*given, **how)))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(searching, "find_material", changed)
        found = run.laboratory(**{**OPTIONS, **options})
    return found, seen[0]


def same(given: Material) -> Material:
    return given


def poisoned(given: Material) -> Material:
    """Every answer that a client cannot know: other clients' held-out ones, and the test."""
    collected = given.collected
    draw = np.random.default_rng(0)
    nll_CJW, greedy_CJW = collected.nll_CJW.copy(), collected.greedy_CJW.copy()
    for c, own in enumerate(collected.questions.held):
        foreign = np.ones(nll_CJW.shape[1], bool)
        foreign[:AGREED] = False
        foreign[own] = False
        shape = (int(foreign.sum()), nll_CJW.shape[2])
        nll_CJW[c, foreign] += 100 * draw.random(shape)
        greedy_CJW[c, foreign] = draw.random(shape) < 0.5
    changed = dataclasses.replace(collected, nll_CJW=nll_CJW, greedy_CJW=greedy_CJW)
    return given._replace(collected=changed)


def test_foreign_answers_change_no_chosen_setting(run, monkeypatch: pytest.MonkeyPatch):
    found, given = tried(run, monkeypatch, same)
    changed, _ = tried(run, monkeypatch, poisoned)
    assert given.choosing.how == "client" and found.summary["chosen_on"] == "client"
    assert changed.best == found.best
    assert changed.settings_csv == found.settings_csv  # Not a digit of any setting's scores.
    assert found.settings_csv.splitlines()[0].endswith(
        "nll own,nll foreign,exact_match own,exact_match foreign"
    )
    assert any("prompts made up by the base" in note for note in found.notes)


def test_what_is_told_of_the_first_choice(run):
    """Its differences to the global adapter alone, and how its weights tell instances apart."""
    found = run.laboratory(**OPTIONS)
    rows = {row["label"]: row for row in found.table}
    alone, first = rows["global alone"], rows[found.best[0][0]]
    for metric in ("nll", "exact_match"):
        for measure in ("P", "TTP"):
            column = f"minus_global_{metric}_{measure}"
            for row in rows.values():
                minus = row[f"test_{metric}_{measure}"] - alone[f"test_{metric}_{measure}"]
                assert row[column] == pytest.approx(minus, abs=1e-4), (row["label"], column)
    assert [rows["half of each"][k] for k in ("weight_own", "weight_foreign", "auc")] == [0.5] * 3
    (note,) = (note for note in found.notes if note.startswith("The first choice minus the global"))
    assert f"P {first['minus_global_nll_P']:.2f}" in note and f"AUC {first['auc']:.2f}" in note
    told = {row["label"]: row for row in found.summary["rules"]}[found.best[0][0]]
    assert told["separation"]["auc"] == first["auc"]
    assert told["minus_global"]["nll"]["TTP"]["value"] == first["minus_global_nll_TTP"]


def test_pooled_choice_is_labelled_and_sees_them(run, monkeypatch: pytest.MonkeyPatch):
    """It is another choice, so the test above can fail."""
    found, given = tried(run, monkeypatch, same, choose="pooled")
    changed, _ = tried(
        run,
        monkeypatch,
        lambda given: given._replace(
            collected=dataclasses.replace(
                given.collected, nll_CJW=given.collected.nll_CJW[..., ::-1].copy()
            )
        ),
        choose="pooled",
    )
    assert given.choosing.how == "pooled"
    assert changed.settings_csv != found.settings_csv
    assert any("which no federation has" in note for note in found.notes)
    assert found.settings_csv.splitlines()[0].endswith(
        "nll P,nll TTP,exact_match P,exact_match TTP"
    )


def test_the_shared_adapter_agrees_with_itself(run, monkeypatch: pytest.MonkeyPatch):
    """At weight 0 its own answers are what it gives; what is scored is the mean by hand."""
    _, given = tried(run, monkeypatch, same)
    collected = given.collected
    assert collected.greedy_CJW[:, :AGREED, 0].all()
    share_CIZ = given.choosing.share_CIZ
    np.testing.assert_allclose(share_CIZ.sum(axis=(0, 1)), 1.0, rtol=1e-6)
    local = np.einsum(
        "ci,ciz->z", collected.nll_CJW[:, : share_CIZ.shape[1], -1], share_CIZ.astype(float)
    )
    held = [
        collected.nll_CJW[c, own, -1].mean()
        for c, own in enumerate(collected.questions.held)
        if len(own)
    ]
    expected = np.mean(held), collected.nll_CJW[:, :AGREED, -1].mean()
    np.testing.assert_allclose(local, expected, rtol=1e-5)


def test_shares_by_hand():
    own = [np.array([2]), np.zeros(0, int), np.array([3, 4])]
    found = by_client(own, slice(0, 2), slice(0, 5), ["anna", "ben", "carl"], "")
    assert found.group_I.tolist() == [-1, -1, 0, 2, 2]
    assert found.share_CIZ[:, :, 0].tolist() == [
        [0, 0, 0.5, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0.25, 0.25],
    ]
    np.testing.assert_allclose(found.share_CIZ[:, :, 1], [[1 / 6, 1 / 6, 0, 0, 0]] * 3)
    tasks = Tasks(("a", "b"), np.array([0, 1, 1]), np.array([[True, False], [False, True]]))
    assert pooled(tasks, slice(4, 7)).share_CIZ[..., 0].tolist() == [[0.5, 0, 0], [0, 0.25, 0.25]]


def test_clients_that_share_no_adapter(caplog: pytest.LogCaptureFixture):
    """FedALT's server sends each client its own part: the choice is pooled, and said."""
    clients = [
        fd.Client(n, (example(n, 0), example(n, 1)), (example(n, 8),)) for n in ("anna", "ben")
    ]
    data = fd.Federation(tuple(clients), (example("anna", 9), example("ben", 9)))
    config = fd.Config(
        fed={"method": "fedalt", "rounds": 1, "local_epochs": 1, "batch_size": 2},
        lora={"rank": 2},
        data={"max_length": 64},
        eval={"metrics": ["nll"], "max_new_tokens": 4},
    )
    run = fd.Experiment(fd.load_base("tiny", "float32"), data, config)
    run.train()
    with caplog.at_level(logging.WARNING):
        found = run.laboratory(**OPTIONS)
    assert found.summary["chosen_on"] == "pooled"
    assert "choose: the clients of fedalt share no adapter" in caplog.text


def test_too_little_is_held_out_to_keep_p(run, monkeypatch: pytest.MonkeyPatch):
    """It is refused before anything is computed."""
    monkeypatch.setattr(material, "_collect", lambda *given: pytest.fail("computed"))
    for choose, what in (("client", "client 'ben'"), ("pooled", "task 'ben'")):
        with pytest.raises(fd.UserError) as refused:
            run.laboratory(**OPTIONS, keep="p", choose=choose)
        assert str(refused.value).startswith(
            f"keep: {what} has 1 held-out examples, and an interval of P needs 4 of each; train"
        )
    with pytest.raises(fd.UserError, match="keep: 'ttp' is unknown; give p, or leave it out"):
        run.laboratory(keep="ttp")


def test_an_unknown_choice(run):
    with pytest.raises(fd.UserError, match="choose: 'all' is unknown; give client or pooled"):
        run.laboratory(choose="all")
