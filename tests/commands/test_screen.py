"""Ctrl-C during a chat, and what is said about a chat, without a terminal."""

from __future__ import annotations

import signal

import pytest

from llama2c.commands.screen import has_terminal, interruptible, line_width, note, quiet_keys, uninterrupted


def test_one_ctrl_c_is_one_exception() -> None:
    """An impatient second one must not end the chat while it deals with the first."""
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        for _ in range(2):
            try:
                with interruptible():
                    signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            else:
                raise AssertionError("expected KeyboardInterrupt")
            with interruptible():
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_notes_are_dim_where_that_is_possible(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for term, no_color, expected in [
        ("xterm", "", b"\x1b[2ma[31mb\x1b[0m\n"),
        ("xterm", "1", b"a[31mb\n"),
        ("dumb", "", b"a[31mb\n"),
        ("", "", b"a[31mb\n"),
    ]:
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("NO_COLOR", no_color)
        note("a\x1b[31mb")
        assert capsysbinary.readouterr().out == expected


def test_without_a_terminal() -> None:
    assert not has_terminal()
    assert line_width() == 79
    with quiet_keys(mark_pastes=True):
        pass
