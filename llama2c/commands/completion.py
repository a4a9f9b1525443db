"""The verb `completion`: a script that makes bash, zsh or fish complete the verbs, flags, files and models of `llama2c`.

The script is made from the table of flags and the parsers of the verbs. It asks `llama2c completion --models` which models are
downloaded, each time that one may be completed.
"""

from __future__ import annotations

import importlib
import shlex
from argparse import Action
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..locate import NAMES, downloaded
from .flags import CHOICES, FLAGS
from .main import VERBS
from .parser import Parser
from .terminal import UsageError, put

NOTES = """\
Models are completed by the names of those that are downloaded, and as files.
The scripts complete the command llama2c, not python -m llama2c.

examples:
    llama2c completion bash > ~/.local/share/bash-completion/completions/llama2c
    llama2c completion zsh > ~/.zfunc/_llama2c     (a folder of fpath)
    llama2c completion fish > ~/.config/fish/completions/llama2c.fish
    eval "$(llama2c completion bash)"              (in this shell only)
"""


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m llama2c completion",
        description="Print a script that completes the command llama2c in a shell.",
        epilog=NOTES,
    )
    parser.add_argument("shell", metavar="SHELL", nargs="?", choices=tuple(SCRIPTS), help=", ".join(SCRIPTS))
    parser.add_argument("--models", action="store_true", help="print the names of the downloaded models instead")
    return parser


def run(argv: Sequence[str]) -> None:
    """Print the script, or the names that it asks for."""
    options = make_parser().parse_args(argv)
    if options.models == (options.shell is not None):
        raise UsageError(f"Expected one of {', '.join(SCRIPTS)}, or --models")
    put("".join(f"{name}\n" for name in downloaded()) if options.models else SCRIPTS[options.shell](commands()))


# ---------------------------------------------------------------------------
# what there is to complete


class Value(NamedTuple):
    """What a flag or a place for words can have: some words, the names of downloaded models, files. No such: unknown."""

    words: tuple[str, ...] = ()
    models: bool = False
    files: bool = False


KINDS = {name: Value(models=True, files=True) for name in ("MODEL", "OTHER", "SOURCE")} | {
    name: Value(files=True) for name in ("FILE", "OUT", "TEXT_FILE")
}  # by the names of values in the help


class Option(NamedTuple):
    """A flag by its names. `value` is the name of its value, "" for a switch."""

    names: tuple[str, ...]
    value: str
    kind: Value
    help: str
    repeats: bool


class Command(NamedTuple):
    """A verb, or "" for what there is without one."""

    name: str
    help: str
    options: list[Option]
    kind: Value  # of its words that are no flags


def commands() -> list[Command]:
    """All verbs, then the flags without a verb."""
    story = [
        Option(
            tuple(filter(None, flag[:2])),
            flag.value,
            Value(CHOICES[flag.value]) if flag.value in CHOICES else KINDS.get(flag.value, Value()),
            flag.help,
            flag.repeats,
        )
        for flag in FLAGS
    ]
    return [*(command_of(name) for name in VERBS), Command("", "", story, KINDS["MODEL"])]


def command_of(verb: str) -> Command:
    """What the parser of a verb takes."""
    actions = importlib.import_module(f"llama2c.commands.{VERBS[verb].module}").make_parser().actions
    options = [
        Option(
            tuple(action.option_strings),
            "" if action.nargs == 0 else str(action.metavar or action.dest.upper()),
            kind_of(action),
            action.help or "",
            False,
        )
        for action in actions
        if action.option_strings
    ]
    kinds = [kind_of(action) for action in actions if not action.option_strings]
    kind = Value(tuple(NAMES)) if verb == "download" else max(kinds, default=Value(), key=lambda kind: (kind.models, kind))
    return Command(verb, VERBS[verb].help, options, kind)


def kind_of(action: Action) -> Value:
    if action.choices is not None:
        return Value(tuple(map(str, action.choices)))
    return KINDS.get(str(action.metavar), Value())


# ---------------------------------------------------------------------------
# the scripts


BASH = """\
# Completes llama2c in bash. Printed by `llama2c completion bash`.
_llama2c() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb='' words='' flags='' models='' files='' line
    if [[ $cur == = ]]; then  # of --flag=
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    ((COMP_CWORD > 1)) && verb=${COMP_WORDS[1]}
    case $verb in
%s    esac
    [[ $cur == -* ]] && words=$flags models='' files=''
    COMPREPLY=()
    while IFS= read -r line; do
        [[ $line && $line == "$cur"* ]] && COMPREPLY+=("$line")
    done < <(
        printf '%%s\\n' $words
        [[ $models ]] && "${COMP_WORDS[0]}" completion --models 2>/dev/null
        [[ $files ]] && compgen -f -- "$cur"
    )
}
complete -o filenames -F _llama2c llama2c
"""


def bash_script(commands: Iterable[Command]) -> str:
    lines = []
    for command in commands:
        lines.append(f"    {command.name or '*'})")
        flags = [name for option in command.options for name in option.names]
        lines.append(f"        flags={shlex.quote(' '.join(flags))} {bash_kind(command.kind)}")
        if not command.name:
            lines.append(f"        ((COMP_CWORD == 1)) && words={shlex.quote(' '.join(VERBS))}")
        lines.append("        case $prev in")
        for option in command.options:
            if option.value:
                lines.append(f"        {' | '.join(option.names)}) flags='' {bash_kind(option.kind)} ;;")
        lines += ["        esac", "        ;;"]
    return BASH % "".join(f"{line}\n" for line in lines)


def bash_kind(kind: Value) -> str:
    models, files = ("yes" if there else "''" for there in kind[1:])
    return f"words={shlex.quote(' '.join(kind.words))} models={models} files={files}"


ZSH = """\
#compdef llama2c
# Completes llama2c in zsh. Printed by `llama2c completion zsh`.
_llama2c_models() {
    local -a models
    models=(${(f)"$(_call_program models llama2c completion --models 2>/dev/null)"})
    compadd -a models
    _files
}

_llama2c_first() {
    local -a verbs
    verbs=(
%s    )
    _describe verb verbs
    _llama2c_models
}

_llama2c() {
    local verb=''
    ((CURRENT > 2)) && verb=$words[2]
    case $verb in
%s    esac
}

if [[ $funcstack[1] == _llama2c ]]; then  # a file of fpath
    _llama2c "$@"
else
    compdef _llama2c llama2c
fi
"""


def zsh_script(commands: Iterable[Command]) -> str:
    verbs, cases = [], []
    for command in commands:
        words = f"*:word:{zsh_kind(command.kind)}" if command.name else "1:model:_llama2c_first"
        if command.name:
            verbs.append(f"        {shlex.quote(f'{command.name}:{command.help}')}")
        cases.append(f"    {command.name or '*'})")
        if command.name:
            cases.append("        shift words")
            cases.append("        ((CURRENT--))")
        specs = [spec for option in command.options for spec in zsh_specs(option)]
        cases.append(" \\\n            ".join(["        _arguments", *map(shlex.quote, [*specs, words])]))
        cases.append("        ;;")
    return ZSH % tuple("".join(f"{line}\n" for line in lines) for lines in (verbs, cases))


def zsh_specs(option: Option) -> list[str]:
    """As _arguments takes them: "(-o --out)--out=[the file to write]:OUT:_files". The brackets name what excludes it."""
    text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    others = "*" if option.repeats else f"({' '.join(option.names)})"
    value = f":{option.value}:{zsh_kind(option.kind)}" if option.value else ""
    return [f"{others}{name}{'=' if value and name.startswith('--') else ''}[{text}]{value}" for name in option.names]


def zsh_kind(kind: Value) -> str:
    if kind.words:
        return f"({' '.join(kind.words)})"
    return "_llama2c_models" if kind.models else "_files" if kind.files else " "


FISH = """\
# Completes llama2c in fish. Printed by `llama2c completion fish`.
function __llama2c_verb -d 'Whether the verb is this one; "" for none'
    set -l words (commandline -opc)
    set -l verb ''
    if set -q words[2]; and contains -- $words[2] %s
        set verb $words[2]
    end
    test "$verb" = "$argv[1]"
end

function __llama2c_models
    llama2c completion --models 2>/dev/null
end

%s"""


def fish_script(commands: Iterable[Command]) -> str:
    lines = []
    for command in commands:
        rule = f"complete -c llama2c -n {fish_quote(f'__llama2c_verb {fish_quote(command.name)}')}"
        if command.name:
            first = "test (count (commandline -opc)) -eq 1"
            lines.append(f"complete -c llama2c -n '{first}' -a {command.name} -d {fish_quote(command.help)}")
        lines.append(f"{rule} {fish_kind(command.kind)}")
        for option in command.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = f" -r {fish_kind(option.kind)}" if option.value else ""
            lines.append(f"{rule} {names}{value} -d {fish_quote(option.help)}")
    return FISH % (" ".join(VERBS), "".join(f"{line}\n" for line in lines))


def fish_kind(kind: Value) -> str:
    words = "(__llama2c_models)" if kind.models else " ".join(kind.words)
    return ("-F" if kind.files else "-f") + (f" -a {fish_quote(words)}" if words else "")


def fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[Iterable[Command]], str]] = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
