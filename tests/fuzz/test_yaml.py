"""YAML of any content: refused in one line, or read as version 1.2 reads it; and what we write."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from feddpa_jax.config import Config, describe_fields, load_config, to_yaml
from feddpa_jax.files.strict_yaml import parse_yaml
from feddpa_jax.types import UserError
from tests.fuzz.conftest import fuzz

SCALARS = [
    *(
        "010",
        "0o10",
        "0x1F",
        "1_000",
        "1:30",
        "1e3",
        "1.",
        ".5",
        "+1",
        "-0",
        "0",
        "7",
        ".inf",
        ".nan",
    ),
    *(
        "yes",
        "No",
        "on",
        "true",
        "FALSE",
        "~",
        "null",
        "",
        "2024-01-01",
        "<<",
        "=",
        "a b",
        "ü",
        "٣",
    ),
    *(
        "'yes'",
        '"\\u00e9"',
        "'it''s'",
        '"\\ud800"',
        "!!str 1",
        "!!int x",
        "!x a",
        "&a b",
        "*a",
        "a #b",
    ),
    *(
        "| \n  a\n  b",
        "> \n a",
        "tiny",
        "sample",
        "3e-4",
        "1" * 400,
        "\x00",
        "\u2028",
        "\ufeff",
        "\t",
    ),
]
KEYS = ["a", "b", "seed", "1", "true", "? x", "'a'", '"b"', "<<", "&k a"]
PIECES = [*SCALARS, *KEYS, *list("[]{},:-?#&*!|>'\"%@`\n\t "), ": ", "- ", "\n  ", "---\n", "...\n"]
# What the core schema of version 1.2 calls an integer or a float, written a second time.
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_WORDS |= {sign + ".inf": float(sign + "inf") for sign in ("", "+", "-")} | {".nan": float("nan")}


def _cases(word: str) -> set[str]:
    return {
        word,
        word.capitalize(),
        word.upper(),
        word.replace("inf", "Inf"),
        word[:1] + word[1:].title(),
    }


_CASED = {form: value for word, value in _WORDS.items() for form in _cases(word)}


def _read(node: yaml.Node | None) -> Any:
    """A node's value by version 1.2; PyYAML makes the nodes alone, without types."""
    if node is None:
        return None
    if isinstance(node, yaml.MappingNode):
        return {_read(key): _read(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_read(inner) for inner in node.value]
    text = node.value
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return text
    if text in _CASED:
        return _CASED[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    for base, digits in ((8, r"0o[0-7]+"), (16, r"0x[0-9a-fA-F]+")):
        if re.fullmatch(digits, text):
            return int(text, base)
    return float(text) if _FLOAT.fullmatch(text) else text


documents = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(SCALARS)), max_size=4).map(
        lambda pairs: "\n".join(f"{key}: {value}" for key, value in pairs)
    ),
    st.lists(st.sampled_from(SCALARS), max_size=4).map(lambda values: f"[{', '.join(values)}]"),
    st.sampled_from(SCALARS),
    st.text(max_size=10),
)


@fuzz(1000)
@given(text=documents)
@example(text="a: &x [b]\nc: *x")
@example(text="- " * 5000 + "a")
@example(text="[" * 100_000)
@example(text="{a: " * 30 + "b" + "}" * 30)
@example(text='"\\UFFFFFFFF"')
@example(text="%YAML 1.1\n---\nyes")
def test_documents(text):
    try:
        found = parse_yaml(text, "here")
    except UserError as error:
        assert str(error).startswith("here")
        assert len(str(error)) < 400
        return
    expected = _read(yaml.compose(text, Loader=yaml.BaseLoader))
    # repr tells 1 from True and from 1.0, and nan is nan.
    assert repr(found) == repr(expected)


texts = st.text(
    st.one_of(
        st.characters(exclude_characters="\x00", exclude_categories=["Cs"]),
        st.sampled_from("\u2028\x85\ufeff\x7f\x1b\t\r\n '\"\\:#-?&*!|>%@`~[]{},=<."),
    ),
    max_size=120,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "config.yaml"


@fuzz(100)
@given(
    rule=texts,
    project=texts,
    rate=st.floats(0, 1e3, exclude_min=True),
    seed=st.integers(0, 2**32 - 1),
)
@example(rule="a" * 300, project=" " * 200, rate=5e-324, seed=0)
@example(rule="word " * 60, project="- " * 90, rate=1e-5, seed=2**32 - 1)
def test_a_written_configuration_is_read_back(file, rule, project, rate, seed):
    plain = Config()
    # Of other names it would be checked that they are registered.
    rule = f"{rule}.py:f"
    config = dataclasses.replace(
        plain,
        seed=seed,
        # Of data.path it would be checked that the file system can have it.
        weighting=dataclasses.replace(plain.weighting, rule=rule),
        fed=dataclasses.replace(plain.fed, learning_rate=rate),
        track=dataclasses.replace(plain.track, project=project),
    )
    text = to_yaml(config)
    file.write_text(text, encoding="utf-8", newline="")
    assert load_config(file) == config
    # Older programs read version 1.1, and get the same.
    assert yaml.safe_load(text)["weighting"]["rule"] == rule
    assert yaml.safe_load(text)["track"]["project"] == project


names = st.one_of(
    st.sampled_from([name for name, *_ in describe_fields()]),
    st.sampled_from(["fed", "seed.x", "fed.", ".rounds", "fed.rounds.x", "Fed.rounds", "x"]),
)
values = st.one_of(
    st.sampled_from(SCALARS),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=6),
    st.sampled_from(
        ["[q_proj]", "[nll, nll]", "[[]]", "{rounds: 3}", "{a: {b: {}}}", "[1, 2", "-"]
    ),
)


@fuzz(200)
@given(pairs=st.lists(st.tuples(names, values, st.booleans()), max_size=3), in_file=documents)
def test_options_and_files(file, pairs, in_file):
    """A configuration that holds only what JSON can, or one line."""
    overrides = []
    for name, value, joined in pairs:
        overrides += [f"--{name}={value}"] if joined else [f"--{name}", value]
    file.write_bytes(in_file.encode("utf-8", "surrogatepass"))
    for source in (None, file):
        try:
            config = load_config(source, overrides)
        except UserError as error:
            assert "\n" not in str(error)
            assert 0 < len(str(error)) < 500
            continue
        text = json.dumps(dataclasses.asdict(config), allow_nan=False)
        assert text.encode()
