"""Each format's escape function: hostile text becomes text, ordinary names stay as they are."""

import csv
import html
import io
import json
import re
import xml.etree.ElementTree

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from feddpa_jax.files import escape

NASTY = (
    "<script>alert('1')</script>|a|`x`\"q\" =1+1 \\input{x} $x$ [red]b[/red] [a](javascript:b) "
    "*c* _d_ # & ~ ^ % {0} %s ]]> --> -- ![i](j) \u2028 \u2029 \x85 \0 \x1b[31m \x07 \x7f \x9b "
    "\u202e abc \ud800 \ufffe \ufdd0 😀 日本 é \x0b \x0c \x1c \r :smile: end"
)
STARTS = ("=1+1", "+a", "-a", "@a", "\ta", "\ra", " =a", "\n=a", "＝a", "--", "-1+1", "-1 [=a]")
ORDINARY = (
    *("text_formatting", "feddpa_f", "client_0", "my.rules.py:gate", "constant", "paper"),
    *("0.50 [0.25, 0.75]", "-0.250 [-0.300, 0.100]", "-1", "1,234", "–", "2.5e-07", "x/a"),
    *("Grüße 日本", "0.5 to local", "runs/2026-11-28/a", "nll: P, minus the paper's", "C 1.2"),
)
TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


def shown(text: str) -> str:
    """What is left of a text in a document, white space aside."""
    pictures = {c: chr(0x2400 + c) for c in range(0x20) if c not in (9, 10)}
    pictures |= {0x7F: "\u2421", 0x85: "\u2424", 0x2028: "\u2424", 0x2029: "\u2424"}
    other = r"[\x80-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
    return re.sub(other, "\ufffd", text.translate(pictures))


def words(text: str) -> str:
    return " ".join(re.split(r"[ \n\t]+", text)).strip()


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_names_stay(text):
    assert escape.terminal(text) == escape.one_line(text) == text
    assert json.loads(escape.json_text(text)) == text
    assert escape.json_text(text) == json.dumps(text, ensure_ascii=False)
    assert escape.markdown(text) == text
    assert html.unescape(escape.html(text)) == text
    (row,) = csv.reader([escape.csv_row([text, "b"])])
    assert row == [text, "b"]


@given(TEXT)
@example(NASTY)
@example("\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
def test_json_is_one_line_and_the_same_text(text):
    line = escape.json_text({"a": text, text: [text]})
    assert len(line.splitlines()) == 1
    line.encode()
    if not re.search(r"[\ud800-\udbff][\udc00-\udfff]", text):  # two halves become one character
        assert json.loads(line) == {"a": text, text: [text]}
        assert eval(escape.python_text(text)) == text
        assert yaml.safe_load(f"base_model: {escape.json_text('x' + text)}") in (
            {"base_model": "x" + text},
            None,
        )


@given(TEXT)
@example(NASTY)
def test_terminals_get_no_control(text):
    for out in (escape.terminal(text), escape.one_line(text)):
        out.encode()
        assert not re.search(r"[^\n\t -\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]", out)
    assert len(escape.one_line(text).splitlines()) <= 1
    assert escape.terminal("\x1b[31m\x9b\u202e") == r"\x1b[31m\x9b\u202e"
    assert escape.terminal(" a\n\tb ") == " a\n\tb "


@given(TEXT)
@example(NASTY)
def test_html_and_svg(text):
    made = f'<svg a="{escape.html(text)}"><text>{escape.html(text)}</text></svg>'
    root = xml.etree.ElementTree.fromstring(made)
    assert [child.tag for child in root] == ["text"]
    assert (root[0].text or "") == shown(text)
    assert words(root.attrib["a"]) == words(shown(text))
    # A browser reads the same characters, none of which HTML forbids.
    assert html.unescape(escape.html(text)) == shown(text)


def test_what_stands_for_what():
    assert escape.html("\0\x1b\x7f\x85\u2028\x9b\u202e\ud800") == "␀␛␡␤␤���"


@given(st.lists(TEXT, min_size=1, max_size=3))
@example([NASTY])
@example(["x\\", "y"])
@example(["_a_", "__b__", "c_"])
@example(["1. a", "- b", "+ c"])
@example(["[a]", "[1](b)", "[1]: c"])
def test_markdown_is_text(cells):
    escaped = [escape.markdown(cell) for cell in cells]
    for cell in escaped:
        assert "<" not in cell and "|" not in cell and len(cell.splitlines()) <= 1
    table = f"| a{' | a' * (len(cells) - 1)} |\n|{'---|' * len(cells)}\n| {' | '.join(escaped)} |\n"
    tokens = MARKDOWN.parse(table)
    found = [t for t in tokens if t.type == "inline"][len(cells) :]
    assert len(found) == len(cells)
    for token, cell in zip(found, cells, strict=True):
        kinds = {child.type for child in token.children or ()}
        assert kinds <= {"text", "text_special"}, (cell, token.children)
        text = "".join(child.content for child in token.children or ())
        assert words(text) == words(shown(cell))
    (_, inline, _) = MARKDOWN.parse(f"a {' '.join(escaped)}")
    assert {child.type for child in inline.children or ()} <= {"text", "text_special"}


def test_code_in_markdown():
    assert escape.markdown_code("runs/a b.yaml") == "`runs/a b.yaml`"
    for text in (NASTY, "`", "a|b", "<b>", " ", "a\nb", ""):
        assert escape.markdown_code(text) == escape.markdown(text)
    block = f"```python\nx = {escape.python_text('```' + NASTY)}\n```\n\n# after"
    fence, heading, *_ = MARKDOWN.parse(block)
    assert (fence.type, heading.type) == ("fence", "heading_open")
    assert "<script" not in block and "</script" not in block
    assert escape.python_text("`<b>` <|a|>") == r'"\x60\x3cb>\x60 <|a|>"'


@given(st.lists(TEXT, min_size=2, max_size=4))
@example([NASTY, *STARTS])
@example(["a;b", "a\tb", "a,b", 'a"b', "a\nb"])
def test_csv_rows_come_back(cells):
    line = escape.csv_row(cells)
    (row,) = csv.reader(io.StringIO(line, newline=""))
    assert len(row) == len(cells)
    for found, cell in zip(row, cells, strict=True):
        assert found.removeprefix("'") == shown(cell).removeprefix("'")
        begin = found.lstrip("\n \u3000\xa0\ufeff")[:1]
        assert not (begin and begin in "=+@\t\r＝＋－＠") or re.match(r"\s*[+][\d.,]", found)


def test_cells_stay_whole_for_readers_with_other_separators():
    assert escape.csv_row(["a;b", "c\td", " e"]) == '"a;b","c\td"," e"\n'
    assert escape.csv_row(["a b", "c.d"]) == "a b,c.d\n"


def test_formulas_become_text_and_numbers_stay():
    for text in STARTS:
        (row,) = csv.reader(io.StringIO(escape.csv_row([text, "b"]), newline=""))
        assert row == [f"'{shown(text)}", "b"]
    for text in ("-0.5", "+1e-3", "-1,234.5", "-0.25 [-0.30, 0.10]", "a=1", "a-b", "5"):
        assert escape.csv_row([text]).strip('"\n') == text


@given(TEXT)
@example(NASTY)
def test_latex_has_nothing_special_left(text):
    made = escape.latex(text)
    bare = re.sub(r"\\(text[a-z]+\{\}|[&%$#_{}])", "", made)
    bare = re.sub(r"-\{\}(?=-)", "-", bare).removeprefix("{}")
    assert not re.search(r"[\\{}$&#^_%~<>|`\n\t]", bare)
    assert "--" not in made
    assert not re.search(r"[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", made)
    assert not made.lstrip().startswith(("[", "*"))
    made.encode()


def test_latex_by_hand():
    assert escape.latex("\\input{x} $1 a_b --") == (r"\textbackslash{}input\{x\} \$1 a\_b -{}-")
    assert escape.latex("[red]") == "{}[red]"
    assert escape.latex("\x1b") == r"\textbackslash{}x1b"
