"""Configurations made in Python: the checks and the words of YAML and of the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt

import feddpa_jax as fd
from feddpa_jax.checked_settings import section_of
from feddpa_jax.config import Config, describe_fields, load_config, to_yaml
from feddpa_jax.config.sections import DataSection, EvalSection, FedSection, LoraSection
from feddpa_jax.types import UserError
from feddpa_jax.weighting.settings import WeightingSettings

# Of any values: what a type checker would refuse.
Made: Any = Config
SECTIONS: dict[str, Any] = {
    field.name: type(field.default)
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(field.default)
}


def limits() -> list[tuple[str, Any]]:
    """Every field with a range, and the values just outside."""
    found = []
    for name, *_ in describe_fields():
        section, _, inner = name.rpartition(".")
        cls = SECTIONS[section] if section else Made
        (field,) = (field for field in dataclasses.fields(cls) if field.name == inner)

        def walk(kind: Any) -> list[Any]:
            return [kind, *(part for arg in get_args(kind) for part in walk(arg))]

        if "parameters" in name:
            continue
        part: Any
        for part in walk(field.type):
            match part:
                case Ge():
                    bound: Any = part.ge
                    found.append((name, bound - 1))
                case Gt():
                    bound: Any = part.gt
                    found.append((name, bound))
                case Le():
                    bound: Any = part.le
                    found.append((name, bound + 1 if bound < 1e20 else bound * 2))
                case Lt():
                    bound: Any = part.lt
                    found.append((name, bound))
    return found


LIMITS = limits()
BAD = [
    *LIMITS,
    ("fed.rounds", "three"),
    ("fed.rounds", 2.5),
    ("fed.rounds", True),
    ("fed.rounds", None),
    ("fed.rounds", [3]),
    ("fed.rounds", {"a": 3}),
    ("fed.rounds", 10**40),
    ("fed.learning_rate", "fast"),
    ("fed.learning_rate", float("nan")),
    ("fed.learning_rate", float("inf")),
    ("fed.aggregation", "mean"),
    ("fed.method", "fedx"),
    ("fed.method", 3),
    ("fed.ronds", 3),
    ("fed.rank", 3),
    ("feds.rounds", 3),
    ("Fed.rounds", 3),
    ("rounds", 3),
    ("fed", 3),
    ("fed", None),
    ("fed", [3]),
    ("seed", "x"),
    ("seed", -1),
    ("model.path", 12),
    ("model.dtype", "float64"),
    ("model.quantize", "int4"),
    ("model.quantize", 8),
    ("model.remat", 1),
    ("model.remat", "all"),
    ("data.template", "alpaka"),
    ("data.shuffle", "yes"),
    ("lora.targets", "q_proj"),
    ("lora.targets", ["x_proj"]),
    ("lora.targets", ["q_proj", "q_proj"]),
    ("lora.targets", []),
    ("weighting.rule", "cosin"),
    ("weighting.rule", "a/b"),
    ("weighting.scales", "both"),
    ("weighting.layer", "last"),
    ("weighting.parameters", 3),
    ("weighting.parameters", {"ridge": [1]}),
    ("eval.metrics", ["bleu"]),
    ("eval.metrics", []),
    ("eval.metrics", ["nll", "nll"]),
    ("eval.modes", ["base", "base"]),
    ("mesh.base", "half"),
    ("track.to", ["mlflow"]),
    ("track.to", ["wandb", "wandb"]),
]


def yaml_of(value: Any) -> str:
    text = json.dumps(value)
    return {"NaN": ".nan", "Infinity": ".inf"}.get(text, text)


def told(make: Any) -> str:
    with pytest.raises(UserError) as error:
        make()
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:30])
def test_python_yaml_and_command_line_say_the_same(tmp_path: Path, name: str, value: Any):
    outer, _, inner = name.partition(".")
    python = told(lambda: Made(**{outer: {inner: value} if inner else value}))
    assert outer in python
    line = told(lambda: load_config(None, [f"--{name}", yaml_of(value)]))
    assert line == f"command line: {python}"
    file = tmp_path / "c.yaml"
    file.write_text(
        f"{outer}: {{{inner}: {yaml_of(value)}}}\n" if inner else f"{outer}: {yaml_of(value)}"
    )
    if (name, value) != ("fed", None):  # In a file, a section may be empty.
        assert told(lambda: load_config(file)) == f"{file}: {python}"
    if outer in SECTIONS and inner in {f.name for f in dataclasses.fields(SECTIONS[outer])}:
        cls = SECTIONS[outer]
        assert told(lambda: cls(**{inner: value})) == python
        assert told(lambda: dataclasses.replace(cls(), **{inner: value})) == python
    elif name == "seed":
        assert told(lambda: dataclasses.replace(Config(), seed=value)) == python


def test_every_range_was_tried():
    numbers = {n for n, kind, *_ in describe_fields() if {"int", "float"} & set(kind.split("|"))}
    # A list has the limits of its numbers.
    assert {name for name, _ in LIMITS} == numbers - {"weighting.parameters"} | {"lora.ranks"}
    assert len(LIMITS) >= 2 * len(numbers)


def test_the_command_tells_it_in_one_line(capsys: pytest.CaptureFixture[str]):
    from feddpa_jax.cli.program import main

    python = told(lambda: Config(fed={"rounds": -3}))
    assert python == "fed.rounds: -3: input should be greater than or equal to 1"
    assert main(["train", "--run-dir", "unused", "--fed.rounds", "-3"]) == 2
    assert capsys.readouterr() == ("", f"feddpa: error: command line: {python}\n")
    assert not Path("unused").exists()


def test_sections_are_given_as_mappings_or_made():
    made = Config(fed=FedSection(rounds=3), lora=LoraSection(targets=("o_proj",)))
    assert made == Config(fed={"rounds": 3}, lora={"targets": ["o_proj"]})
    assert made == load_config(None, ["--fed.rounds", "3", "--lora.targets", "[o_proj]"])
    assert dataclasses.replace(made, fed={"rounds": 4}).fed == FedSection(rounds=4)
    # Another section's class is no mapping.
    with pytest.raises(UserError, match=r"^fed is a section; write its fields below it$"):
        Made(fed=LoraSection())
    assert fd.Config is Config


def test_configurations_do_not_change_and_have_a_hash(tmp_path: Path):
    config = Made(fed={"rounds": 3}, weighting={"rule": "gate", "parameters": {"ridge": 1.0}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.fed.rounds = 1
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config
    assert len({config, load_config(file), Config()}) == 2


@pytest.mark.parametrize(
    ("cls", "name", "given", "kept"),
    [
        (FedSection, "rounds", np.int64(3), 3),
        (FedSection, "learning_rate", np.float32(0.5), 0.5),
        (FedSection, "learning_rate", np.float64(0.1), 0.1),
        (FedSection, "learning_rate", 1, 1.0),
        (FedSection, "local_weight", np.array(0.25), 0.25),
        (DataSection, "shuffle", np.bool_(False), False),
        (DataSection, "path", Path("a") / "b", "a/b"),
        (EvalSection, "metrics", ["nll"], ("nll",)),
        (EvalSection, "metrics", np.array(["nll", "rouge1"]), ("nll", "rouge1")),
        (WeightingSettings, "parameters", {"ridge": np.float64(0.5)}, {"ridge": 0.5}),
    ],
)
def test_values_of_numpy_and_paths_become_pythons_own(cls, name: str, given: Any, kept: Any):
    value = getattr(cls(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept) or isinstance(kept, dict)
    if name != "parameters":
        to_yaml(Made(**{section_of(cls): {name: given}}))


@pytest.mark.parametrize(
    ("section", "name", "given", "words"),
    [
        ("fed", "rounds", np.float64(2.5), "fed.rounds: 2.5: input should be a valid integer"),
        ("fed", "rounds", np.array([3, 4]), "fed.rounds: [3, 4]: input should be a valid integer"),
        ("fed", "rounds", np.int64(0), "fed.rounds: 0: input should be greater than"),
        ("fed", "rounds", Path("x"), "fed.rounds: 'x': input should be a valid integer"),
        ("fed", "rounds", 3j, "fed.rounds: '3j' is no number, text or list"),
        ("fed", "rounds", {3}, "fed.rounds: '{3}' is no number, text or list"),
        ("model", "path", b"x", "model.path: \"b'x'\" is no number, text or list"),
        ("weighting", "rule", print, "weighting.rule: '<built-in function print>' is no number"),
        ("data", "path", "a\udcff", "data.path: "),
    ],
)
def test_other_values_are_refused_in_one_line(section: str, name: str, given: Any, words: str):
    assert told(lambda: Made(**{section: {name: given}})).startswith(words)
