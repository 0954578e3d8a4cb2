"""The configuration: defaults, overrides, round trips, and one line for every mistake."""

from pathlib import Path

import pytest

from feddpa_jax.config import Config, describe_fields, difference, load_config, to_yaml
from feddpa_jax.types import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def test_defaults_are_the_papers():
    config = load_config()
    assert config == Config()
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 16.0, 0.05)
    fed = config.fed
    assert (fed.rounds, fed.local_epochs, fed.batch_size, fed.micro_batch_size) == (20, 10, 64, 32)
    assert (fed.learning_rate, fed.local_weight) == (3e-4, 0.5)
    assert (config.weighting.scale, config.weighting.support) == (0.5, 5)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_parses_and_says_what_it_is(path):
    load_config(path)
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(comments)
    assert "Expected result:" in text
    assert "Run time:" in text
    assert "Command:" in text


def test_overrides_and_round_trip(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("fed: {rounds: 3, learning_rate: 5e-4}\nseed: 4\n")
    overrides = ["--fed.rounds", "7", "--lora.targets=[q_proj, o_proj]", "--data.max_train", "5"]
    config = load_config(path, overrides)
    assert (config.fed.rounds, config.fed.learning_rate, config.seed) == (7, 5e-4, 4)
    assert config.lora.targets == ("q_proj", "o_proj")
    written = tmp_path / "d.yaml"
    written.write_text(to_yaml(config))
    assert load_config(written) == config
    assert difference(config, load_config(path))[0] == "data.max_train: 5 -> None"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--fed.learning_rat", "1"], ["fed.learning_rat", "fed.learning_rate"]),
        (["--rounds", "1"], ["rounds", "fed.rounds"]),
        (["--data.rank", "1"], ["data.rank", "lora.rank"]),
        (["--lora.rank", "0"], ["lora.rank", "0", "greater than or equal to 1"]),
        (["--fed.batch_size", "0"], ["fed.batch_size", "0"]),
        (["--fed.rounds", "true"], ["fed.rounds", "True", "integer"]),
        (["--fed.rounds", "1.5"], ["fed.rounds", "1.5"]),
        (["--fed.method", "fedx"], ["fed.method", "'fedx'", "feddpa_t"]),
        (["--fed.learning_rate", ".nan"], ["fed.learning_rate", "finite"]),
        (["--lora.targets", "[x_proj]"], ["lora.targets", "'x_proj'", "q_proj"]),
        (["--lora.targets", "[q_proj, q_proj]"], ["lora.targets", "twice"]),
        (["--lora.targets", "[]"], ["lora.targets"]),
        (["--lora.dropout", "1.0"], ["lora.dropout", "less than 1"]),
        (["--fed", "3"], ["fed is a section"]),
        (["--fed.rounds"], ["--fed.rounds needs a value"]),
        (["stray"], ["'stray'"]),
        (["--fed.rounds", "[1"], ["--fed.rounds", "not valid YAML"]),
    ],
)
def test_bad_overrides(overrides, words):
    with pytest.raises(UserError) as error:
        load_config(None, overrides)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fed:\n  rounds: 3\n  rounds: 4\n", ["line 3", "rounds stands twice"]),
        ("fed: [\n", ["line 2", "not valid YAML"]),
        ("- 1\n", ["no mapping"]),
        ("fed: 3\n", ["fed is a section"]),
        ("feds: {rounds: 3}\n", ["'feds'", "did you mean"]),
        ("seed: 2024-01-01\n", ["holds a value"]),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert "bad.yaml" in str(error.value)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_every_field_is_described():
    rows = describe_fields()
    assert len({name for name, *_ in rows}) == len(rows) > 40
    assert all(text and kind for _, kind, _, text in rows)
