"""Lists that are read value by value give what the whole file gives, and its errors."""

import json
import random
from pathlib import Path

import pytest

from feddpa_jax.files import json_list
from feddpa_jax.files.json_list import glance_at_list, stream_list
from feddpa_jax.files.strict_json import parse_json, read_json
from feddpa_jax.types import UserError

VALUES = [1, -2.5e3, True, None, "é\u2028]", {}, [], [[1], {"a": [2]}], {"b": 'x\\"y,['}, "", 12345]


@pytest.fixture(params=[1, 3, 1 << 20])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that are read at a time: characters and values go over the ends."""
    monkeypatch.setattr(json_list, "_AT_ONCE", request.param)
    return request.param


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.usefixtures("at_once")
def test_the_values(tmp_path: Path, indent: int | None):
    file, rng = tmp_path / "a.json", random.Random(0)
    for count in (0, 1, 2, 40):
        values = rng.choices(VALUES, k=count)
        text = json.dumps(values, indent=indent, ensure_ascii=count < 9)
        file.write_text(f"\ufeff {text}\n ", encoding="utf-8")
        assert list(stream_list(file)) == values == read_json(file)
        glanced = list(glance_at_list(file))
        assert [value for value, _ in glanced] == values
        assert [parse_json(own, "here") for _, own in glanced] == values


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "text",
    [
        *("[1, 2", "[1 2]", "[1,]", "[,1]", "[1]]", "[1] 2", "[", "", "{}", '["a', '["\\ud800"]'),
        *('[1, {"a": 1, "a": 2}]', "[1" + "0" * 400 + "]", "[" * 120 + "]" * 120, "[1, tru]"),
    ],
)
def test_what_is_wrong_is_said_as_of_a_whole_file(tmp_path: Path, text: str):
    file = tmp_path / "a.json"
    file.write_text(text)
    if text == "{}":
        assert read_json(file) == {}
        wanted = "changed while it was read"
    else:
        with pytest.raises(UserError) as whole:
            read_json(file)
        wanted = str(whole.value)
    with pytest.raises(UserError) as error:
        list(stream_list(file))
    assert wanted in str(error.value)


def test_text_that_is_no_utf8(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_bytes(b'[1, "\xff"]')
    with pytest.raises(UserError, match="not UTF-8 text"):
        list(stream_list(file))
