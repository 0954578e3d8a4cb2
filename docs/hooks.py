"""What mkdocs runs while it builds: the table of the configuration's fields."""

from itertools import groupby
from typing import Any

from feddpa_jax.config import describe_fields

_PLACE = "<!-- fields of the configuration -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the table where a page asks for it."""
    return markdown.replace(_PLACE, fields_table()) if _PLACE in markdown else markdown


def fields_table() -> str:
    """Every field of the configuration, in a Markdown table per section."""
    parts = []
    for section, rows in groupby(describe_fields(), lambda row: row[0].partition(".")[0]):
        lines = [f"## {section}", "", "| field | type | default | meaning |", "|---|---|---|---|"]
        for name, kind, default, meaning in rows:
            cells = (f"`{name}`", kind.replace("|", " or "), f"`{default}`", meaning)
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
