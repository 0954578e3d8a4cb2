"""JSON: what `json` reads is read alike, and everything else is one line that names the file."""

import json

import pytest

from feddpa_jax.files.strict_json import DEPTH, parse_json, read_json, read_object, read_text
from feddpa_jax.types import UserError


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -2.5, None, True], "b": {"c": "\u2028 ü 😀"}},
        [],
        0,
        "x",
        10**30,
        1e308,
        -(10**299),
    ],
)
def test_what_json_writes_is_read(value):
    for ascii_only in (True, False):
        found = parse_json(json.dumps(value, ensure_ascii=ascii_only), "f.json")
        assert found == value
        assert type(found) is type(value)


def test_depth_up_to_the_limit():
    text = "[" * DEPTH + "]" * DEPTH
    assert json.dumps(parse_json(text, "f")) == text
    with pytest.raises(UserError, match=r"f, line 3: is nested more than 100 deep"):
        parse_json(f"[{text}]", "f", line=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested more than 100 deep"),
        ("[" * 200_000 + "]" * 200_000, "nested more than 100 deep"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested more than 100 deep"),
        ('{"a": 1,\n "a": 2}', "key 'a' appears twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("1e999", "number '1e999' is too large"),
        ("1" * 301, r"number '1{37}\.\.\.' is too large"),
        ("1" * 5000, "is too large"),
        ('"\\ud800"', "f.json: its text holds half of a surrogate pair"),
        ('{"a": ["\\ud83d\\ude00", "\\ud800"]}', r"f.json: a\[1\] holds half of a surrogate pair"),
        ('{"a": {"\\uDFFF": 1}}', "f.json: a name in a holds half of a surrogate pair"),
        ('{"a": 1,\n\n', "line 3: broken JSON"),
        ("", "line 1: broken JSON"),
        ("{}{}", "line 1: broken JSON: Extra data"),
        ('"\0"', "line 1: broken JSON"),
        ("{'a': 1}", "line 1: broken JSON"),
    ],
    ids=range(17),
)
def test_refused(text, words):
    with pytest.raises(UserError, match=words) as error:
        parse_json(text, "f.json")
    assert str(error.value).startswith("f.json")
    assert len(str(error.value)) < 150


def test_files_of_ours_may_hold_nan():
    assert str(parse_json("[NaN, Infinity]", "f", finite=False)) == "[nan, inf]"


def test_files(tmp_path):
    file = tmp_path / "f.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xbc\r\n"}'.replace(b"\r\n", b"\\r\\n"))
    assert read_object(file) == {"a": "ü\r\n"}
    file.write_text("[1]")
    assert read_json(file) == [1]
    with pytest.raises(UserError, match=r"f\.json: holds no JSON object"):
        read_object(file)
    file.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"f\.json: not UTF-8 text \(byte 7\)"):
        read_json(file)
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_text(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_text(tmp_path / "none.json")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot be read: "):
        read_text(tmp_path / "loop")
