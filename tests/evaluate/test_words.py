"""Words of texts in many scripts, by hand; on ASCII those of rouge-score."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from feddpa_jax.evaluate.words import words

DEFAULT = DefaultTokenizer(use_stemmer=False)
ASCII = st.text(st.characters(max_codepoint=0x7F))


@given(ASCII)
@settings(max_examples=300, deadline=None)
def test_ascii_is_that_of_rouge_score(text: str):
    assert words(text) == DEFAULT.tokenize(text)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text(text: str):
    found = words(text)
    assert all(found)
    # Neither the form of a text nor white space around it makes other words.
    assert words(f" {text}\n") == found
    assert words(unicodedata.normalize("NFD", text)) == found
    # No word spans what both tokenizers leave out.
    assert not any(character in " \t\n!,._" for word in found for character in word)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic_now: 42nd, $5!", "don t panic now 42nd 5"),
        # Scripts with spaces: accents, casing, marks and joiners are parts of words.
        ("Café, naïve Ünïcode", "café naïve ünïcode"),
        ("cafe\u0301 CAFÉ", "café café"),
        ("Straße STRASSE ΟΔΟΣ οδός", "strasse strasse οδοσ οδόσ"),
        ("Правильный ответ.", "правильный ответ"),
        ("الإجابة صحيحة، نعم؟", "الإجابة صحيحة نعم"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("זו תשובה נכונה", "זו תשובה נכונה"),
        ("यह उत्तर सही है।", "यह उत्तर सही है"),
        ("र्\u200dक क्\u200d", "र्\u200dक क्"),
        ("정답입니다. 네!", "정답입니다 네"),
        ("ㅋㅋㅋ", "ㅋㅋㅋ"),
        # Scripts without: a word a character, with its marks.
        ("不正解です。", "不 正 解 で す"),
        ("「コーヒー」、ｶﾞ", "コ ー ヒ ー ｶﾞ"),
        ("か\u3099 が", "が が"),
        ("々〆〇ㄅ", "々 〆 〇 ㄅ"),
        ("葛\U000e0100城", "葛 城"),
        ("𠀋𪜀𰀀", "𠀋 𪜀 𰀀"),
        ("ถูกต้อง", "ถู ก ต้ อ ง"),
        ("ລາວ ខ្មែរ မြန် བོད", "ລ າ ວ ខ្ មែ រ မြ န် བོ ད"),
        ("កខ ﾊﾟﾋﾞ", "ក ខ ﾊﾟ ﾋﾞ"),
        ("ぁんァンｱﾝㄅㄯ", "ぁ ん ァ ン ｱ ﾝ ㄅ ㄯ"),
        ("㐀䶿一鿿豈ꀀ𗀀𛀀", "㐀 䶿 一 鿿 豈 ꀀ 𗀀 𛀀"),
        # Mixed.
        ("GPT-4は3回、๒๕ １２", "gpt 4 は 3 回 ๒๕ １２"),
        # Emoji and other symbols, one word each, whatever they consist of.
        ("🙂🙂 ok👍🏽", "🙂 🙂 ok 👍🏽"),
        ("👩🏽\u200d💻👨\u200d👩\u200d👧", "👩🏽\u200d💻 👨\u200d👩\u200d👧"),
        ("🇯🇵🇩🇪", "🇯🇵 🇩🇪"),
        ("1\ufe0f\u20e32\ufe0f\u20e3 #\ufe0f\u20e3 a1", "1\u20e3 2\u20e3 #\u20e3 a1"),
        ("❤\ufe0f ❤", "❤ ❤"),
        ("20 °C → 5 € ≤ ½", "20 ° c → 5 € ≤ ½"),
        # No words at all.
        ("、。「」！？—…", ""),
        ("#* `´ \u3000\u200b\ufeff\ufffd", ""),
        # What is not seen does not part words.
        ("co\u00adop \u200fاب\u200eج", "coop ابج"),
    ],
)
def test_words_by_hand(text: str, expected: str):
    assert words(text) == expected.split()
