"""The chat of the command line, against the loop of the C program over a NumPy model."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from command_line import (
    BOS,
    EOS,
    PIECES,
    SECONDS,
    TALKER,
    Coins,
    Command,
    expected_chat,
    ids_of,
    printable,
    process,
)


@pytest.mark.parametrize(("system", "coins"), [(b"", None), (b"", 3), (b"be", 5), (b"", 6)])
def test_chat(command: Command, talker: tuple[Path, checkpoints.Arrays], system: bytes, coins: int | None) -> None:
    """Cut at every position: in a template, at a reply's first token and its last, at the EOS that is fed after it."""
    path, weights = talker
    flags = ["-t", "0"] if coins is None else ["-p", "0", "-s", str(coins)]
    seen: dict[Any, np.ndarray] = {}
    for steps in range(1, TALKER.seq_len + 1):
        asked = ["-n", str(steps), "-i", "hi", "-y", os.fsdecode(system)]
        result = command(path, "-m", "chat", *flags, *asked, stdin=b"yo\nno\n\nhm\n")
        lines = [b"hi", b"yo", b"no", b"", b"hm"]
        expected = expected_chat(weights, lines, system, steps, None if coins is None else Coins(coins), seen)
        assert printable(result.out) == printable(expected)
        assert result.code == 0
    if coins is not None:
        assert expected.count(b"Assistant: ") > 1


def test_what_chat_asks_for(command: Command, model: Path) -> None:
    asks, user = b"Enter system prompt (optional): ", b"User: Assistant: "
    chat = (model, "-m", "chat", "-t", "0", "-n", "60")
    asked = command(*chat, stdin=b"be\nhi\n").out
    assert asked.startswith(asks + user)
    story = asked.removeprefix(asks + user)
    assert len(story) > 4
    assert command(*chat, "-y", "be", stdin=b"hi\n").out == user + story
    assert command(*chat, "-i", "hi", stdin=b"be\n").out == asks + b"Assistant: " + story
    assert command(*chat, "-i", "hi", "-y", "be").out == b"Assistant: " + story
    assert command(*chat, "-i", "-", "-y", "be", stdin=b"hi").out == b"Assistant: " + story
    assert command(*chat, "-y", "be", stdin=b"hi").out == user + story  # a last line without its newline
    without = command(*chat, "-y", "", stdin=b"hi\n").out
    assert without != user + story
    assert command(*chat, stdin=b"\nhi\n").out == asks + without


def test_the_end_of_input_ends_a_chat(command: Command, model: Path) -> None:
    assert command(model, "-m", "chat") == (0, b"Enter system prompt (optional): \n", "")
    assert command(model, "-m", "chat", stdin=b"be\n") == (0, b"Enter system prompt (optional): User: \n", "")
    assert command(model, "-m", "chat", "-y", "") == (0, b"User: \n", "")
    # What -i says is answered: there is no system prompt then.
    answered = command(model, "-m", "chat", "-t", "0", "-i", "hi").out.removeprefix(b"Enter system prompt (optional): ")
    assert answered == command(model, "-m", "chat", "-t", "0", "-i", "hi", "-y", "").out
    assert len(answered) > len(b"Assistant: \n")


def test_a_chat_line_that_does_not_fit(command: Command, model: Path) -> None:
    """Its template has 17 tokens with BOS and the space. What fits is fed: a trace shows it."""
    chat = (model, "-m", "chat", "-t", "0", "-y", "")
    for n_positions in (1, 16, 18):
        result = command(*chat, "-n", str(n_positions), "-i", "hi", "--trace", "trace")
        assert result == (0, b"Assistant: \n", "")
        assert Path("trace").read_text().count("top") == n_positions
    assert len(command(*chat, "-n", "19", "-i", "hi").out) in (len(b"Assistant: x\n"), len(b"Assistant: \n"))
    assert command(*chat, stdin=b"a" * 10**6 + b"\n").out == b"User: Assistant: \n"


def test_a_chat_may_be_any_bytes(command: Command, model: Path) -> None:
    chat = (model, "-m", "chat", "-t", "0", "-y", "\udcff")
    answered = command(*chat, "-i", "\udcff\udcc3\0\r").out
    assert command(*chat, stdin=b"\xff\xc3\x00\r\n") == (0, b"User: " + answered, "")
    assert len(answered) > len(b"Assistant: \n")


def test_ctrl_c_in_a_chat(model: Path) -> None:
    running = process(model, "-m", "chat", stdin=subprocess.PIPE)
    assert running.stdout is not None
    guide = b"Enter system prompt (optional): "
    assert running.stdout.read(len(guide)) == guide
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=SECONDS) == (b"", b"")
    assert running.returncode == 130


def test_stdin_is_read_as_it_comes(model: Path) -> None:
    """A chat answers a line before the next one is there."""
    running = process(model, "-m", "chat", "-t", "0", "-n", "40", stdin=subprocess.PIPE)
    assert running.stdin is not None and running.stdout is not None
    timer = threading.Timer(SECONDS, running.kill)
    timer.start()
    read = b""
    for line, guide in [(b"be\n", b"Enter system prompt (optional): "), (b"hi\n", b"User: ")]:
        assert running.stdout.read(len(guide)) == guide
        running.stdin.write(line)
        running.stdin.flush()
    read = running.stdout.read(len(b"Assistant: x"))
    timer.cancel()
    assert read.startswith(b"Assistant: ")
    running.communicate(timeout=SECONDS)
    assert running.returncode == 0


def test_a_stop_string_ends_a_reply(command: Command, talker: tuple[Path, checkpoints.Arrays]) -> None:
    """The next turn follows it, after the end token that the model did not draw; the context may be a smaller one."""
    path, _ = talker
    chat = (path, "-m", "chat", "-t", "0", "-y", "", "--trace", "trace")
    (reply,) = command(*chat, "-i", "hi", "--context", "40").out.removeprefix(b"Assistant: ").splitlines()[:1]
    stop = reply[4:6].decode()
    first = reply[: reply.index(stop.encode())]
    assert len(first) > 1
    result = command(*chat, "--stop", stop, "--stop", "#", "--context", "60", stdin=b"hi\nho\n")
    assert result.out.startswith(b"User: Assistant: " + first + b"\nUser: Assistant: ")
    ids = [int(line.split("\t")[2]) for line in Path("trace").read_text().splitlines() if line.startswith("top")]
    begin = ids_of(b"[INST] hi [/INST]")
    again = ids[len(begin) :].index(BOS) + len(begin)
    assert ids[: len(begin)] == begin and ids[again - 1] == EOS
    following = ids_of(b"[INST] ho [/INST]")
    assert ids[again : again + len(following)] == following
    drawn = b"".join(PIECES[id] for id in ids[len(begin) : again - 1])
    assert drawn.startswith(first) and len(drawn) <= len(first) + 3
    assert len(ids) <= 60
