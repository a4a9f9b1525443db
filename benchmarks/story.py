"""Prints the same story from llama2c and from C programs: `python benchmarks/story.py --c run=../llama2.c/run`.

Downloads stories42M unless --model names another model, runs each program with the same flags, and says whether they agree.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from llama2c import download
from llama2c.commands.terminal import byte_bar
from llama2c.locate import find_hub_model, find_tokenizer

FLAGS = ["-t", "0.8", "-n", "256", "-s", "100", "-i", "One day, Lily met a Shoggoth"]


def fetch(model: str) -> Path:
    """The path of a model, downloaded if it is a name."""
    if Path(model).is_file() or find_hub_model(model) is None:
        return Path(model)
    with byte_bar() as progress:
        return download(model, progress=progress)


def tell(command: list[str], model: Path) -> bytes:
    """Runs a command and prints its story as it comes. Returns the story."""
    story = b""
    with subprocess.Popen([*command, str(model), "-z", str(find_tokenizer(model)), *FLAGS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := process.stdout.read1():
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            story += piece
    if process.returncode:
        raise ValueError(f"{command[0]}: expected exit code 0, found {process.returncode}")
    return story


def verdict(ours: bytes, theirs: bytes) -> str:
    """ "they agree", or the place where they differ and how each continues."""
    if ours == theirs:
        return "they agree"
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    a, b = (text[same : same + 30].decode(errors="replace") for text in (ours, theirs))
    return f"they differ after {same} bytes: llama2c continues with {a!r}, the other with {b!r}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--c", action="append", default=[], metavar="NAME=PATH", help="a C binary: run=PATH")
    parser.add_argument("--model", default="stories42M", help="a name or a file (default stories42M)")
    options = parser.parse_args(arguments)
    agree = True
    try:
        model = fetch(options.model)
        ours = tell([sys.executable, "-m", "llama2c"], model)
        for text in options.c:
            name, _, path = text.partition("=")
            print(f"\n{name}:", flush=True)
            found = verdict(ours, tell([path], model))
            print(f"\n{found}", flush=True)
            agree = agree and found == "they agree"
    except (OSError, ValueError) as error:
        print(f"story: error: {error}", file=sys.stderr)
        return 2
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
