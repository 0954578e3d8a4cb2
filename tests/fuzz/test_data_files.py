"""JSON lists, JSON lines and CSV files of any content: refused in one line, or read as they are."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feddpa_jax.data.records import read_json_lines, read_json_list
from feddpa_jax.data.tables import read_tables
from feddpa_jax.types import Example, UserError
from tests.fuzz.conftest import fuzz

FIELDS = ("instruction", "output", "input", "task", "category")
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["a", "7", " ", "", "\u2028", "\x85", "\x00", "\ufeff", "\ud800", "😀", "\r\n"]
    ),
)
VALUES = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(TEXTS, max_size=2),
    st.dictionaries(TEXTS, TEXTS, max_size=2),
)
NAMES = st.one_of(st.sampled_from([*FIELDS, "Input", "output ", "source"]), TEXTS)
RECORDS = st.one_of(
    st.fixed_dictionaries(
        {"instruction": TEXTS, "output": TEXTS},
        optional={name: VALUES for name in (*FIELDS[2:], "Task", "source")},
    ),
    st.dictionaries(NAMES, VALUES, max_size=5),
    VALUES,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few bytes changed, put in, or taken out."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(changed)))
        put = draw(st.sampled_from([b"", b'"', b"{", b"]", b",", b"\n", b"\x00", b"\xff", b"\\u"]))
        changed[place : place + draw(st.integers(0, 2))] = put
    return bytes(changed)


@st.composite
def files(draw: st.DrawFn, *, lines: bool) -> bytes:
    """A file's bytes: records as JSON, and perhaps some damage."""
    records = draw(st.lists(RECORDS, max_size=4))
    plain = draw(st.booleans())
    if lines:
        end = draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
        text = end.join(json.dumps(record, ensure_ascii=plain) for record in records)
    else:
        text = json.dumps(records, ensure_ascii=plain, indent=draw(st.sampled_from([None, 1])))
    content = draw(st.sampled_from(["", "\ufeff"])) + text
    return draw(damaged(content.encode("utf-8", "surrogatepass")))


def expected(record: Any) -> Example:
    """A record as the data's description has it."""
    empty = {name: optional(record.get(name)) for name in FIELDS[2:]}
    return Example(record["instruction"], record["output"], **empty)


def optional(value: Any) -> Any:
    """An optional field: null and NaN say that there is none."""
    return "" if value is None or value != value else value or ""


def check(file: Path, content: bytes, *, lines: bool) -> None:
    """One line that names the file, or what `json` reads from it."""
    file.write_bytes(content)
    try:
        found = (read_json_lines if lines else read_json_list)(file)
    except UserError as error:
        assert str(file) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return
    whole = content.decode("utf-8-sig")
    parts = [line for line in whole.split("\n") if line.strip()] if lines else [whole]
    values = [json.loads(part) for part in parts]
    records = values if lines else values[0]
    assert found == tuple(map(expected, records))
    for record in records:
        assert record["instruction"].strip()
        assert record["output"].strip()
        assert all(isinstance(optional(record.get(name)), str) for name in FIELDS)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data") / "local_training_0.json"


@fuzz(250)
@given(content=files(lines=False))
@example(content=b"[" * 200_000)
@example(content=b'[{"instruction": "a", "output": "b", "task": ' + b"[" * 500 + b"]" * 500 + b"}]")
@example(content=b'[{"instruction": "a", "output": "b", "output": "c"}]')
@example(content=b'[{"instruction": "a", "output": "b", "score": NaN}]')
@example(content=b'[{"instruction": "a", "output": "b", "score": 1e999}]')
@example(content=b'[{"instruction": "a", "output": "b", "score": 1' + b"0" * 5000 + b"}]")
def test_json_lists(file, content):
    check(file, content, lines=False)


@fuzz(250)
@given(content=files(lines=True))
@example(content=b"{" * 200_000)
@example(content=b'{"instruction": "a", "output": "b"}\r\n \r\n{"instruction": "c", "output": "d"}')
@example(content='{"instruction": "a\u2028b", "output": "c\x85d"}'.encode())
@example(content=b'{"instruction": "a", "output": "b"} {"instruction": "a", "output": "b"}')
def test_json_lines(file, content):
    check(file, content, lines=True)


@fuzz(150)
@given(
    columns=st.lists(TEXTS, min_size=1, max_size=3, unique=True).filter(any),
    data=st.data(),
    separator=st.sampled_from([",", "\t"]),
)
def test_csv_texts_are_read_as_they_were_written(file, columns, data, separator):
    row = st.lists(TEXTS, min_size=len(columns), max_size=len(columns))
    rows = data.draw(st.lists(row, max_size=3))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([columns, *rows])
    content = text.getvalue().encode("utf-8", "surrogatepass")
    content = data.draw(damaged(content)) if data.draw(st.booleans()) else content
    file.write_bytes(content)
    try:
        table = read_tables([file], "csv", separator=separator)
    except UserError as error:
        assert str(file) in str(error)
        assert len(str(error)) < 400
        return
    if content == text.getvalue().encode("utf-8", "surrogatepass"):
        assert list(table.columns) == columns
        assert [list(record.values()) for record in table.records] == list(filter(any, rows))
