"""Stand-ins for foreign prompts: made up by the base, or public, and nobody's answers are read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.data.sample import TASKS, sample_federation
from feddpa_jax.laboratory.choosing import AGREED
from feddpa_jax.laboratory.stand_ins import check_source, find_prompts, stand_ins


def example(name: str, number: int) -> fd.Example:
    return fd.Example(f"{name} {number}", f"yes {number % 3}", task=name)


@pytest.fixture(scope="module")
def run() -> fd.Experiment:
    clients = [
        fd.Client(
            name,
            tuple(example(name, n) for n in range(3)),
            tuple(example(name, 7 + n) for n in range(2)),
        )
        for name in ("anna", "ben")
    ]
    test = tuple(example(name, 20 + n) for name in ("anna", "ben") for n in range(2))
    config = fd.Config(
        fed={"rounds": 1, "local_epochs": 2, "batch_size": 3, "learning_rate": 0.05},
        lora={"rank": 2},
        data={"max_length": 160},
        eval={"metrics": ["nll"], "max_new_tokens": 4},
    )
    base = fd.load_base("tiny", "float32")
    experiment = fd.Experiment(base, fd.Federation(tuple(clients), test), config)
    experiment.train()
    return experiment


def public(path: Path, count: int, answer: str) -> str:
    """A file of public examples, of which every fifth prompt is far too long."""
    lines = [
        json.dumps(
            {"prompt": f"ask {n} " + "on " * (400 if n % 5 == 4 else 1), "completion": answer}
        )
        for n in range(count)
    ]
    path.write_text("\n".join(lines))
    return str(path)


def texts(run: fd.Experiment, source: str) -> list[str]:
    prompts, _ = find_prompts(run.config, run.prepared, source)
    return [run.prepared.base.tokenizer.decode(own_T) for own_T in prompts]


def test_where_prompts_are_from(run, tmp_path: Path):
    made_up, sample = texts(run, "base"), texts(run, "sample")
    assert len(made_up) == len(sample) == AGREED == 2 * len(TASKS)
    assert len(set(sample)) == AGREED and not set(sample) & set(made_up)
    # Two of each of the sample's tasks.
    found = sample_federation(run.config.seed + 1, train=1, test=2).test
    assert all(sum(e.instruction in text for text in sample) == 1 for e in found)
    own = texts(run, public(tmp_path / "own.jsonl", 40, "a"))
    assert len(set(own)) == AGREED and all("ask" in text and len(text) < 160 for text in own)
    assert texts(run, public(tmp_path / "few.jsonl", 4, "a")) != own


def test_answers_are_the_shared_adapters(run, tmp_path: Path):
    """Those of the file are not read, also where they would not fit."""
    adapters = run.adapters
    some = stand_ins(run.config, run.prepared, adapters, public(tmp_path / "a.jsonl", 9, "a"))
    other = public(tmp_path / "b.jsonl", 9, "another answer " * 90)
    others = stand_ins(run.config, run.prepared, adapters, other)
    assert some.words == "8 public prompts of a.jsonl" and len(some.tokenized) == 8
    for ours, theirs in zip(some.tokenized, others.tokenized, strict=True):
        np.testing.assert_array_equal(ours.tokens_T, theirs.tokens_T)
        assert 0 <= len(ours.tokens_T) - ours.prompt_length <= 4
    assert some.examples == others.examples


def test_the_choice_says_what_it_is_on(run):
    options = {"rules": ["constant", "cosine"], "layers": [2], "exact": 0}
    found = {source: run.laboratory(**options, foreign=source) for source in ("base", "sample")}
    words = found["sample"].summary["stand_ins"]
    assert words == "16 public prompts of the built-in sample"
    assert any(words in note for note in found["sample"].notes)
    own, foreign = (
        [
            [line.split(",")[-2 + place] for line in one.settings_csv.splitlines()[1:]]
            for one in found.values()
        ]
        for place in (0, 1)
    )
    assert own[0] == own[1] and foreign[0] != foreign[1]


def test_where_the_sample_does_not_fit(run, caplog: pytest.LogCaptureFixture):
    short = dataclasses.replace(
        run.config, data=dataclasses.replace(run.config.data, max_length=40)
    )
    ours = find_prompts(short, run.prepared, "sample")
    assert (
        "foreign: the built-in sample has no prompt that fits into data.max_length" in caplog.text
    )
    theirs = find_prompts(short, run.prepared, "base")
    assert ours[1] == theirs[1] and all(map(np.array_equal, ours[0], theirs[0]))


def test_what_is_no_source(run, tmp_path: Path):
    with pytest.raises(fd.UserError, match="foreign: 'other' is no file of examples; give base"):
        run.laboratory(foreign="other")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(fd.UserError, match="is no file of examples"):
        check_source(str(tmp_path / "a.txt"))
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"instruction": "on " * 400, "output": "yes"}))
    with pytest.raises(fd.UserError, match=r"no prompt that fits into data\.max_length = 160"):
        find_prompts(run.config, run.prepared, str(long))
    long.write_text(json.dumps({"instruction": "ask"}))
    with pytest.raises(fd.UserError, match=r"line 1.*output"):
        find_prompts(run.config, run.prepared, str(long))


def test_stand_ins_that_are_test_prompts_are_told(run, tmp_path: Path, caplog):
    """They would choose settings by what these are scored on."""
    lines = [
        json.dumps({"instruction": own.instruction, "input": own.input, "output": "x"})
        for own in run.prepared.federation.test[:2]
    ]
    file = tmp_path / "known.jsonl"
    file.write_text("\n".join([*lines, json.dumps({"instruction": "Other.", "output": "x"})]))
    find_prompts(run.config, run.prepared, str(file))
    assert "foreign: 2 of 3 stand-ins are test prompts, so settings are chosen on" in caplog.text
    caplog.clear()
    find_prompts(run.config, run.prepared, "sample")
    assert not caplog.records
    of_sample = dataclasses.replace(
        run.config, data=dataclasses.replace(run.config.data, path="sample")
    )
    find_prompts(of_sample, run.prepared, "sample")
    assert "foreign: the data are the sample too" in caplog.text
