"""The style of all figures, and figures as SVG and PDF that are the same bytes every time."""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feddpa_jax.files.escape import plot_text

# Points in a pixel of CSS: figures are laid out in pixels.
POINT = 0.75
# Widths in pixels: of the page's column, of half of it or of a phone, and of a page of paper.
WIDE, NARROW, PAPER = 940, 400, 680
TEXT, SMALL = 12.5, 11.0

# The page replaces them by variables of the same names, which are other colours in the dark.
COLOURS = {
    "ink": "#1a1c20",
    "mute": "#5a6069",
    "page": "#ffffff",
    "rule": "#d9dee4",
    "c0": "#0062a3",
    "c1": "#c24e00",
    "c2": "#00785a",
    "c3": "#a5437c",
    "c4": "#6a6f00",
    "c5": "#5b4bb5",
}
INK, MUTE, PAGE, RULE, *SERIES = COLOURS.values()
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
_FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT * POINT,
    "text.color": INK,
    "text.parse_math": False,  # A name may hold dollar signs.
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAGE,
    "grid.color": RULE,
    "grid.linewidth": POINT,
    "lines.solid_capstyle": "round",
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.color": MUTE,
    "ytick.color": MUTE,
    "xtick.labelsize": SMALL * POINT,
    "ytick.labelsize": SMALL * POINT,
    "svg.fonttype": "none",  # Text stays text: it can be read, searched and selected.
    "svg.hashsalt": "feddpa",
    "pdf.fonttype": 42,  # Journals refuse type 3, which would be written faster.
    "savefig.dpi": "figure",
}


class Plot(Figure):
    """A matplotlib figure that a notebook shows without pyplot; its label is its title."""

    def _repr_svg_(self) -> str:
        return to_svg(self)

    def place(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place in pixels, from the upper left corner."""
        w, h = self.get_size_inches() * 72 / POINT
        return self.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))

    def write(self, x: float, y: float, text: str, **options) -> None:
        """A text at a place in pixels, from the upper left corner; shown as it is."""
        w, h = self.get_size_inches() * 72 / POINT
        self.text(x / w, 1 - y / h, plot_text(text), **options)


@contextmanager
def style() -> Iterator[None]:
    """The style, whatever the user's own; matplotlib's settings are as before at the end."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # No font has every character of every name; a browser looks for one that has it.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        yield


def new_plot(title: str, width: float, height: float) -> Plot:
    """An empty figure of so many pixels.

    Args:
      title: for those who cannot see it.
      width: in pixels of CSS.
      height: likewise.
    """
    figure = Plot(figsize=(width * POINT / 72, height * POINT / 72))
    figure.set_label(plot_text(title))
    return figure


def em(letter: str) -> float:
    """About the width of a letter in units of the font's size, rather more than less."""
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF" or ord(letter) > 0xFFFF:
        return 1.15
    if letter in "MWmw@%":
        return 0.98
    if letter in "iljftrI.,:;'|!()[] ":
        return 0.42
    return 0.72 if letter.isupper() else 0.64


def text_width(text: str, size: float = TEXT, *, bold: bool = False) -> float:
    """About the width of a text in pixels, rather more than less."""
    return size * (1.1 if bold else 1.0) * sum(map(em, plot_text(text)))


def fitted(text: str, width: float, size: float = TEXT, *, bold: bool = False) -> str:
    """A text, cut where it is wider than so many pixels."""
    size *= 1.1 if bold else 1.0
    if text_width(text, size) <= width:
        return text
    kept, room = "", width - size
    for letter in plot_text(text):
        room -= size * em(letter)
        if room < 0:
            break
        kept += letter
    return f"{kept}…"


def number(value: float) -> str:
    """A tick's label: no digit too many."""
    return f"{value:.10g}".replace("-", "\u2212")


def to_svg(figure: Figure) -> str:
    """A figure as a file of its own; its label becomes its title."""
    root = _tree(figure)
    return f"{ElementTree.tostring(root, encoding='unicode')}\n"


def to_pdf(figure: Figure) -> bytes:
    """A figure as PDF."""
    out = io.BytesIO()
    with style():
        metadata = {"CreationDate": None, "Title": figure.get_label()}
        figure.savefig(out, format="pdf", metadata=metadata)
    return out.getvalue()


def inline(svg: str, prefix: str) -> str:
    """A figure's file as an element of a page, which has the colours as variables and the fonts.

    Args:
      svg: as `to_svg` makes it.
      prefix: of its ids, which must be unlike those of the page's other figures.
    """
    root = ElementTree.fromstring(svg)
    for name in ("width", "height", "version"):
        del root.attrib[name]
    width = float(root.attrib["viewBox"].split()[2]) / POINT
    root.set("role", "img")
    # One that is wider than its place is not made illegible, but scrolled.
    root.set("style", f"min-width: {min(0.82 * width, 0.9 * width - 40):.0f}px")
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if "id" in element.attrib:
            element.set("id", prefix + element.attrib["id"])
        link = element.attrib.pop(_LINK, None)
        if link is not None:
            element.set("href", f"#{prefix}{link[1:]}")
        if "style" in element.attrib:
            css = re.sub("font-family: [^;]*;? ?", "", element.attrib["style"])
            css = re.sub(r"#[0-9a-f]{6}", lambda m: _VARIABLES.get(m[0], m[0]), css)
            element.set("style", css.strip())
    return ElementTree.tostring(root, encoding="unicode")


def _tree(figure: Figure) -> ElementTree.Element:
    """The elements of a figure's SVG: what is drawn, and no more."""
    out = io.BytesIO()
    with style():
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=metadata)
    root = ElementTree.fromstring(out.getvalue())
    used = {element.attrib[_LINK] for element in root.iter() if _LINK in element.attrib}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = (element.text if element.tag == "text" else None), None
        # Everything lies within its axes.
        element.attrib.pop("clip-path", None)
        if f"#{element.attrib.get('id')}" not in used:
            element.attrib.pop("id", None)
        if _LINK in element.attrib:
            element.set("xlink:href", element.attrib.pop(_LINK))
        if element.attrib.get("transform", "").startswith(("rotate(-0 ", "rotate(0 ")):
            del element.attrib["transform"]
        if "style" in element.attrib:
            fonts = _FONTS.replace('"', "'")
            css = re.sub("font-family: [^;]*", f"font-family: {fonts}", element.attrib["style"])
            element.set("style", css)
        if "d" in element.attrib:
            element.set("d", element.attrib["d"].replace("\n", "").strip())
        for child in list(element):
            if child.tag.removeprefix(_SVG) in ("metadata", "defs") and not _is_drawn(child):
                element.remove(child)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("xmlns:xlink", "http://www.w3.org/1999/xlink")
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    title = ElementTree.Element("title")
    title.text = str(figure.get_label())
    root.insert(0, title)
    return root


def _is_drawn(defs: ElementTree.Element) -> bool:
    """Whether definitions hold shapes, rather than a style sheet, clips or metadata."""
    return any(child.tag.removeprefix(_SVG) in ("path", "g") for child in defs)
