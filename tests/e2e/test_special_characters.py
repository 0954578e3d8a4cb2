"""One nasty name in every place that data or a path can put it, through every output of a run."""

import csv
import html.parser
import io
import json
import re
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console
from rich.table import Table

from feddpa_jax.cli import program as cli
from feddpa_jax.cli.console import Reporter
from feddpa_jax.cli.program import main
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.progress import follow

pytestmark = pytest.mark.usefixtures("shared_steps")

NASTY = (
    "=1+1 <script>alert('1')</script>|`x`\"q\"\\input{x}$x$[red]b[/red][/] &amp; *c* ]]>-->--\n"
    "\n| a | b |\n# h \u2028\u2029\x85\0\x1b[31m\x07\x9b\u202e{0} %s \ufffe\U0001f600 \r\x0b :x: "
)
# As much of it as a path may hold.
PATH = "=\x1b[31m\u202e\u2028\x85[red]<img src=x>|`x`\"'$x$&%_#\\~^{}\n* é\U0001f600 :x:"
FORBIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff\ufffe]")
SMALL = [
    *("--model.path", "tiny", "--model.dtype", "float32", "--fed.method", "feddpa_f"),
    *("--data.max_length", "256", "--data.validation", "1", "--lora.rank", "2"),
    *("--fed.rounds", "1", "--fed.local_epochs", "1", "--fed.batch_size", "2"),
    *("--fed.micro_batch_size", "null", "--eval.max_new_tokens", "3"),
    *("--weighting.support", "1", "--eval.modes", "[global, instance]"),
]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


class Outputs(NamedTuple):
    """Everything that the commands wrote and printed."""

    run: Path
    export: Path
    report: Path
    printed: dict[str, str]


def tasks(client: str) -> list[str]:
    return [f"{NASTY} {client}", f"{client}: plain"]


def write_data(folder: Path) -> None:
    for c, client in enumerate(("anna", "ben")):
        (folder / "clients" / client).mkdir(parents=True)
        for file, count in (("train", 4), ("test", 2)):
            records = [
                {
                    "instruction": f"say {c + i} [red]\x1b[31m\u2028",
                    "output": f"{i}\u2028{NASTY}",
                    "task": tasks(client)[i % 2],
                    "category": NASTY,
                }
                for i in range(count)
            ]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "clients" / client / f"{file}.jsonl").write_text(lines)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Iterator[Outputs]:
    place = tmp_path_factory.mktemp("nasty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run, data = place / f"{PATH} run", place / "data"
        write_data(data)
        rule = Path(f"{PATH}.py")
        rule.write_text("def my(query_BD):\n    return 0.25 + 0 * query_BD[:, 0]\n")
        printed: dict[str, str] = {}

        def command(name: str, *arguments: str, code: int = 0) -> None:
            out = io.StringIO()
            patch.setattr(cli.sys, "stdout", out)
            patch.setattr(cli.sys, "stderr", out)
            try:
                assert main([name.split()[0], *arguments]) == code, out.getvalue()
            finally:
                patch.undo()
                patch.chdir(place)
            printed[name] = out.getvalue()

        command("data", "--data.path", str(data), *SMALL[:4])
        command("train", "--run-dir", str(run), "--data.path", str(data), *SMALL)
        rules = ["--rules", f"cosine,{rule}:my", "--layers", "2", "--exact", "0"]
        command("weigh", "--run-dir", str(run), "--scales", "0.5", *rules)
        page = place / "pages" / "page.html"
        command("report", str(run), "--out", str(page))
        merged = ["--mixed", "0.5", "--merged", "anna:0.5"]
        command("export", "--run-dir", str(run), "--out", str(place / "out"), *merged)
        for decoded in (NASTY, f"  \t{NASTY}\n "):
            patch.setattr(Tokenizer, "decode_continuation", lambda self, ids, text=decoded: text)
            ask = ["--run-dir", str(run), "--client", "ben", "--prompt", NASTY.replace("\0", "")]
            command(f"generate {len(printed)}", *ask)
        command("eval error", "--run-dir", str(place / f"none{PATH}"), code=2)
        command("fields error", f"--{NASTY}", code=2)
        yield Outputs(run, place / "out", page, printed)


def test_what_is_printed_controls_no_terminal(outputs):
    for name, text in outputs.printed.items():
        assert not FORBIDDEN.search(text), name
        if "error" in name:
            assert len(text.splitlines()) == 1, name
    generated = [text for name, text in outputs.printed.items() if name.startswith("generate")]
    first, second = (text.partition("\n")[2] for text in generated)
    told = FORBIDDEN.sub(lambda m: repr(m[0])[1:-1], NASTY).replace("\r", r"\x0d")
    told = told.replace("\\r", r"\x0d")
    assert (first, second) == (f"{told}\n", f"  \t{told}\n \n")
    # Nothing vanishes as markup or becomes an emoji; paths stay on their line.
    rows = [line.split("│") for line in outputs.printed["data"].splitlines() if "│" in line]
    cells = "".join(row[2].strip() for row in rows)
    assert "$x$[red]b[/red][/]" in cells and ":x:" in cells and r"\x07\x9b" in cells
    assert any(
        line.startswith("run folder: ") and r"\x1b" in line and r"\n" in line
        for line in outputs.printed["train"].splitlines()
    )
    assert "[red]" in outputs.printed["weigh"]


def test_tables_on_a_terminal():
    file = io.StringIO()
    reporter = Reporter(Console(file=file, force_terminal=True, color_system=None, width=60))
    table = Table("[red]h :smile:", title="[/] \x1b]0;title\x07")
    table.add_row("[/red] \x1b[31m :smile:")
    reporter.show(table)
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())  # the table's own styles
    assert "\x1b" not in text and "\x07" not in text
    for word in ("[red]h :smile:", r"[/] \x1b]0;title\x07", r"[/red] \x1b[31m :smile:"):
        assert word in text
    reporter.say("[red]:smile: a\nb")
    assert file.getvalue().endswith("[red]:smile: a\\nb\n")
    with follow("[red]\x1b[5m", 2, "[b]", reporter.on_progress) as advance:
        advance(1, "[/red]\x07")
    assert "\x1b[5m" not in file.getvalue() and "\x07" not in file.getvalue()


def test_lines_of_answers(outputs):
    text = (outputs.run / "eval" / "instances.jsonl").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) == text.count("\n") == 2 * 2 * 4
    found = [json.loads(line) for line in lines]
    assert {line["task"] for line in found} == {t for c in ("anna", "ben") for t in tasks(c)}
    assert {line["target"] for line in found} == {f"{i}\u2028{NASTY}" for i in range(2)}
    assert not FORBIDDEN.search(text)


class Page(html.parser.HTMLParser):
    """A page's elements, texts and attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page(outputs):
    text = outputs.report.read_text(encoding="utf-8")
    assert not FORBIDDEN.search(text)
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "b1", "red"}
    assert {name for name, _ in page.attributes if name.startswith("on")} == set()
    assert "alert" not in "".join(value or "" for _, value in page.attributes)
    assert any(told.startswith("=1+1 <script>al") and told.endswith("…") for told in page.texts)
    assert any("=\u241b[31m" in told for told in page.texts)


def test_plots(outputs):
    files = sorted((outputs.report.parent / "page_figures").iterdir())
    assert len(files) > 10
    for file in files:
        root = xml.etree.ElementTree.fromstring(file.read_bytes())
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        known = {"svg", "title", "text", "g", "defs", "path", "use"}
        assert names <= known
        told = "".join(root.itertext())
        assert not FORBIDDEN.search(told)
    heat = next(file for file in files if file.name.startswith("clients_"))
    texts = xml.etree.ElementTree.fromstring(heat.read_bytes()).findall(".//{*}text")
    told = [text.text or "" for text in texts]
    # The blanks, dollar signs and tags of a name are text; a long one is cut.
    assert any(text.startswith("=1+1 <script>") and text.endswith("…") for text in told)
    assert "anna: plain" in told


def test_tables_beside_the_page(outputs):
    folder = outputs.report.parent / "page_tables"
    names = {file.stem for file in folder.iterdir()}
    assert len(names) >= 5 and len(list(folder.iterdir())) == 3 * len(names)
    for name in names:
        text = (folder / f"{name}.csv").read_text(encoding="utf-8")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        assert len({len(row) for row in rows}) == 1
        for cell in (cell for row in rows for cell in row):
            assert not cell.startswith(("=", "@", "+", "\t", "\r"))
        markdown = (folder / f"{name}.md").read_text(encoding="utf-8")
        tokens = MARKDOWN.parse(markdown)
        assert sum(token.type == "tr_open" for token in tokens) == len(rows)
        columns = sum(token.type == "th_open" for token in tokens)
        assert sum(token.type == "td_open" for token in tokens) == columns * (len(rows) - 1)
        assert columns <= len(rows[0])  # an interval has three columns of numbers
        assert {c.type for t in tokens for c in t.children or ()} <= {"text", "text_special"}
        assert "<" not in markdown
        latex = (folder / f"{name}.tex").read_text(encoding="utf-8")
        body = latex.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
        assert "input{" not in body and "$x$" not in body.replace(r"\$", "")
        lines = [line for line in body.splitlines() if line and line != r"\midrule"]
        assert len(lines) == len(rows)
        for line in lines:
            assert line.endswith(r" \\")
            assert len(re.split(r"(?<!\\) & ", line)) == columns
        assert not FORBIDDEN.search(text + markdown + latex)


def test_settings_of_the_laboratory(outputs):
    text = (outputs.run / "weigh" / "settings.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    named = {row["rule"] for row in rows}
    assert len(named) == 2 and all(not rule.startswith("=") for rule in named)
    assert all(None not in row and None not in row.values() for row in rows)
    assert not FORBIDDEN.search(text)
    (kept,) = (outputs.run / "weigh" / "rules").iterdir()
    assert re.fullmatch(r"[\w.-]+\.py", kept.name)


def test_cards(outputs):
    cards = list(outputs.export.rglob("README.md"))
    assert len(cards) == 8
    for file in cards:
        card = file.read_text(encoding="utf-8")
        assert not FORBIDDEN.search(card)
        _, front, rest = card.split("---\n", 2)
        assert yaml.safe_load(front)["tags"] == ["lora", "federated-learning", "feddpa"]
        assert "<script" not in card and "javascript" not in card
        tokens = MARKDOWN.parse(rest)
        assert not {"html_block", "html_inline"} & {t.type for t in tokens}
        assert not [c for t in tokens for c in t.children or () if c.type == "html_inline"]
        headings = [t for t in tokens if t.type == "heading_open"]
        assert {t.tag for t in headings} == {"h1", "h2"}
        assert sum(t.tag == "h1" for t in headings) == 1
        for table in rest.split("\n\n"):
            if table.startswith("|"):
                assert len({len(row.split("|")) for row in table.split("\n")}) == 1
    data = (outputs.export / "clients" / "anna" / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in data.split("\n") if line.startswith("| anna ")]
    assert "=1+1 &lt;script&gt;alert('1')&lt;/script&gt;&#124;\\`x\\`" in row
    json.loads((outputs.export / "clients" / "anna" / "weighting.json").read_text())
