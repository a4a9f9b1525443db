"""Word wrap of a text that arrives in pieces, and what no text may do to a terminal."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2c.commands.wrapping import WordWrap, char_width, printable


def wrapped(text: str, width: int) -> str:
    wrap = WordWrap(lambda: width)
    return wrap.feed(text) + wrap.flush()


def width_of(line: str) -> int:
    return sum(map(char_width, line))


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one two three", 7, "one two\nthree"),
        ("one two  three", 7, "one two\nthree"),
        ("one\n\n  two", 7, "one\n\n  two"),  # indentation stays
        ("      two three", 7, "two\nthree"),  # unless there is no room for it
        ("a abcdefghijkl b", 5, "a\nabcde\nfghij\nkl b"),
        ("a\tb", 20, "a       b"),
        ("\ta", 20, "        a"),
        ("漢字漢字漢字", 7, "漢字漢\n字漢字"),
        ("漢字漢。字", 6, "漢字\n漢。字"),  # no line begins with a full stop
        ("漢字「漢", 6, "漢字\n「漢"),  # and none ends with an opening bracket
        ("ab漢字cd ef", 6, "ab漢字\ncd ef"),
        ("e\u0301e\u0301e\u0301 e\u0301", 3, "e\u0301e\u0301e\u0301\ne\u0301"),
        ("🥞🥞🥞", 4, "🥞🥞\n🥞"),
        ("👩‍🔬👩‍🔬", 5, "👩‍🔬\n👩‍🔬"),  # a joined emoji stays whole
        ("👍🏽👍🏽", 5, "👍🏽\n👍🏽"),
        ("❤️❤️ ❤️", 5, "❤️❤️\n❤️"),
        ("a", 1, "a"),
        ("漢", 1, "漢"),
        ("trailing   \nx", 20, "trailing\nx"),
    ],
)
def test_wrapping(text: str, width: int, expected: str) -> None:
    assert wrapped(text, width) == expected


@given(st.lists(st.text("abcdefg", min_size=1, max_size=9), max_size=30), st.integers(9, 30))
def test_words_are_wrapped_as_by_textwrap(words: list[str], width: int) -> None:
    text = " ".join(words)
    assert wrapped(text, width) == "\n".join(textwrap.wrap(text, width))


@given(
    st.text("ab \n\t漢。「e\u0301🥞\u200d\ufe0f❤🏽", max_size=60), st.integers(8, 20), st.lists(st.integers(1, 9), min_size=1)
)
def test_lines_fit_and_nothing_is_lost_however_the_text_is_cut(text: str, width: int, cuts: list[int]) -> None:
    whole = wrapped(text, width)
    wrap, pieces, at = WordWrap(lambda: width), [], 0
    while at < len(text):
        cut = cuts[len(pieces) % len(cuts)]
        pieces.append(wrap.feed(text[at : at + cut]))
        at += cut
    assert "".join(pieces) + wrap.flush() == whole
    assert "".join(whole.split()) == "".join(text.split())
    assert all(width_of(line) <= width for line in whole.split("\n"))


def test_a_word_waits_until_it_is_complete() -> None:
    wrap = WordWrap(lambda: 6)
    assert [wrap.feed(text) for text in ("on", "e t", "wo", " three\n")] == ["", "one", "", "\ntwo\nthree\n"]
    assert wrap.column == 0
    assert wrap.feed("ab ") == "ab" and wrap.column == 2


def test_a_new_width_counts_at_once() -> None:
    width = 20
    wrap = WordWrap(lambda: width)
    assert wrap.feed("one two three ") == "one two three"
    width = 7  # the terminal has broken the line: "one two", " three"
    assert wrap.feed("fo four") + wrap.flush() == "\nfo four"
    width = 40
    assert wrap.feed(" five six seven ") == " five six seven"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[2Jb", "a[2Jb"),
        ("\x1b]0;title\x07", "]0;title"),
        ("\x9b31m\x90q\x9c", "31mq"),
        ("a\r\nb\rc\x08\x7f\0", "a\nbc"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("é漢🥞\u200d\u00a0", "é漢🥞\u200d\u00a0"),
    ],
)
def test_no_text_controls_the_terminal(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert wrapped(text.replace("\t", " "), 80) == expected.replace("\t", " ")
