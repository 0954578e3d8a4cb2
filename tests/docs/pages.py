"""The Markdown pages of the project, and the code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if not path.is_symlink()
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str = "") -> list[str]:
    """The contents of a page's fenced blocks in a language."""
    return [text for name, text in _BLOCK.findall(page.read_text()) if name == language]
