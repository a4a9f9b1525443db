"""The parser of the verbs' flags. A story is parsed without it (flags.py), because argparse takes a while to import."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from .terminal import UsageError, hint


class Parser(argparse.ArgumentParser):
    """An argparse parser that keeps the line breaks of `epilog`, and raises UsageError where argparse would exit.

    `actions` has what add_argument has made, --help first.
    """

    def __init__(self, **options: Any) -> None:
        self.actions: list[argparse.Action] = []
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        self.actions.append(super().add_argument(*names, **options))
        return self.actions[-1]

    def error(self, message: str) -> NoReturn:
        unknown = message.startswith("unrecognized arguments: -")
        raise UsageError(f"{message} ({hint(message.split()[2], self.flags)})" if unknown else message)

    @property
    def flags(self) -> list[str]:
        return [name for action in self.actions for name in action.option_strings]
