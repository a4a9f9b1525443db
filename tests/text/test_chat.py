"""Chat by templates: ids as transformers makes them, replies and their end, conversations in one cache, the command line."""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import chat_templates
import checkpoints
import numpy as np
import pytest
from fakes import FakeTokenizer, FakeTransformer, spell
from json_tokenizers import CONFIGS, MAKERS, save

import llama2c
from llama2c import Config, Llama, Tokenizer
from llama2c.commands.main import main
from llama2c.errors import ModelError, RequestError
from llama2c.generation import count_common
from llama2c.text.chat import chat_ids, chat_turn, check_messages, start_conversation

pytest.importorskip("jinja2", reason="needs Jinja2")

Make = Callable[..., Tokenizer]
SIZE = 480  # more ids than any of these tokenizers has
HI = [{"role": "user", "content": "Hi"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One day, żółw 🐢?"},
    {"role": "assistant", "content": " She saw a ball.\n"},
    {"role": "user", "content": ""},
]


@pytest.fixture(scope="module")
def packages() -> dict[str, Any]:
    return {name: maker() for name, maker in MAKERS.items()}


@pytest.fixture
def make(packages: dict[str, Any], tmp_path: Path) -> Make:
    """make("llama3"): a tokenizer with its template, or with another one; further files as save takes them."""

    def made(name: str, template: str | None = None, **files: Any) -> Tokenizer:
        source = chat_templates.TEMPLATES[name] if template is None else template
        path = save(tmp_path / name, packages[name], {**CONFIGS[name], "chat_template": source}, **files)
        return Tokenizer.open(path, SIZE)

    return made


def fake(tokenizer: Tokenizer, script: list[int]) -> Llama:
    return Llama(cast(Any, FakeTransformer(script, vocab_size=SIZE)), tokenizer)


# ---------------------------------------------------------------------------
# ids


@pytest.mark.parametrize("name", list(MAKERS))
def test_ids_are_those_of_transformers(make: Make, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    tokenizer = make(name)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / name)
    for messages in (HI, TALK, [{"role": "user", "content": "a<|eot_id|><|im_end|></s>b"}]):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert chat_ids(tokenizer, messages) == expected
        assert len(expected) > 5


def test_ids_written_out(make: Make) -> None:
    """Special tokens come only from the template, once."""
    turns = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = make("chatml", turns + "<|im_start|>")
    start, end = 411, 412
    assert chat_ids(tokenizer, HI) == [start, *tokenizer.encode("user Hi"), end, start]
    tokenizer = make("llama2", "{{ bos_token }}{{ messages[0].content }}")
    assert chat_ids(tokenizer, HI) == tokenizer.encode("Hi")
    tokenizer = make("llama2", "{{ messages[0].content }}")
    assert chat_ids(tokenizer, HI) == tokenizer.encode("Hi", bos=False)


def test_where_the_template_is_found(make: Make, packages: dict[str, Any], tmp_path: Path) -> None:
    """chat_template.jinja before chat_template.json before tokenizer_config.json, the only one there or default."""

    def template(**files: Any) -> str | None:
        found = Tokenizer.open(save(tmp_path, packages["llama2"], **files)).chat_template
        return found and found.source

    assert template() is None
    several = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "c"}]
    for expected, config in (("a", "a"), ("c", several)):
        assert template(tokenizer_config={"chat_template": config}) == expected
    assert template(chat_template={"chat_template": "d"}) == "d"
    (tmp_path / "chat_template.jinja").write_bytes("ż\r\n".encode())
    assert template() == "ż\r\n"


def test_without_a_template_it_is_that_of_llama_2(packages: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer.open(save(tmp_path, packages["llama2"], CONFIGS["llama2"]))
    expected = tokenizer.encode("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne day, żółw 🐢? [/INST]")
    expected += tokenizer.encode(" She saw a ball.\n", bos=False, eos=True)
    path = tmp_path / "tokenizer.json"
    says = "no chat template beside it, so chat uses the form of Llama 2, [INST] ... [/INST], which other models do not know"
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(f'{path}: {says}')}$") as caught:
        assert chat_ids(tokenizer, TALK) == expected + tokenizer.encode("[INST]  [/INST]")
    assert len(caught) == 1
    with pytest.warns(RuntimeWarning, match=r"no chat template beside it"):
        start_conversation(tokenizer, "")
    assert chat_ids(cast(Any, FakeTokenizer()), HI) == [1, *spell(" [INST] Hi [/INST]")]  # a tokenizer.bin never has one


def test_chat_turn() -> None:
    assert chat_turn("Hi") == "[INST] Hi [/INST]"
    assert chat_turn("Hi", "") == "[INST] Hi [/INST]"
    assert chat_turn("Hi", "Be brief.") == "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"


# ---------------------------------------------------------------------------
# messages


def test_messages_are_copied_as_plain_data() -> None:
    class Text(str):
        def secret(self) -> None: ...

    messages = [{"role": "user", "content": [{"type": "text", "n": (1, 2.5, None, True)}]}]
    copied = check_messages(messages)
    assert copied == [{"role": "user", "content": [{"type": "text", "n": [1, 2.5, None, True]}]}]
    assert copied[0] is not messages[0]
    with pytest.raises(ValueError, match=r"^messages\[0\]\['content'\]: expected what JSON has, found Text$"):
        check_messages([{"role": "user", "content": Text("a")}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "messages: expected a list of dicts, found str"),
        (None, "messages: expected a list of dicts, found NoneType"),
        ([], "messages[0]: expected a message, found none"),
        (["Hi"], "messages[0]: expected a dict with a str as 'role', found str"),
        ([*HI, {"content": "a"}], "messages[1]: expected a dict with a str as 'role', found {'content': 'a'}"),
        ([{"role": 1}], "messages[0]: expected a dict with a str as 'role', found {'role': 1}"),
        ([{"role": "user", "content": b"a"}], "messages[0]['content']: expected what JSON has, found bytes"),
        ([{"role": "user", "a": [0, {1: 2}]}], "messages[0]['a'][1]: expected a str as key, found int"),
    ],
)
def test_bad_messages(make: Make, messages: Any, message: str) -> None:
    for stream in (False, True):
        with pytest.raises(ValueError) as caught:
            fake(make("chatml"), []).chat(messages, stream=stream)
        assert str(caught.value) == message


def test_a_template_refuses(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "llama2" / "tokenizer_config.json"
    with pytest.raises(RequestError) as caught:
        fake(make("llama2"), []).chat([*HI, *HI])
    assert str(caught.value) == f"{path}: chat template: Roles must alternate: user, assistant, user"
    assert caught.value.param == "messages"
    for source in ("{% if %}", "{{ messages.__class__.__base__ }}", "{{ 'a' * 10**12 }}"):
        with pytest.raises(ModelError):
            chat_ids(make("llama2", source), HI)


def test_missing_or_old_jinja2(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make("llama3")
    expected = "expected the package jinja2, version 3.1.6 or later, for the chat template"
    path = tmp_path / "llama3" / "tokenizer_config.json"
    for found, version in (("3.1.5", "3.1.5"), ("2.11.3", "2.11.3"), ("none", None)):
        if version is None:
            monkeypatch.delattr("llama2c.text.chat_template", raising=False)
            monkeypatch.delitem(sys.modules, "llama2c.text.chat_template", raising=False)
            monkeypatch.setitem(sys.modules, "jinja2", None)
        else:
            monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        with pytest.raises(OSError) as caught:
            fake(tokenizer, []).chat(HI)
        assert str(caught.value) == f"{path}: {expected}, found {found}: pip install 'llama2c[hf]'"
        monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.10.0rc1")
    assert fake(tokenizer, []).chat(HI, max_tokens=1).tokens


# ---------------------------------------------------------------------------
# options, dates, parts


def test_options_go_to_the_template(make: Make) -> None:
    tokenizer = make("chatml", "{{ tools | tojson }}|{{ enable_thinking }}|{{ add_generation_prompt }}|{{ messages | length }}")

    def text(options: Any) -> str:
        return tokenizer.decode(chat_ids(tokenizer, HI, options))

    assert text(None) == text({}) == "null||True|1"
    tools = [{"type": "function", "function": {"name": "sum", "parameters": {"a": (1, 2.5, None)}}}]
    expected = '[{"type": "function", "function": {"name": "sum", "parameters": {"a": [1, 2.5, null]}}}]|False|False|1'
    assert text({"tools": tools, "enable_thinking": False, "add_generation_prompt": False}) == expected
    assert text({"self": 1, "template": 2}) == "null||True|1"  # no name clashes with ours
    assert tokenizer.decode(chat_ids(make("chatml", "{{ bos_token }}"), HI, {"bos_token": "x"})) == "x"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": []}, "template_options: 'messages' cannot be an option"),
        ([("tools", None)], "template_options: expected a dict, found list"),
        ({"f": print}, "template_options['f']: expected what JSON has, found builtin_function_or_method"),
        ({"tools": [{1: 2}]}, "template_options['tools'][0]: expected a str as key, found int"),
        ({1: 2}, "template_options: expected a str as key, found int"),
    ],
)
def test_bad_options(make: Make, options: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat_ids(make("chatml"), HI, options)
    assert (str(caught.value), caught.value.param) == (message, "template_options")


def test_options_without_a_template() -> None:
    assert chat_ids(cast(Any, FakeTokenizer()), HI, {}) == chat_ids(cast(Any, FakeTokenizer()), HI)
    with pytest.raises(RequestError) as caught:
        chat_ids(cast(Any, FakeTokenizer()), HI, {"tools": None})
    assert str(caught.value) == "template_options: this tokenizer has no chat template to take them"
    assert caught.value.param == "template_options"


def test_the_date_of_a_request(make: Make) -> None:
    tokenizer = make("chatml", "{{ strftime_now('%d %b %Y %H:%M') }}")
    for now in (date(2024, 2, 29), datetime(2024, 2, 29, 13, 5)):  # of a time only the date is seen
        assert tokenizer.decode(chat_ids(tokenizer, HI, now=now)) == "29 Feb 2024 00:00"
        assert tokenizer.decode(start_conversation(tokenizer, "", now).ask("a")) == "29 Feb 2024 00:00"
    assert tokenizer.decode(chat_ids(tokenizer, HI)) == f"{date.today():%d %b %Y} 00:00"


PARTS = [{"type": "text", "text": "Once "}, {"type": "text", "text": "upon"}]
IMAGE = [{"type": "text", "text": "a"}, {"type": "image", "url": "x"}]
LOOPS = """\
{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
{% for c in m['content'] %}<{{ c.type }}>{{ c.text }}{% endfor %}{% endif %}{% endfor %}"""


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_contents_of_parts(make: Make) -> None:
    """Joined, except for a template that loops over contents."""
    plain = cast(Any, FakeTokenizer())
    talk = [{"role": "system", "content": PARTS}, *user("a"), {"role": "assistant", "content": tuple(PARTS)}, *user([])]
    joined = [{"role": "system", "content": "Once upon"}, *user("a"), {"role": "assistant", "content": "Once upon"}, *user("")]
    assert chat_ids(plain, talk) == chat_ids(plain, joined)
    for name in MAKERS:
        assert chat_ids(make(name), user(PARTS)) == chat_ids(make(name), user("Once upon"))
    looping = make("chatml", LOOPS)
    assert looping.decode(chat_ids(looping, user(PARTS))) == "<text>Once <text>upon"
    assert looping.decode(chat_ids(looping, user(IMAGE))) == "<text>a<image>"
    assert looping.decode(chat_ids(looping, user("b"))) == "b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGE, "messages[0]['content'][1]: expected a part of type 'text', found type 'image'"),
        (["a"], "messages[0]['content'][0]: expected a part of type 'text', found str"),
        ([{"text": "a"}], "messages[0]['content'][0]: expected a part of type 'text', found dict"),
        ([{"type": "text", "text": 1}], "messages[0]['content'][0]: expected a str as 'text', found int"),
    ],
)
def test_parts_that_are_not_text(make: Make, content: Any, message: str) -> None:
    for tokenizer in (cast(Any, FakeTokenizer()), make("chatml")):
        with pytest.raises(RequestError) as caught:
            chat_ids(tokenizer, user(content))
        assert (str(caught.value), caught.value.param) == (message, "messages")


# ---------------------------------------------------------------------------
# replies


def test_a_reply_is_the_text_of_its_tokens(make: Make) -> None:
    """Leading space and all; only the template of Llama 2 without Jinja2 takes it for its own."""
    for name in MAKERS:
        tokenizer = make(name)
        script = [*tokenizer.encode("  She saw 🐢", bos=False), cast(int, tokenizer.eos_id)]
        text = "   She saw 🐢" if name == "llama2" else "  She saw 🐢"
        llama = fake(tokenizer, script)
        done = llama.chat(TALK, temperature=0)
        assert (done.text, done.tokens, done.finish_reason) == (text, tuple(script), "stop")
        assert "".join(piece.text for piece in llama.chat(TALK, stream=True, temperature=0)) == text
        assert llama.transformer.steps[0] == chat_ids(tokenizer, TALK)  # type: ignore[attr-defined]


def test_every_end_token_ends_a_text(make: Make) -> None:
    tokenizer = make("llama3", generation_config={"eos_token_id": [411, 414]}, config={"eos_token_id": 412})
    assert tokenizer.end_ids == {411, 414}
    word = tokenizer.encode("She", bos=False)
    for end in (411, 414):
        llama = fake(tokenizer, [*word, end, *word])
        for done in (llama.generate("a", temperature=0), llama.chat(HI, temperature=0)):
            assert (done.text, done.tokens, done.finish_reason) == ("She", (*word, end), "stop")
    for other in (410, 412, 1, 2):  # BOS does not end a text, nor do the BOS and EOS of other tokenizers
        done = fake(tokenizer, [other, *word, 411]).generate("a", temperature=0)
        assert done.tokens == (other, *word, 411)


def test_a_model_without_bos(make: Make) -> None:
    llama = fake(make("chatml"), [412])
    with pytest.raises(ValueError, match=r"^prompt: expected 1 to 512 tokens \(the context\), found 0$"):
        llama.generate("")
    assert llama.generate("a", temperature=0).prompt_tokens == 1


# ---------------------------------------------------------------------------
# scores


def test_scores_begin_with_bos_or_what_stands_for_it(make: Make, packages: dict[str, Any], tmp_path: Path) -> None:
    text = "One day 🐢"
    for tokenizer, first in (
        (make("llama3"), 410),
        (make("llama2"), 1),
        (make("chatml"), 412),  # EOS
        (make("chatml", config={"bos_token_id": 410}), 410),
    ):
        llama = Llama(cast(Any, FakeTransformer(vocab_size=SIZE)), tokenizer)
        score = llama.score(text)
        assert score.tokens == (first, *tokenizer.encode(text, bos=False))
        assert (len(score.logprobs), score.n_bytes) == (len(score.tokens) - 1, 12)
        assert llama.score(text.encode()) == score
        with pytest.raises(ValueError, match=r"^text: expected at least one byte, found an empty text$"):
            llama.score("")
    tokenizer = Tokenizer.open(save(tmp_path / "none", packages["chatml"]), SIZE)
    with pytest.raises(ValueError) as caught:
        Llama(cast(Any, FakeTransformer(vocab_size=SIZE)), tokenizer).score(text)
    assert str(caught.value) == "tokenizer: scoring needs a BOS or EOS before the text, and it has neither"


# ---------------------------------------------------------------------------
# conversations


def test_a_conversation_of_llama_2() -> None:
    conversation = start_conversation(cast(Any, FakeTokenizer()), "S")
    assert conversation.end_ids == {2}
    first = [1, *spell(" [INST] <<SYS>>\nS\n<</SYS>>\n\n\udcffa [/INST]".encode("utf-8", "surrogateescape"))]
    assert conversation.ask("\udcffa") == first
    conversation.answer([*spell(" x"), 2])
    assert conversation.ask("b") == [*first, *spell(" x"), 2, 1, *spell(" [INST] b [/INST]")]
    same = start_conversation(cast(Any, FakeTokenizer()), b"S")
    assert same.ask(b"\xffa") == first  # bytes of a terminal stay as they are
    assert same.ask("í".encode("latin-1"))[-11:] == spell(b" [INST] \xed [/INST]")[-11:]
    with pytest.raises(RequestError, match=r"^text: expected valid Unicode, found a lone surrogate U\+D83D at index 7$"):
        same.ask("\ud83d")


@pytest.mark.parametrize("encoding", ["iso-8859-1", "gbk", "ascii"])
def test_a_conversation_in_another_locale(make: Make, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Replies and templates have never been in the terminal's encoding."""
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode(encoding))
    monkeypatch.setattr(os, "fsdecode", lambda data: data.decode(encoding))
    tokenizer = make("chatml", "{% for m in messages %}ż{{ m.content }}{% endfor %}")
    conversation = start_conversation(tokenizer, "ó")
    assert conversation.ask(b"a") == tokenizer.encode("żóża")
    conversation.answer(tokenizer.encode("í🐢"))
    assert conversation.ask("é".encode()) == tokenizer.encode("żóżażí🐢żé")
    plain = start_conversation(cast(Any, FakeTokenizer()), "ó")
    assert plain.ask("é") == [1, *spell(" [INST] <<SYS>>\nó\n<</SYS>>\n\né [/INST]")]


def test_a_template_needs_text(make: Make) -> None:
    conversation = start_conversation(make("chatml"), "")
    for user in (b"ab\xff", "ab\udcff"):
        with pytest.raises(RequestError, match=r"^text: expected valid UTF-8, found byte 0xFF at index 2$"):
            conversation.ask(user)
    with pytest.raises(RequestError, match=r"^system: expected valid UTF-8, found byte 0xFF at index 0$"):
        start_conversation(make("chatml"), b"\xff")


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_conversation_by_a_template(make: Make, name: str) -> None:
    """The ids of chat_ids, with what was drawn as the reply."""
    tokenizer = make(name)
    conversation = start_conversation(tokenizer, "Be brief.")
    assert conversation.end_ids == tokenizer.end_ids
    assert conversation.ask("One day, żółw 🐢?") == chat_ids(tokenizer, TALK[:2])
    drawn = tokenizer.encode("She saw a ball.\n", bos=False)
    conversation.answer([*drawn, cast(int, tokenizer.eos_id)])
    said = " She saw a ball.\n" if name == "llama2" else "She saw a ball.\n"
    assert conversation.ask("") == chat_ids(tokenizer, [*TALK[:2], {"role": "assistant", "content": said}, TALK[3]])


def test_spaces_without_bos(packages: dict[str, Any], tmp_path: Path, command: Command) -> None:
    """Without a BOS a text begins with its first token: a prompt loses the space before it, a reply does not."""
    package = type(packages["llama2"]).from_str(packages["llama2"].to_str())
    package.post_processor = None
    template = {"chat_template": "{% for m in messages %}[{{ m.content }}]{% endfor %}"}
    tokenizer = Tokenizer.open(save(tmp_path / "model", package, template), SIZE)
    assert tokenizer.prefix == ()
    conversation = start_conversation(tokenizer, "")
    conversation.ask("a")
    conversation.answer(tokenizer.encode("b"))
    assert conversation.ask("c") == tokenizer.encode("[a][ b][c]")
    model = write_model(tmp_path / "model", tokenizer, 2)
    assert command(model, "-n", "3", "-i", " One day").out.startswith(" One d")


def test_a_conversation_without_a_prompt(make: Make) -> None:
    with pytest.raises(ValueError, match=r"_config.json: chat template: expected a prompt of at least one token, found none$"):
        start_conversation(make("chatml", "{% if 0 %}{% endif %}"), "").ask("a")


def test_count_common() -> None:
    for a, b, expected in (([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 4, 3], 1), ([1], [2], 0)):
        assert count_common(a, b) == count_common(b, a) == expected


# ---------------------------------------------------------------------------
# the command line


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([os.fspath(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out.decode(), err.decode())

    return run


def write_model(folder: Path, tokenizer: Tokenizer, end: int) -> Path:
    """A random model that draws whole characters and ends some turns: `end` is a little likelier than a token it draws."""
    path = folder / "model.bin"
    config = Config(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=SIZE, seq_len=400)
    weights = checkpoints.random_weights(config, np.random.default_rng(5), shared_classifier=False)
    weights["wcls"] *= 4
    for id in range(SIZE):
        text = tokenizer.piece(id).decode(errors="replace")
        if not text or "\ufffd" in text or min(text) < " ":
            weights["wcls"][id] = 0  # far below the best of the others, which are random
    checkpoints.write(path, config, 1, weights)
    drawn = llama2c.load(path).generate([7], temperature=0, max_tokens=60).tokens
    weights["wcls"][end] = 1.01 * weights["wcls"][drawn[-1]]
    checkpoints.write(path, config, 1, weights)
    return path


def expected_chat(llama: Llama, lines: list[str], system: str, n_positions: int) -> tuple[str, int]:
    """What the command line prints, each turn by Llama.chat from nothing; and how many turns came to an end."""
    out, turns = "", 0
    messages = [{"role": "system", "content": system}] if system else []
    for line in lines:
        out += "User: " * (turns > 0) + "Assistant: "
        messages.append({"role": "user", "content": line})
        n_prompt = len(chat_ids(llama.tokenizer, messages))
        if n_prompt > n_positions:
            break
        reply = llama.chat(messages, temperature=0, max_tokens=n_positions - n_prompt + 1)
        out += reply.text
        if reply.finish_reason == "length":
            break
        out, turns = out + "\n", turns + 1
        if n_prompt + len(reply.tokens) >= n_positions:
            break
        messages.append({"role": "assistant", "content": reply.text})
    else:
        out += "User: "
    return out + "\n", turns


# Writes only the last reply as it was; of the earlier ones their length is left.
FORGETFUL = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content if m.role != 'assistant' else m.content | length }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""


@pytest.mark.parametrize(("name", "template"), [*((name, None) for name in MAKERS), ("chatml", FORGETFUL)])
def test_chat_in_one_cache_is_chat_from_nothing(
    make: Make, tmp_path: Path, command: Command, name: str, template: str | None
) -> None:
    """What is in the cache is used as far as the template left it as it was; greedy text shows that nothing else was."""
    tokenizer = make(name, template)
    model = write_model(tmp_path / name, tokenizer, cast(int, tokenizer.eos_id))
    llama = llama2c.load(model)  # with the tokenizer beside it
    assert llama.tokenizer.chat_template is not None
    lines, most = ["hi 🐢", "so?", "", "one day", "a", "b"], 0
    for system in ("", "Be"):
        for n_positions in (3, 60, 140, 250, 400):
            flags = ["-m", "chat", "-t", "0", "-n", str(n_positions), "-y", system, "-i", lines[0]]
            result = command(model, *flags, stdin="\n".join(lines[1:]).encode())
            expected, turns = expected_chat(llama, lines, system, n_positions)
            assert result == (0, expected, "")
            most = max(most, turns)
    assert most > 1


@pytest.mark.parametrize("template", [chat_templates.CHATML, FORGETFUL])
def test_what_is_in_the_cache_is_not_fed_again(make: Make, tmp_path: Path, command: Command, template: str) -> None:
    tokenizer = make("chatml", template)
    model = write_model(tmp_path / "chatml", tokenizer, cast(int, tokenizer.eos_id))
    flags = ["-m", "chat", "-t", "0", "-n", "0", "-y", "", "-v"]
    told = command(model, *flags, stdin=b"hi\nso?\n").err
    first, second = (int(number) for number in re.findall(r"prompt: (\d+) tokens", told))
    reply = llama2c.load(model).chat([{"role": "user", "content": "hi"}], temperature=0, max_tokens=None)
    assert reply.finish_reason == "stop"
    ids = chat_ids(tokenizer, [{"role": "user", "content": "hi"}])
    turns = (("user", "hi"), ("assistant", reply.text), ("user", "so?"))
    again = chat_ids(tokenizer, [{"role": role, "content": content} for role, content in turns])
    assert first == len(ids)
    assert second == len(again) - count_common([*ids, *reply.tokens[:-1]], again) < len(again) - len(ids) + 1


def test_chat_errors(make: Make, tmp_path: Path, command: Command) -> None:
    model = write_model(tmp_path / "llama2", make("llama2"), 2)
    path = tmp_path / "llama2" / "tokenizer_config.json"
    chat = (model, "-m", "chat", "-t", "0", "-y", "")
    result = command(*chat, stdin=b"a\xffb\n")
    assert result == (1, "User: ", "llama2c: error: text: expected valid UTF-8, found byte 0xFF at index 1\n")
    make("llama2", "{{ raise_exception('No.') }}")
    result = command(*chat, stdin=b"a\n")
    assert result == (1, "User: ", f"llama2c: error: {path}: chat template: No.\n")
    make("llama2", "{% for %}")
    result = command(*chat, "-i", "a")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert command(*chat) == (0, "User: \n", "")  # nobody said anything


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_story(make: Make, tmp_path: Path, command: Command, name: str) -> None:
    """The prompt's text, whether BOS is put before it or not, then that of Llama.generate."""
    model = write_model(tmp_path / name, tokenizer := make(name), cast(int, tokenizer.eos_id))
    llama = llama2c.load(model)
    for prompt in ("One day, żółw", " a", "🐢"):
        n_prompt = len(llama.tokenizer.encode(prompt))
        told = command(model, "-t", "0", "-n", "40", "-i", prompt)
        expected = llama.generate(prompt, temperature=0, max_tokens=41 - n_prompt).text
        assert (told.code, told.out) == (0, f"{prompt}{expected}\n")
        assert command(model, "-n", "1", "-i", prompt).code == 0
    assert command(model, "-n", "4", "-i", os.fsdecode(b"\xff")).err == (
        "llama2c: error: text: expected valid UTF-8, found byte 0xFF at index 0\n"
    )
    empty = command(model, "-t", "0", "-n", "5")
    if name == "chatml":
        assert empty == (1, "", "llama2c: error: prompt: expected 1 to 400 tokens (the context), found 0\n")
    else:
        assert empty.code == 0


def test_perplexity_puts_something_in_front(make: Make, tmp_path: Path, command: Command) -> None:
    model = write_model(tmp_path / "chatml", make("chatml"), 3)
    (tmp_path / "text").write_text("One day")
    result = command("perplexity", model, tmp_path / "text", "-o", "json")
    score = llama2c.load(model).score("One day")
    assert score.tokens[0] == 412
    assert f'"perplexity": {score.perplexity}' in result.out
