r"""Text from data made safe for what it is written into: one function for each format.

Names of tasks, rules, files and clients, and answers, may hold anything: markup, formulas, control
characters. Only these functions escape; ordinary names pass through them unchanged.
"""

import json
import re
from collections.abc import Sequence
from html import escape as _escape_html
from typing import Any

# No text: control characters but tab and line feed, separators of lines and paragraphs, what turns
# the direction of writing, halves of surrogate pairs, and code points that are no characters.
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef"
    "\ufffe\uffff]"
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "\n": " ",
    "\t": " ",
}
# A number, and perhaps its interval: no formula, although it may begin with a sign.
_NUMBER = re.compile(r"[-+]?[\d.,]+(?:[eE][-+]?\d+)?(?: \[[-+\d.,eE ]*\])?")
# Nothing in it is special in Markdown, not even side by side.
_PLAIN_CODE = re.compile(r"[\w./:@=,+~ -]+")


def _code(match: re.Match[str]) -> str:
    r"""A character as `\x1b` or `\u2028`."""
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def _picture(match: re.Match[str]) -> str:
    """A visible character that stands for a hidden one."""
    number = ord(match[0])
    if number < 0x20:
        return chr(0x2400 + number)
    return {0x7F: "\u2421", 0x85: "\u2424", 0x2028: "\u2424", 0x2029: "\u2424"}.get(
        number, "\ufffd"
    )


def _visible(text: str) -> str:
    return _HIDDEN.sub(_picture, text)


def terminal(text: str) -> str:
    r"""Text that cannot control a terminal: hidden characters as `\x1b`.

    Line feeds and tabs stay.

    >>> terminal("\x1b[31mred\tand\nso on")
    '\\x1b[31mred\tand\nso on'
    """
    return _HIDDEN.sub(_code, text)


def one_line(text: str) -> str:
    r"""The same on one line: line feeds and tabs are shown too.

    >>> one_line("a file\nof two lines\x07")
    'a file\\nof two lines\\x07'
    """
    return terminal(text).replace("\n", r"\n").replace("\t", r"\t")


def short(text: str, most: int = 80) -> str:
    """A text for a message, cut where it is longer than `most` characters.

    >>> short("a long name", 8)
    'a lon...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."


def html(text: str) -> str:
    """Text or an attribute's value of HTML, and of SVG inside and outside of a page.

    Hidden characters, which XML forbids and HTML does not know, become pictures of them.

    >>> html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return _escape_html(_visible(text))


def plot_text(text: str) -> str:
    r"""Text of a figure, on one line: hidden characters, line feeds and tabs as pictures of them.

    It is no markup; what writes the figure's file escapes what is special there.

    >>> plot_text("a\nb")
    'a␊b'
    """
    return _visible(text).replace("\n", "\u240a").replace("\t", "\u2409")


def json_text(value: Any, *, indent: int | None = None) -> str:
    r"""JSON as people read it, without raw control characters or separators of lines.

    A value without `indent` stays on one line for every reader, `str.splitlines` among them. A text
    is also a literal of YAML and of Python.

    Raises:
      TypeError: something in the value is not JSON.

    >>> json_text("Grüße\u2028")
    '"Grüße\\u2028"'
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # They stand in texts alone, where an escape means the same.
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def python_text(text: str) -> str:
    r"""A literal of Python for a fenced block of Markdown; no fence or tag can begin in it.

    >>> python_text("```<b>")
    '"\\x60\\x60\\x60\\x3cb>"'
    """
    literal = json_text(text).replace("`", r"\x60")
    return re.sub(r"<(?=[a-zA-Z/!?])", r"\\x3c", literal)


def markdown(text: str) -> str:
    r"""Text of Markdown, in a cell of a table too; it stays within its line and its cell.

    Underscores within words and brackets around numbers are not special and stay.

    >>> markdown("*a_b* | <c> [x] 1.0 [0.5, 1.5]")
    '\\*a_b\\* &#124; &lt;c&gt; \\[x\\] 1.0 [0.5, 1.5]'
    """
    text = " ".join(_visible(text).split("\n")).replace("\t", " ")
    text = re.sub(r"[\\`*~#$]", r"\\\g<0>", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    text = re.sub(r"\[(?![-+\d.][-+\d., ]*\](?![(\[:]))", r"\\[", text)
    text = re.sub(r"(?<!\[)(?<![-+\d., ])\]|\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"^(\s*)([-+=](?=[\s-]|$|=))", r"\1\\\2", text)
    text = re.sub(r"^(\s*\d+)([.)](?=\s|$))", r"\1\\\2", text)
    # An entity is no end of a cell, whatever splits the row.
    return _escape_html(text, quote=False).replace("|", "&#124;")


def markdown_code(text: str) -> str:
    r"""A span of code in Markdown; plain text where it holds what could end one.

    >>> markdown_code("runs/a.yaml"), markdown_code("a`b")
    ('`runs/a.yaml`', 'a\\`b')
    """
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) and text.strip() else markdown(text)


def latex(text: str) -> str:
    r"""Text of LaTeX, in a cell of a table too, in UTF-8.

    >>> latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    text = "".join(_LATEX.get(letter, letter) for letter in terminal(text))
    text = re.sub("-(?=-)", "-{}", text)  # two would be a dash
    # After the end of a row these would be an argument of it.
    return f"{{}}{text}" if text.lstrip().startswith(("[", "*")) else text


def csv_row(cells: Sequence[str]) -> str:
    r"""A line of a CSV file, with its line feed; no cell is a formula to a spreadsheet.

    A cell that could be one is preceded by an apostrophe, which spreadsheets take for "text".

    >>> csv_row(["a, b", "=1+1", "-0.5"])
    '"a, b",\'=1+1,-0.5\n'
    """
    return ",".join(map(_csv_cell, cells)) + "\n"


def _csv_cell(text: str) -> str:
    text = csv_text(text)
    quoted = any(letter in text for letter in ',;"\n\t') or text != text.strip()
    return '"' + text.replace('"', '""') + '"' if quoted else text


def csv_text(text: str) -> str:
    """A cell of a CSV file before it is quoted: visible, and no formula to a spreadsheet.

    >>> csv_text("=1+1")
    "'=1+1"
    """
    first = text.lstrip("\n \u3000\xa0\ufeff")[:1]
    text = _visible(text) if first != "\r" else f"'{_visible(text)}"
    if first and first in "=+-@\t＝＋－＠" and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return text


def some_names(names: Sequence[str], most: int = 12) -> str:
    """Names for a message; of many, the first.

    >>> some_names(["anna", "ben", "cleo"], most=2)
    'anna, ben and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
