"""The words of a text in any script, for scores that count them.

On ASCII text they are those of `rouge-score`: runs of letters and digits in lower case. Elsewhere
letters, digits and their marks make words where a script puts spaces between words, each character
is a word of its own where it does not (Han, Kana, Thai, ...), and so is each emoji or other symbol
outside ASCII. Punctuation is no word in any script.
"""

import bisect
import functools
import re
import unicodedata

# First and last characters of scripts without spaces between words, with their neighbours.
_UNSPACED = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # radicals of Han
    (0x3005, 0x3007),
    (0x3021, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x3190, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA48F),  # Han, Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9D),  # half-width Katakana
    (0x16FE0, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # Kana, Nushu
    (0x20000, 0x3FFFF),  # Han
)
_FIRST = [first for first, _ in _UNSPACED]
# What is not seen: soft hyphen, byte-order mark, directions, selectors of a character's variant.
_UNSEEN = re.compile(
    "[\u00ad\u061c\u180b-\u180f\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0100-\U000e01ef]"
)
# Kinds of characters: w letter or digit, d digit of keycaps, h "#" or "*", k keycap, c character of
# a script without spaces, m mark, j joiner, s symbol, t skin tone or tag, r letter of a flag.
_WORD = re.compile(
    r"[dh]k"  # 1️⃣
    r"|rr?"  # 🇯🇵
    r"|st*m*(?:js[tm]*)*"  # 👩🏽‍💻
    r"|t+"
    r"|cm*"  # 語
    r"|(?:[wm]|d(?!k))+(?:j+(?:[wm]|d(?!k))+)*"
)


def words(text: str) -> list[str]:
    """The words of a text, in lower case.

    >>> words("Don't panic: A. 不正解, café!")
    ['don', 't', 'panic', 'a', '不', '正', '解', 'café']
    """
    # Composed last again: folding case may take characters apart.
    text = _UNSEEN.sub("", unicodedata.normalize("NFC", text)).casefold()
    text = unicodedata.normalize("NFC", text)
    kinds = "".join(map(_kind, text))
    return [text[slice(*found.span())] for found in _WORD.finditer(kinds)]


@functools.lru_cache(maxsize=65_536)
def _kind(character: str) -> str:
    """One of the kinds that `_WORD` knows; a blank for what is in no word."""
    code = ord(character)
    special = _ascii(character) if code < 0x80 else _special(code)
    if special is not None:
        return special
    category = unicodedata.category(character)
    if category[0] == "M":
        return "m"
    place = bisect.bisect(_FIRST, code) - 1
    unspaced = place >= 0 and code <= _UNSPACED[place][1]
    if category == "Nd":
        return "w"
    if category[0] in "LN" or category == "Cn":  # Letters of a later Unicode are letters, too.
        return "c" if unspaced else "w"
    return "s" if category in ("So", "Sm", "Sc") else " "


def _ascii(character: str) -> str:
    if character in "#*":
        return "h"
    return "d" if character.isdigit() else "w" if character.isalpha() else " "


def _special(code: int) -> str | None:
    """The kind of a character whose category does not tell it."""
    if code == 0x20E3:
        return "k"
    if code in (0x200C, 0x200D):
        return "j"
    if code in (0xFF9E, 0xFF9F):  # Half-width voicing marks, which are letters by category.
        return "m"
    if code in (0xFFFC, 0xFFFD):  # A broken or missing character.
        return " "
    if 0x1F1E6 <= code <= 0x1F1FF:
        return "r"
    if 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F:
        return "t"
    # Emoji of a later Unicode are not assigned yet.
    return "s" if 0x1F000 <= code <= 0x1FAFF else None
