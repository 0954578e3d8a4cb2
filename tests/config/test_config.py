"""The configuration: defaults, overrides, round trips, and one line for every mistake."""

import dataclasses
import re
from pathlib import Path

import pytest

from feddpa_jax.config import (
    Config,
    describe_fields,
    difference,
    dotted,
    load_config,
    to_yaml,
)
from feddpa_jax.types import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_names_the_command_that_runs_it(path):
    (command,) = re.findall(r"^# Command: (.*)$", path.read_text(), re.MULTILINE)
    program, *words = command.split()
    if program == "bash":
        command = (ROOT / words[0]).read_text()
    assert f"feddpa train --config {path.relative_to(ROOT)} " in command
    options = re.findall(r"--[a-z]+\.\S+ \S+", command)
    load_config(path, [word for option in options for word in option.split()])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_is_its_method_and_what_differs(path):
    """A value that repeats a default hides what the file is about; method and data may."""
    differing = {line.partition(":")[0] for line in difference(Config(), load_config(path))}
    written = {
        f"{section}.{name}"
        for section, names in re.findall(r"^(\w+): \{(.*)\}$", path.read_text(), re.MULTILINE)
        for name in re.findall(r"(\w+): ", names)
    }
    assert "fed.method" in written
    assert written - {"fed.method", "data.path"} == differing - {"fed.method", "data.path"}


@pytest.mark.parametrize("data", ["dataset1", "dataset2"])
def test_the_papers_settings_are_six_methods_on_each_data_set(data):
    methods = ("feddpa_t", "feddpa_f", "fedit", "fedlora", "local", "centralized")
    for method in methods:
        config = load_config(ROOT / "configs" / "paper" / f"{data}_{method}.yaml")
        expected = [f"data.path: sample -> ../shared/data/feddpa_flan/{data}"]
        if method != "feddpa_t":
            expected.append(f"fed.method: feddpa_t -> {method}")
        # The paper decodes with four beams.
        assert difference(Config(), config) == [*expected, "eval.decoding: greedy -> beam"]


def test_overrides_and_round_trip(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("fed: {rounds: 3, learning_rate: 5e-4}\nseed: 4\n")
    overrides = ["--fed.rounds", "7", "--lora.targets=[q_proj, o_proj]", "--data.max_train", "5"]
    config = load_config(path, overrides)
    assert (config.fed.rounds, config.fed.learning_rate, config.seed) == (7, 5e-4, 4)
    assert config.lora.targets == ("q_proj", "o_proj")
    written = tmp_path / "d.yaml"
    written.write_text(to_yaml(config))
    sections = [line.partition(":")[0] for line in to_yaml(config).splitlines() if line[0] != " "]
    assert sections == [field.name for field in dataclasses.fields(Config)]
    assert load_config(written) == config
    assert difference(config, config) == []
    assert difference(config, load_config(path)) == [
        "data.max_train: 5 -> None",
        "lora.targets: ('q_proj', 'o_proj') -> ('q_proj', 'v_proj')",
        "fed.rounds: 7 -> 3",
    ]


def test_an_override_of_a_section_keeps_the_files_other_fields(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("fed: {rounds: 3, batch_size: 2}\n")
    config = load_config(path, ["--fed", "{rounds: 4}", "--seed=2", "--seed", "3"])
    assert (config.fed.rounds, config.fed.batch_size, config.seed) == (4, 2, 3)


@pytest.mark.parametrize(
    "name", ["1e3", "3e-4", "-.5e1", "inf", "true", "null", "2024-01-01", "a: b", " #", "ü", "x\ny"]
)
def test_text_that_looks_like_something_else_survives_a_round_trip(tmp_path, name):
    """A run folder keeps its configuration, so what it writes must load."""
    config = dataclasses.replace(Config(), data=dataclasses.replace(Config().data, path=name))
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize("rate", [1e-7, 3e-4, 1e22, 1.0])
def test_numbers_survive_a_round_trip(tmp_path, rate):
    config = load_config(None, [f"--fed.max_grad_norm={rate!r}"])
    assert config.fed.max_grad_norm == rate
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--fed.learning_rat", "1"], ["fed.learning_rat", "fed.learning_rate"]),
        (["--rounds", "1"], ["rounds", "fed.rounds"]),
        (["--data.rank", "1"], ["data.rank", "lora.rank"]),
        (["--lora.rank", "0"], ["lora.rank", "0", "greater than or equal to 1"]),
        (["--fed.batch_size", "0"], ["fed.batch_size", "0"]),
        (["--fed.rounds", "true"], ["fed.rounds: true: ", "integer"]),
        (["--data.shuffle", "1"], ["data.shuffle: 1: ", "boolean"]),
        (["--fed.rounds", "1.5"], ["fed.rounds", "1.5"]),
        (["--fed.method", "fedx"], ["fed.method", "'fedx'", "feddpa_t"]),
        (["--fed.learning_rate", ".nan"], ["fed.learning_rate", "finite"]),
        (["--fed.learning_rate", ".inf"], ["fed.learning_rate", "finite"]),
        (["--fed.learning_rate", "0"], ["fed.learning_rate", "greater than 0"]),
        (["--fed.participation", "0"], ["fed.participation", "greater than 0"]),
        (["--fed.participation", "1.1"], ["fed.participation", "less than or equal to 1"]),
        (["--fed.local_weight", "-0.1"], ["fed.local_weight", "greater than or equal to 0"]),
        (["--weighting.support", "0"], ["weighting.support", "greater than or equal to 1"]),
        (
            ["--eval.metrics", "[bleu]"],
            ["eval.metrics: 'bleu' is unknown", "rouge1"],
        ),
        (["--seed", "4294967296"], ["seed", "less than or equal to 4294967295"]),
        (["--seed", "{a: 1}"], ["seed", "integer"]),
        (["--data.template", "alpaka"], ["data.template: 'alpaka'", "did you mean 'alpaca'"]),
        (["--weighting.parameters", "3"], ["weighting.parameters: 3: give names"]),
        (["--weighting.parameters.a", "[1]"], ["weighting.parameters", "give names"]),
        (["--data.path", "12"], ["data.path: 12: ", "string; quote it"]),
        (["--data.shuffle", "yes"], ["data.shuffle: 'yes': ", "boolean; write true or false"]),
        (["--fed.rounds", "1_000"], ["fed.rounds: '1_000': ", "integer"]),
        (["--fed.rounds", "1:30"], ["fed.rounds: '1:30': ", "integer"]),
        (["--fed.rounds", "010"], ["--fed.rounds", "010 starts with a zero", "write 10, or quote"]),
        (["--data.path", "007"], ["--data.path", "quote it if it is text"]),
        (["--data.path", "a #b"], ["--data.path: 'a #b' is YAML for 'a'", "quote it"]),
        (["--data.path", "a\nb"], ["--data.path: 'a\\nb' is YAML for 'a b'", "quote it"]),
        (["--data.max_train", "# 3"], ["--data.max_train: '# 3' is YAML for null", "quote it"]),
        (["--data.max_train", ""], ["--data.max_train: is empty; write null"]),
        (["--data.max_train= "], ["--data.max_train: is empty; write null"]),
        (["--data.path", "a\udcff"], ["--data.path, line 1", "U+DCFF is not allowed"]),
        (["--data.path", "[" + "a, " * 99 + "a]"], ["data.path: ", "...: ", "string"]),
        (["--lora.targets", "q_proj"], ["lora.targets: 'q_proj': ", "list, as in [a, b]"]),
        (["--lora.targets", "[x_proj]"], ["lora.targets", "'x_proj'", "q_proj"]),
        (["--lora.targets", "[q_proj, q_proj]"], ["lora.targets", "twice"]),
        (["--lora.targets", "[]"], ["lora.targets"]),
        (["--lora.dropout", "1.0"], ["lora.dropout", "less than 1"]),
        (["--fed", "3"], ["fed is a section"]),
        (["--fed.rounds"], ["--fed.rounds needs a value"]),
        (["--fed.rounds", "--seed", "1"], ["--fed.rounds needs a value"]),
        (["stray"], ["'stray'", "--section.field"]),
        (["--"], ["'--'", "--section.field"]),
        (["--fed.rounds", "[1"], ["--fed.rounds", "not valid YAML"]),
    ],
)
def test_bad_overrides(tmp_path, overrides, words):
    path = tmp_path / "good.yaml"
    path.write_text("seed: 1\n")
    for file in (None, path):
        with pytest.raises(UserError) as error:
            load_config(file, overrides)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 250
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize("nothing", ["", " # rounds: 3", " ~", " null", " {}", "\n  # rounds: 3"])
def test_a_section_may_be_empty(tmp_path, nothing):
    path = tmp_path / "c.yaml"
    path.write_text(f"fed:{nothing}\nlora:\n  rank: 4\n")
    assert load_config(path) == load_config(None, ["--lora.rank", "4"])
    assert load_config(path, ["--fed.rounds", "5"]).fed.rounds == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fed:\n  rounds: 3\n  rounds: 4\n", ["line 3", "rounds appears twice"]),
        ("fed: [\n", ["line 2", "not valid YAML"]),
        ("- 1\n", ["no mapping"]),
        ("fed: 3\n", ["fed is a section"]),
        ("feds: {rounds: 3}\n", ["'feds'", "did you mean"]),
        ("seed: 2024-01-01\n", ["seed: '2024-01-01': ", "integer"]),
        ("fed: {batch_size: 0}\n", ["fed.batch_size: 0: ", "greater than or equal to 1"]),
        ("lora: {alpha: big}\n", ["lora.alpha: 'big': ", "valid number"]),
        ("1: 2\n", ["'1'", "did you mean"]),
        ("fed.rounds: 3\n", ["fed.rounds: write rounds below fed:"]),
        ("Fed:\n  rounds: 3\n", ["unknown key 'Fed'; did you mean 'fed'?"]),
        ("eval: {bootstrap: 50}\n", ["unknown key 'eval.bootstrap'; did you mean 'eval."]),
        ("fed:\n\trounds: 3\n", ["line 2", "not tabs"]),
        ("fed: []\n", ["fed is a section"]),
        ("seed:\n", ["seed: null: "]),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("data.max_length", 2**31 - 1),
        ("data.max_train", 2**31 - 1),
        ("data.validation", 2**31 - 1),
        ("data.max_test", 2**31 - 1),
        ("lora.rank", 2**31 - 1),
        ("lora.alpha", 1e30),
        ("fed.rounds", 99_999),
        ("fed.local_epochs", 10_000),
        ("fed.batch_size", 2**31 - 1),
        ("fed.micro_batch_size", 2**31 - 1),
        ("fed.learning_rate", 1e3),
        ("fed.max_grad_norm", 1e30),
        ("fed.block_tokens", 2**31 - 1),
        ("fed.clients_per_step", 2**31 - 1),
        ("fed.clients_in_memory", 2**31 - 1),
        ("fed.keep_checkpoints", 2**31 - 1),
        ("weighting.scale", 1e6),
        ("weighting.support", 10_000),
        ("weighting.layer", 2**31 - 1),
        ("eval.beams", 256),
        ("eval.max_new_tokens", 2**31 - 1),
        ("eval.batch_tokens", 2**31 - 1),
        ("mesh.clients", 2**31 - 1),
        ("mesh.model", 2**31 - 1),
    ],
)
def test_sizes_have_limits(name, most):
    """Nothing may be allocated for 10**12 of anything, nor counted beyond 32 bits."""
    assert dotted(load_config(None, [f"--{name}={most}"]))[name] == most
    above = most + 1 if isinstance(most, int) else most * 1.01
    for value in (above, 10**12, 10**40, "1" * 300, "1" * 5000):
        if isinstance(most, float) and value in (10**12,) and most > 1e12:
            continue
        with pytest.raises(UserError, match=rf"{re.escape(name)}.*(less than or equal|too large)"):
            load_config(None, [f"--{name}={value}"])


def test_every_number_has_a_limit():
    """A new field must say how large it may be."""
    for name, kind, *_ in describe_fields():
        if {"int", "float"} & set(kind.split("|")):
            with pytest.raises(UserError, match=re.escape(name)):
                load_config(None, [f"--{name}", "1" * 299])


def test_every_field_is_described():
    rows = describe_fields()
    assert len({name for name, *_ in rows}) == len(rows) > 40
    assert all(text and kind and "\n" not in text for _, kind, _, text in rows)
    by_name = {name: row for name, *row in rows}
    assert by_name["data.max_train"][:2] == ["int|null", "null"]
    assert by_name["fed.aggregation"][:2] == ["uniform|examples", '"uniform"']
    assert by_name["lora.targets"][:2] == ["list", '["q_proj", "v_proj"]']


def test_hyperparameters_go_with_the_rule_of_the_same_command():
    options = ["--weighting.parameters.ridge", "0.5", "--weighting.rule", "gate"]
    weighting = load_config(None, options).weighting
    assert (weighting.rule, dict(weighting.parameters)) == ("gate", {"ridge": 0.5})
    with pytest.raises(
        UserError, match=r"^command line: weighting\.parameters: 'ridge' is unknown"
    ):
        load_config(None, options[:2])
