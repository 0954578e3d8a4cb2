"""YAML: values as version 1.2 reads them, and one line for everything else."""

import math

import pytest

from feddpa_jax.files.strict_yaml import LARGEST, parse_yaml, write_yaml
from feddpa_jax.types import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, text) for text in ("yes", "No", "on", "OFF", "y", "n", "tRUE", "nULL")],
        *[(text, text) for text in ("1_000", "1:30", "190:20:30.15", "0b11", "1e", "e5", "+.e1")],
        *[(text, text) for text in ("2024-01-01", "2001-12-14t21:59:43.10-05:00", "<<", "=", "٣")],
        *[(text, text) for text in ("1.2.3", "+", ".", "0x", "0o8", "-0x1", "inf")],
        *[(text, None) for text in ("~", "null", "Null", "NULL", "", "# remark")],
        *[(text, True) for text in ("true", "True", "TRUE")],
        *[(text, False) for text in ("false", "False", "FALSE")],
        *[
            ("0", 0),
            ("-7", -7),
            ("+12", 12),
            ("0x1F", 31),
            ("0o17", 15),
            ("1" * 300, int("1" * 300)),
        ],
        *[("3e-4", 3e-4), ("1.", 1.0), (".5", 0.5), ("-1.5E+3", -1500.0), ("1e3", 1000.0)],
        *[("007.5", 7.5), (".inf", math.inf), ("-.INF", -math.inf), ("+.Inf", math.inf)],
        *[("'yes'", "yes"), ('"1"', "1"), ('"\\u00e9\\x41"', "éA"), ("|\n a\n b\n", "a\nb\n")],
        *[("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}), ("\ufeffa: 1", {"a": 1})],
        *[
            ("---\na: 1\n...\n", {"a": 1}),
            ("%YAML 1.2\n---\n1", 1),
            ("[1, {a: b}]", [1, {"a": "b"}]),
        ],
        *[("{<<: 1}", {"<<": 1}), ("1: a", {1: "a"}), ("true: a", {True: "a"})],
    ],
)
def test_values(text, value):
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan(text):
    assert math.isnan(parse_yaml(text, "here"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 010", "line 1: .*010 starts with a zero.*write 10, or quote it"),
        ("a: -08", "-08 starts with a zero.*write 8"),
        ("a: 00", "00 starts with a zero"),
        ("a: " + "9" * 301, "number 9{20}... is too large"),
        ("a: 0x" + "f" * 5000, "number 0xf+... is too large"),
        ("a: !!python/object/apply:os.system [ls]", "tag .*os.system is not supported"),
        ("a: !!str 1", "tag tag:yaml.org,2002:str is not supported; leave it out, and quote"),
        ("a: !!binary aGk=", "tag .*binary is not supported"),
        ("a: !x 1", "tag !x is not supported"),
        ("a: &x 1\nb: *x", "line 1: .*anchor &x is not supported"),
        ("&a [*a]", "anchor &a is not supported"),
        ("a: *x", r"alias \*x is not supported"),
        ("a: 1\nb: 2\na: 3", "line 3: .*a appears twice"),
        ('a: 1\n"a": 3', "line 2: .*a appears twice"),
        ("{a: {b: 1, b: 2}}", "b appears twice"),
        ("? [1]\n: 2", "a key is no text"),
        ("? {a: b}\n: 2", "a key is no text"),
        ("a:\n\t- 1", "line 2: not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2: .*but found another document"),
        ("a: 1\n\0", r"line 2: .*character U\+0000 is not allowed"),
        ("a: \x1b", r"line 1: .*character U\+001B is not allowed"),
        ('a: "\\0"', r"here: .*holds the character U\+0000"),
        ('a: ["\\ud800"]', "half of a surrogate pair"),
        ('{"\\ud800": 1}', "half of a surrogate pair"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ('a: "x\u2028y"', r"U\+2028 must be written as \\u2028 in double quotes"),
        ("a: x\n\x85", r"line 2: .*U\+0085 must be written"),
        ("[" * 200_000, "nested more than 20 deep"),
        ("{a: " * 200_000, "nested more than 20 deep"),
        ("a: 1\n" * 200_001, r"1,000,005 characters are too many"),
        ("%YAML 2.0\n---\na", "not valid YAML"),
        ("a: b: c", "line 1: not valid YAML"),
        ("a: 'b", "not valid YAML"),
        ("@x", "not valid YAML"),
    ],
    ids=range(34),
)
def test_refused(text, words):
    with pytest.raises(UserError, match=words) as error:
        parse_yaml(text, "here")
    assert str(error.value).startswith("here")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 220


def test_the_largest_file():
    text = "a: " + "b" * (LARGEST - 3)
    assert parse_yaml(text, "here") == {"a": "b" * (LARGEST - 3)}
    with pytest.raises(UserError, match="too many"):
        parse_yaml(text + "b", "here")


LOOKALIKES = ["yes", "010", "0o10", "0x1", "1_000", "1:30", "~", "", "=", "<<", "!x", "&a", "- a"]
AWKWARD = [
    "a: b",
    "a #b",
    " a ",
    "'",
    '"',
    "\\",
    "\t",
    "a\r\nb",
    "\x7f",
    "\x1b[1m",
    "a\u2028b",
    "\x85",
]


@pytest.mark.parametrize("text", [*LOOKALIKES, *AWKWARD, "\ufeff", "😀"])
def test_text_survives_both_versions(text):
    """Older programs, PyYAML among them, read version 1.1."""
    import yaml

    for long in (text, f"{text} " * 60 + text):
        written = write_yaml({"path": long, "list": [long]})
        assert parse_yaml(written, "here") == {"path": long, "list": [long]}
        assert yaml.safe_load(written) == {"path": long, "list": [long]}
