"""Llama on a fake model and a byte tokenizer: text, streams, stop strings, chat, and how files are found."""

from __future__ import annotations

import copy
import math
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fakes import BOS, EOS, FakeTokenizer, FakeTransformer, fake_llama, spell

from llama2c import llama as module
from llama2c.errors import ModelError, RequestError
from llama2c.llama import Llama, load
from llama2c.text.chat import chat_ids, llama2_ids
from llama2c.text.tokenizer import Tokenizer
from llama2c.text.vocabulary import ChatTemplate

TEXT = "One day, a żółw said 'こんにちは 🐢' to me."
EMPTY_STOP = "stop: expected a string of at least one character, found an empty one"
PROMPT_IDS = [BOS, *spell(" Hi")]

# ---------------------------------------------------------------------------
# text


def test_generate() -> None:
    done = fake_llama(TEXT).generate("Hi", temperature=0)
    assert done.text == TEXT
    assert done.tokens == (*spell(TEXT), EOS)  # the stop token is counted
    assert (done.prompt_tokens, done.generation_tokens) == (4, len(TEXT.encode()) + 1)
    assert done.finish_reason == "stop"
    assert done.logprobs is None
    assert done.top_logprobs is None
    assert done.prompt_tps > 0
    assert done.generation_tps > 0
    with pytest.raises(FrozenInstanceError):
        done.text = ""  # type: ignore[misc]


def test_stream_is_generate_in_pieces() -> None:
    llama = fake_llama(TEXT)
    pieces = list(llama.stream("Hi", temperature=0))
    done = llama.generate("Hi", temperature=0)
    assert "".join(piece.text for piece in pieces) == done.text
    assert tuple(piece.token for piece in pieces) == done.tokens
    assert [piece.generation_tokens for piece in pieces] == list(range(1, len(done.tokens) + 1))
    assert {piece.prompt_tokens for piece in pieces} == {4}
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert "\ufffd" not in done.text


def test_a_character_comes_with_its_last_byte() -> None:
    texts = [piece.text for piece in fake_llama("é🐢").stream("Hi", temperature=0)]
    assert texts == ["", "é", "", "", "", "🐢", ""]


def test_a_broken_character_becomes_u_fffd() -> None:
    llama = fake_llama("a🐢".encode()[:-1])
    assert [piece.text for piece in llama.stream("Hi", temperature=0)] == ["a", "", "", "", "\ufffd"]
    assert llama.generate("Hi", temperature=0, max_tokens=3).text == "a\ufffd"


def test_only_after_bos_a_leading_space_is_dropped() -> None:
    assert fake_llama("  x").generate("", temperature=0).text == " x"
    assert fake_llama("  x").generate("Hi", temperature=0).text == "  x"


@pytest.mark.parametrize("prompt", ["Hi", b"Hi", PROMPT_IDS, np.array(PROMPT_IDS)])
def test_prompts(prompt: Any) -> None:
    llama = fake_llama("yes")
    assert llama.generate(prompt, temperature=0).text == "yes"
    assert llama.transformer.steps[0] == PROMPT_IDS  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------
# the end


@pytest.mark.parametrize(
    ("max_tokens", "text", "reason"),
    [(2, "ab", "length"), (3, "abc", "length"), (4, "abc", "stop"), (None, "abc", "stop")],
)
def test_max_tokens(max_tokens: int | None, text: str, reason: str) -> None:
    done = fake_llama("abc").generate("Hi", temperature=0, max_tokens=max_tokens)
    assert (done.text, done.finish_reason) == (text, reason)


def test_max_tokens_0() -> None:
    llama = fake_llama("abc")
    done = llama.generate("Hi", max_tokens=0, logprobs=2)
    assert (done.text, done.tokens, done.finish_reason) == ("", (), "length")
    assert (done.prompt_tokens, done.prompt_tps, done.generation_tokens, done.generation_tps) == (4, 0, 0, 0)
    assert list(llama.stream("Hi", max_tokens=0)) == []
    assert llama.transformer.steps == []  # type: ignore[attr-defined]


def test_256_tokens_by_default() -> None:
    assert fake_llama("x" * 400).generate("Hi", temperature=0).generation_tokens == 256


def test_end_of_the_context() -> None:
    llama = fake_llama("abcdefghij", seq_len=8)
    done = llama.generate("Hi", temperature=0, max_tokens=None)
    assert (done.text, done.finish_reason) == ("abcde", "length")  # 4 + 5 tokens, the last not fed
    assert llama.generate("Hi5678", temperature=0).text == "a"  # BOS, a space and six bytes: full


def test_a_drawn_bos_is_a_stop_without_text() -> None:
    done = fake_llama([*spell("ab"), BOS, *spell("c")]).generate("Hi", temperature=0)
    assert (done.text, done.tokens, done.finish_reason) == ("ab", (*spell("ab"), BOS), "stop")


@pytest.mark.parametrize(("max_tokens", "length"), [(3, 6), (1, 4), (1000, 64), (None, 64), (0, 4)])
def test_the_cache_is_as_long_as_needed(max_tokens: int | None, length: int) -> None:
    llama = fake_llama("abc", seq_len=64)
    llama.generate("Hi", max_tokens=max_tokens)
    assert [cache.max_length for cache in llama.transformer.caches] == [length]  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------
# stop strings


@pytest.mark.parametrize(
    ("written", "stop", "text"),
    [
        ("one two three", "two", "one "),
        ("one two three", ["three", "two"], "one "),
        ("one two three", "four", None),
        ("one two three", (), None),
        ("aab", "ab", "a"),
        ("aaab", "aab", "a"),
        ("abcabd.", "abd", "abc"),  # the second start is inside what looked like the first
        ("one", "one", ""),
        ("two", "o", "tw"),
        ("ab END", "ENDING", None),  # what was held back is given at the end
        ("abc", ["abcd", "bc"], "a"),
        ("abc", ["bc", "abc"], ""),  # both complete at once: the longer
        ("xabc", ["abc", "b"], "xa"),  # b is complete first
        ("dzień dobry 🐢🐇 x", "🐢🐇", "dzień dobry "),
        ("🐢🐇", "🐇", "🐢"),
        ("🐢\n\nUser: ", "\nUser:", "🐢\n"),
    ],
)
def test_stop_strings(written: str, stop: Any, text: str | None) -> None:
    llama = fake_llama(written)
    done = llama.generate("Hi", temperature=0, stop=stop)
    assert (done.text, done.finish_reason) == (written if text is None else text, "stop")
    assert (done.tokens[-1] == EOS) == (text is None)
    pieces = list(llama.stream("Hi", temperature=0, stop=stop))
    assert "".join(piece.text for piece in pieces) == done.text
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    # at no time was anything printed that does not belong to the text
    printed = ""
    for piece in pieces:
        printed += piece.text
        assert done.text.startswith(printed)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    texts = [piece.text for piece in fake_llama("a EN.ENDx").stream("Hi", temperature=0, stop="END")]
    assert texts == ["a", " ", "", "", "EN.", "", "", ""]


@pytest.mark.parametrize(
    ("script", "stop", "text"),
    [
        ([259, 260], "END", "see "),
        ([261], ";", "a"),
        ([261], "c", "a;b;"),
        ([261], [";b;c", "b"], "a;"),  # b is complete first, though the other starts before it
    ],
)
def test_a_stop_string_inside_a_token(script: list[int], stop: Any, text: str) -> None:
    llama = fake_llama(script, pieces=[b"see EN", b"D of", b"a;b;c"])
    done = llama.generate("Hi", temperature=0, stop=stop)
    assert (done.text, done.finish_reason, done.tokens) == (text, "stop", tuple(script))


def test_a_stop_string_beats_the_length() -> None:
    llama = fake_llama("abcd")
    assert llama.generate("Hi", temperature=0, max_tokens=3, stop="c").finish_reason == "stop"
    done = llama.generate("Hi", temperature=0, max_tokens=3, stop="cd")  # c is held back, then given
    assert (done.text, done.finish_reason) == ("abc", "length")


# ---------------------------------------------------------------------------
# options


def test_seeds_are_reproducible_and_requests_independent() -> None:
    llama = fake_llama()
    options: dict[str, Any] = {"max_tokens": 20, "top_p": 1.0}
    alone = {seed: llama.generate("Hi", seed=seed, **options).tokens for seed in range(4)}
    assert len(set(alone.values())) == 4
    streams = {seed: llama.stream("Hi", seed=seed, **options) for seed in alone}
    tokens: dict[int, list[int]] = {seed: [] for seed in alone}
    for _ in range(20):  # in turn, a token of each
        for seed, stream in streams.items():
            tokens[seed] += [piece.token for piece in [next(stream, None)] if piece]
    assert {seed: tuple(ids) for seed, ids in tokens.items()} == alone
    with ThreadPoolExecutor(4) as pool:
        threaded = pool.map(lambda seed: llama.generate("Hi", seed=seed, **options).tokens, alone)
        assert dict(zip(alone, threaded, strict=True)) == alone


def test_without_a_seed_requests_differ() -> None:
    llama = fake_llama()
    assert len({llama.generate("Hi", max_tokens=20, top_p=1.0).tokens for _ in range(4)}) == 4


def test_a_completion_says_its_seed() -> None:
    llama = fake_llama()
    assert llama.generate("Hi", seed=2**64 - 1, max_tokens=2).seed == 2**64 - 1
    first = llama.generate("Hi", max_tokens=20, top_p=1.0)
    assert first.seed < 2**53
    assert llama.generate("Hi", max_tokens=20, top_p=1.0, seed=first.seed).tokens == first.tokens
    assert llama.chat([user("Hi")], seed=5, max_tokens=0).seed == 5


def test_logit_bias() -> None:
    llama = fake_llama("abc")
    assert llama.generate("Hi", temperature=0, logit_bias={100: -1000}, max_tokens=1).text != "a"
    assert llama.generate("Hi", temperature=0, logit_bias={100 + 23: 1000.0}, max_tokens=3).text == "xxx"
    pieces = llama.stream("Hi", temperature=0, logit_bias=dict.fromkeys((0, 1, 2), -math.inf), stop="c")
    assert "".join(piece.text for piece in pieces) == "ab"


def test_a_sequence_is_the_request_itself() -> None:
    """What Llama.sequence gives can be driven by a loop of one's own."""
    llama = fake_llama(TEXT)
    sequence = llama.sequence("Hi", temperature=0, stop="said")
    cache, text = llama.transformer.new_cache(sequence.n_positions), ""
    assert (sequence.to_feed, sequence.n_prompt) == (PROMPT_IDS, 4)
    while sequence.finish_reason is None:
        logits = llama.transformer.forward(sequence.to_feed, cache, logits=None)[-1:]
        text += "".join(step.text for step in sequence.accept(logits))
    assert text == llama.generate("Hi", temperature=0, stop="said").text == TEXT[: TEXT.index("said")]


def test_options_reach_the_sampler() -> None:
    llama = fake_llama()
    greedy = llama.generate("Hi", temperature=0, max_tokens=20).tokens
    for options in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        assert llama.generate("Hi", max_tokens=20, **options).tokens == greedy  # type: ignore[arg-type]
    assert llama.generate("Hi", max_tokens=20, temperature=5.0, seed=1).tokens != greedy
    assert greedy[0] not in PROMPT_IDS
    rewarded = llama.generate("Hi", temperature=0, max_tokens=1, repetition_penalty=1e-6).tokens
    assert rewarded[0] in PROMPT_IDS


def test_logprobs() -> None:
    llama = fake_llama("ab")
    # one logit is 30, the other 258 are 0
    likely, unlikely = -math.log1p(258 * math.exp(-30)), -30 - math.log1p(258 * math.exp(-30))
    done = llama.generate("Hi", temperature=0, logprobs=3)
    assert done.logprobs == pytest.approx((likely,) * 3, abs=1e-6)
    assert done.top_logprobs is not None
    assert [[token for token, _ in top] for top in done.top_logprobs] == [
        [100, 0, 1],
        [101, 0, 1],
        [EOS, 0, 1],
    ]
    assert done.top_logprobs[0][1][1] == pytest.approx(unlikely, abs=1e-4)
    pieces = list(llama.stream("Hi", temperature=0, logprobs=3))
    assert tuple(piece.logprob for piece in pieces) == done.logprobs
    assert tuple(piece.top_logprobs for piece in pieces) == done.top_logprobs
    first = next(llama.stream("Hi"))
    assert (first.logprob, first.top_logprobs) == (None, ())


def test_a_stream_given_up() -> None:
    llama = fake_llama(TEXT)
    stream = llama.stream("Hi", temperature=0)
    assert next(stream).text == "O"
    stream.close()  # type: ignore[attr-defined]
    assert next(stream, None) is None
    assert llama.generate("Hi", temperature=0).text == TEXT


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("Hi, world", {}, ValueError, "prompt: expected 1 to 8 tokens (the context), found 11"),
        ("Hi, you", {"max_tokens": 0}, ValueError, "prompt: expected 1 to 8 tokens (the context), found 9"),
        ([], {}, ValueError, "prompt: expected 1 to 8 tokens (the context), found 0"),
        ([1, 259], {}, ValueError, "prompt: expected token ids from 0 to 258, found 259"),
        (["Hi"], {}, TypeError, "prompt: expected token ids, found str"),
        (None, {}, TypeError, "prompt: expected str, bytes or token ids, found NoneType"),
        ("", {"max_tokens": -1}, ValueError, "max_tokens: expected an integer of at least 0, found -1"),
        ("", {"max_tokens": "9"}, TypeError, "max_tokens: expected an integer, found str"),
        ("", {"stop": ""}, ValueError, EMPTY_STOP),
        ("", {"stop": ["a", ""]}, ValueError, EMPTY_STOP),
        ("", {"stop": b"a"}, TypeError, "stop: expected a str or a sequence of str, found bytes"),
        ("", {"stop": [1]}, TypeError, "stop: expected a str or a sequence of str, found int"),
        ("", {"stop": None}, TypeError, "stop: expected a str or a sequence of str, found NoneType"),
        ("", {"logprobs": -1}, ValueError, "logprobs: expected an integer from 0 to 259, found -1"),
        ("", {"temperature": math.nan}, ValueError,
         "temperature: expected a finite number of at least 0, found nan"),
        ("", {"top_p": 2}, ValueError, "top_p: expected a number from 0 to 1, found 2.0"),
        ("", {"seed": -1}, ValueError, f"seed: expected an integer from 0 to {2**64 - 1}, found -1"),
    ],
)  # fmt: skip
def test_bad_arguments(prompt: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    llama = fake_llama("abc", seq_len=8)
    for method in (llama.generate, llama.stream):  # of a stream, at the call
        with pytest.raises(error) as caught:
            method(prompt, **options)
        assert str(caught.value) == message
        if error is ValueError:
            assert isinstance(caught.value, RequestError) and caught.value.param == message.partition(":")[0]
    assert llama.transformer.steps == []  # type: ignore[attr-defined]


def test_options_are_keywords() -> None:
    with pytest.raises(TypeError, match="positional"):
        fake_llama().generate("Hi", 5)  # type: ignore[misc]
    names = "frequency_penalty, grammar, logit_bias, logprobs, max_tokens, min_p, presence_penalty, regex, repetition_penalty"
    names += ", schema, seed, stop, temperature, top_k, top_p"
    with pytest.raises(TypeError, match=f"^max_token: unknown option; there are {names}$"):
        fake_llama().chat([{"role": "user", "content": "Hi"}], max_token=5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^stop_tokens: unknown option"):
        fake_llama().stream("Hi", stop_tokens=[3])  # type: ignore[call-arg]


# ---------------------------------------------------------------------------
# chat


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


@pytest.mark.parametrize(
    ("messages", "ids"),
    [
        ([user("Hi")], [BOS, *spell(" [INST] Hi [/INST]")]),
        ([system("S"), user("Hi")], [BOS, *spell(" [INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST]")]),
        ([system(""), user("Hi")], [BOS, *spell(" [INST] Hi [/INST]")]),
        (
            [system("S"), user("a"), assistant("b"), user("c")],
            [
                *[BOS, *spell(" [INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b"), EOS],
                *[BOS, *spell(" [INST] c [/INST]")],
            ],
        ),
        (
            [user("a"), assistant(""), user("c"), assistant("d"), user("")],
            [
                *[BOS, *spell(" [INST] a [/INST]"), EOS],
                *[BOS, *spell(" [INST] c [/INST] d"), EOS],
                *[BOS, *spell(" [INST]  [/INST]")],
            ],
        ),
    ],
)
def test_chat_ids(messages: list[dict[str, str]], ids: list[int]) -> None:
    tokenizer: Any = FakeTokenizer()
    assert chat_ids(tokenizer, messages) == ids
    llama = fake_llama(" ok")
    assert llama.chat(messages, temperature=0).text == "ok"
    assert llama.transformer.steps[0] == ids  # type: ignore[attr-defined]


@pytest.mark.parametrize(("written", "text"), [(" Hello", "Hello"), ("Hello", "Hello"), ("  x ", " x "), ("", "")])
def test_a_reply_loses_one_leading_space(written: str, text: str) -> None:
    llama = fake_llama(written)
    done = llama.chat([user("Hi")], temperature=0)
    pieces = list(llama.chat([user("Hi")], stream=True, temperature=0))
    assert done.text == text
    assert "".join(piece.text for piece in pieces) == text
    assert done.tokens == (*spell(written), EOS)
    assert done.prompt_tokens == len(" [INST] Hi [/INST]") + 1


def test_a_reply_keeps_further_spaces_of_the_same_token() -> None:
    assert fake_llama([259, 259], pieces=[b"  x"]).chat([user("Hi")], temperature=0).text == " x  x"


def test_chat_takes_options() -> None:
    done = fake_llama(" one two").chat([user("Hi")], temperature=0, stop="two", logprobs=1)
    assert (done.text, done.finish_reason) == ("one ", "stop")
    assert done.logprobs is not None
    assert fake_llama(" one").chat([user("Hi")], temperature=0, max_tokens=2).text == "o"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages[0]: expected a 'user' turn, found no messages"),
        ([assistant("a")], "messages[0]: expected role 'user', found 'assistant'"),
        ([system("a")], "messages[0]: expected role 'user' at the end, found 'system'"),
        ([user("a"), user("b")], "messages[1]: expected role 'assistant', found 'user'"),
        ([user("a"), system("b")], "messages[1]: expected role 'assistant', found 'system'"),
        ([system("a"), system("b")], "messages[1]: expected role 'user', found 'system'"),
        ([user("a"), assistant("b")], "messages[1]: expected role 'user' at the end, found 'assistant'"),
        ([{"role": "tool", "content": "a"}], "messages[0]: expected role 'user', found 'tool'"),
        ([{"role": None, "content": "a"}], "messages[0]: expected role 'user', found None"),
        ([{"role": "user"}], "messages[0]: expected a dict of 'role' and 'content', found ['role']"),
        (["Hi"], "messages[0]: expected a dict of 'role' and 'content', found str"),
        ([user("a"), assistant("b"), {"role": "user", "content": 3}],
         "messages[2]: expected a str as content, found int"),
    ],
)  # fmt: skip
def test_bad_messages(messages: Any, message: str) -> None:
    for stream in (False, True):
        with pytest.raises(ValueError) as caught:
            fake_llama().chat(messages, stream=stream)
        assert str(caught.value) == message


# ---------------------------------------------------------------------------
# score


@pytest.mark.parametrize(
    ("seq_len", "stride", "n"),
    [
        (64, None, 40),  # one window
        (64, None, 62),
        (64, None, 63),  # the last id is scored, but does not go in
        (64, None, 64),
        (16, None, 50),
        (16, 8, 50),
        (16, 1, 50),
        (16, 5, 50),
        (16, 16, 50),
        (150, 30, 230),  # windows of several chunks
        (1, None, 9),
        (1, 1, 9),
    ],
)
def test_score(seq_len: int, stride: int | None, n: int) -> None:
    """By the definition: token i given the tokens from s on, the first window's end that reaches it."""
    llama = fake_llama(seq_len=seq_len)
    text = "".join(random.Random(n).choices("ab cd.", k=n))
    score = llama.score(text, stride=stride)
    ids = [BOS, *spell(" " + text)]
    step = stride or max(1, seq_len // 2)
    expected = []
    for i in range(1, len(ids)):
        s = step * max(0, math.ceil((i - seq_len) / step))
        logits = np.random.default_rng(ids[s:i]).normal(0, 2, 259)  # what the fake model says after these ids
        expected.append(logits[ids[i]] - math.log(np.exp(logits).sum()))
    assert score.tokens == tuple(ids)
    assert score.logprobs == pytest.approx(expected, abs=1e-5)
    assert all(type(logprob) is float for logprob in score.logprobs)
    assert score.n_bytes == n
    assert score.logprob == pytest.approx(sum(expected))
    assert score.perplexity == pytest.approx(math.exp(-sum(expected) / (n + 1)), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(-sum(expected) / math.log(2) / n)
    steps = llama.transformer.steps  # type: ignore[attr-defined]
    assert len(llama.transformer.caches) == 1  # type: ignore[attr-defined]
    assert steps[0][0] == BOS and max(map(len, steps)) <= max(64, seq_len)


def test_score_counts_bytes() -> None:
    llama = fake_llama()
    for text in ("żółw 🐢", "żółw 🐢".encode(), b"\xff\x00\xc5"):
        data = text.encode() if isinstance(text, str) else text
        score = llama.score(text)
        assert (score.n_bytes, score.tokens) == (len(data), (BOS, *spell(b" " + data)))
    assert llama.score("żółw 🐢") == llama.score("żółw 🐢".encode())
    with pytest.raises(FrozenInstanceError):
        llama.score("a").n_bytes = 2  # type: ignore[misc]


def test_score_of_one_token() -> None:
    llama = fake_llama(script=[259], pieces=[b" a"])
    llama.tokenizer.encode = lambda text: [BOS, 259]  # type: ignore[method-assign]
    score = llama.score("a")
    assert score.tokens == (BOS, 259)
    assert score.perplexity == pytest.approx(math.exp(-score.logprobs[0]))


@pytest.mark.parametrize(
    ("text", "stride", "error", "message"),
    [
        ("", None, ValueError, "text: expected at least one byte, found an empty text"),
        (b"", None, ValueError, "text: expected at least one byte, found an empty text"),
        ("a", 0, ValueError, "stride: expected an integer from 1 to 8, found 0"),
        ("a", -1, ValueError, "stride: expected an integer from 1 to 8, found -1"),
        ("a", 9, ValueError, "stride: expected an integer from 1 to 8, found 9"),
        ("a", 1.0, TypeError, "stride: expected an integer, found float"),
    ],
)
def test_wrong_scores(text: Any, stride: Any, error: type[Exception], message: str) -> None:
    llama = fake_llama(seq_len=8)
    with pytest.raises(error) as caught:
        llama.score(text, stride=stride)
    assert str(caught.value) == message
    assert llama.transformer.steps == []  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------
# loading


def test_repr_and_parts() -> None:
    llama = fake_llama(seq_len=77)
    assert repr(llama).startswith("Llama(Config(dim=2, ")
    assert "seq_len=77" in repr(llama)
    assert repr(llama).endswith("n_threads=1)")
    assert isinstance(llama.transformer, FakeTransformer)
    assert isinstance(llama.tokenizer, FakeTokenizer)


def test_a_tokenizer_of_another_size() -> None:
    transformer: Any = FakeTransformer(vocab_size=300)
    tokenizer: Any = FakeTokenizer()
    with pytest.raises(ModelError) as caught:
        Llama(transformer, tokenizer)
    assert str(caught.value) == "tokenizer: expected 300 tokens as the model has, found 259"


@pytest.mark.parametrize("given", [None, "given.bin"])
def test_load_puts_the_parts_together(given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, result: Any) -> Any:
        return lambda *args, **kwargs: calls.append((name, args, kwargs)) or result

    calls: list[Any] = []
    transformer, tokenizer = FakeTransformer(), FakeTokenizer()
    checkpoint = SimpleNamespace(config=transformer.config, path="model.bin", metadata={})
    (tmp_path / "tokenizer.bin").touch()
    monkeypatch.setattr(module.Checkpoint, "open", part("checkpoint", checkpoint))
    monkeypatch.setattr(module.Tokenizer, "open", part("tokenizer", tokenizer))
    monkeypatch.setattr(module, "Transformer", part("transformer", transformer))
    llama = load(tmp_path / "model.bin", tokenizer=given, n_threads=3, mmap=False, kv="float16")
    assert (llama.transformer, llama.tokenizer) == (transformer, tokenizer)
    assert sorted(calls, key=lambda call: call[0]) == [
        ("checkpoint", (tmp_path / "model.bin",), {"mmap": False}),
        ("tokenizer", (given or tmp_path / "tokenizer.bin",), {"vocab_size": 259}),
        ("transformer", (checkpoint, 3), {"kv": "float16"}),
    ]


def test_load_a_real_model(shared: Path) -> None:
    llama = load(shared / "models" / "stories260K.bin", tokenizer=shared / "models" / "tok512.bin")
    assert (llama.tokenizer.vocab_size, llama.transformer.config.dim) == (512, 64)
    done = llama.generate("Once upon a time", temperature=0, max_tokens=40)
    pieces = list(llama.stream("Once upon a time", temperature=0, max_tokens=40))
    assert done.text.startswith(", there was a little girl named Lily.")
    assert "".join(piece.text for piece in pieces) == done.text


def test_score_with_a_real_model(shared: Path) -> None:
    llama = load(shared / "models" / "stories260K.bin", tokenizer=shared / "models" / "tok512.bin")
    with pytest.raises(ValueError, match=r"^text: expected valid Unicode, found a lone surrogate U\+D800 at index 1$"):
        llama.score("a\ud800")
    with pytest.raises(TypeError, match=r"^text: expected str, bytes or token ids, found NoneType$"):
        llama.score(None)  # type: ignore[arg-type]
    told = llama.generate("Once upon a time", temperature=0, max_tokens=60, logprobs=1)
    score = llama.score("Once upon a time" + told.text)
    assert told.logprobs is not None
    assert score.tokens[-60:] == told.tokens
    assert score.logprobs[-60:] == told.logprobs  # the same bits


def test_score_of_ids_after_a_context(shared: Path) -> None:
    llama = load(shared / "models" / "stories260K.bin", tokenizer=shared / "models" / "tok512.bin")
    text = "Once upon a time, there was a dog."
    ids, whole = llama.tokenizer.encode(text), llama.score(text)
    assert llama.score(ids).logprobs == whole.logprobs
    for given in (ids, text):
        score = llama.score(given, context_length=5)
        assert (score.tokens, score.logprobs) == (tuple(ids), whole.logprobs[4:])
        assert score.n_bytes == len(" " + text) - len(llama.tokenizer.decode(ids[1:5]))  # decode keeps the space
    told = llama.generate(ids[1:], temperature=0, max_tokens=5, logprobs=1)  # ids are taken as they are, without BOS
    assert llama.score([*ids[1:], *told.tokens], context_length=len(ids) - 1).logprobs == told.logprobs
    for n in (0, len(ids)):
        with pytest.raises(RequestError, match=rf"^context_length: expected an integer .*, found {n}$"):
            llama.score(ids, context_length=n)
    with pytest.raises(TypeError, match=r"^context_length: expected an integer, found float$"):
        llama.score(ids, context_length=1.0)  # type: ignore[arg-type]


def test_copies_of_a_model_open_its_files_again(shared: Path) -> None:
    llama = load(shared / "models" / "stories260K.bin", tokenizer=shared / "models" / "tok512.bin", n_threads=1)
    expected = llama.generate("Once upon a time", temperature=0, max_tokens=20)
    assert llama.tokenizer.path == str(shared / "models" / "tok512.bin")
    for copied in (copy.copy(llama), copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert copied.generate("Once upon a time", temperature=0, max_tokens=20).tokens == expected.tokens
        assert (copied.tokenizer.path, copied.transformer.n_threads) == (llama.tokenizer.path, 1)
    assert len(pickle.dumps(llama)) < 10_000  # names of files, not weights
    made = Tokenizer(llama.tokenizer._vocabulary)
    assert copy.copy(made) is copy.deepcopy(made) is made
    with pytest.raises(TypeError, match=r"^a Tokenizer that was not opened from a file cannot be pickled$"):
        pickle.dumps(made)


def test_a_pickle_of_relative_paths_opens_from_another_folder(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared / "models")
    pickled = pickle.dumps(load("stories260K.bin", tokenizer="tok512.bin", n_threads=1))
    monkeypatch.chdir(tmp_path)
    llama = pickle.loads(pickled)
    assert llama.tokenizer.path == str(shared / "models" / "tok512.bin")
    assert llama.generate("Once upon a time", temperature=0, max_tokens=8).text == ", there was a little girl"


def test_chat_hands_options_and_the_date_to_the_template(tmp_path: Path) -> None:
    class Templated(FakeTokenizer):
        def __init__(self) -> None:
            super().__init__()
            source = "{{ messages[0].content }} {{ style }} {{ strftime_now('%Y-%m-%d') }}"
            self.chat_template = ChatTemplate(source, "template", {})  # type: ignore[assignment]

    pytest.importorskip("jinja2", reason="needs Jinja2")
    llama = Llama(cast(Any, FakeTransformer(spell("ok"))), cast(Any, Templated()))
    options: Any = {"template_options": {"style": "brief"}, "now": date(2026, 2, 3), "temperature": 0}
    assert llama.chat([user("Hi")], **options).text == "ok"
    assert llama.transformer.steps[0] == spell(" Hi brief 2026-02-03")  # type: ignore[attr-defined]
    assert "".join(piece.text for piece in llama.chat([user("Hi")], stream=True, **options)) == "ok"
    with pytest.raises(RequestError, match=r"^template_options: this tokenizer has no chat template to take them$"):
        fake_llama().chat([user("Hi")], template_options={"style": "brief"})


# ---------------------------------------------------------------------------
# what a chat has computed before


def conversation(llama: Llama, n_turns: int, **options: Any) -> list[str]:
    """The replies of a chat in which each turn has those before it."""
    messages, replies = [], []
    for i in range(n_turns):
        messages.append(user(f"Question {i}"))
        replies.append(llama.chat(messages, seed=i, max_tokens=12, **options).text)
        messages.append({"role": "assistant", "content": replies[-1]})
    return replies


def test_a_chat_computes_only_what_is_new() -> None:
    llama = fake_llama("abcd", seq_len=512)
    assert conversation(llama, 3, temperature=0) == ["abcd"] * 3
    steps = llama.transformer.steps  # type: ignore[attr-defined]
    prompts = [step for step in steps if len(step) > 1]
    whole = llama2_ids(llama.tokenizer, [user("Question 0"), {"role": "assistant", "content": "abcd"}, user("Question 1")])
    assert prompts[0] == llama2_ids(llama.tokenizer, [user("Question 0")])
    assert len(prompts[1]) < len(whole) - len(prompts[0]) + 2
    assert len(prompts[2]) < len(prompts[1]) + 6


def test_what_a_chat_remembers_changes_no_reply() -> None:
    """Two conversations by turns, one that is left in the middle of a reply, and the same question again."""
    real = load(n_threads=1)
    messages = [user("Tell me a story about a dog.")]
    expected = [load(n_threads=1).chat(messages, seed=seed, max_tokens=20, logprobs=1) for seed in range(3)]
    left = real.chat(messages, stream=True, seed=9, max_tokens=20)
    assert [next(left).generation_tokens for _ in range(5)] == [1, 2, 3, 4, 5]
    left.close()  # type: ignore[attr-defined]
    for seed in (0, 1, 2, 1):
        found = real.chat(messages, seed=seed, max_tokens=20, logprobs=1)
        assert (found.tokens, found.logprobs) == (expected[seed].tokens, expected[seed].logprobs)
    assert real._chats is not None and real._chats.hits == 4
    assert conversation(real, 4) == conversation(load(n_threads=1), 4)


def test_who_finds_another_chat_at_work_goes_on_without() -> None:
    llama = fake_llama("abcd")
    assert llama.chat([user("Hi")], temperature=0).text == "abcd"
    with llama._chat_lock:  # as another thread, or one that a fork has left behind
        assert llama.chat([user("Hi")], temperature=0).text == "abcd"
    copied = copy.copy(llama)
    assert copied._chats is None and copied.chat([user("Hi")], temperature=0).text == "abcd"
    assert pickle.loads(pickle.dumps(load())).chat([user("Hi")], max_tokens=2, seed=1).generation_tokens == 2


def test_a_chat_that_is_observed_is_computed() -> None:
    llama = fake_llama("abcd")
    llama.transformer.observer = lambda step: None
    for _ in range(2):
        llama.chat([user("Hi")], temperature=0)
    steps = llama.transformer.steps  # type: ignore[attr-defined]
    assert len([step for step in steps if step == llama2_ids(llama.tokenizer, [user("Hi")])]) == 2


def test_a_chat_that_remembers_nothing() -> None:
    llama = load(n_threads=1)
    llama.chat_bytes = 0
    assert conversation(llama, 2) == conversation(load(n_threads=1), 2)
    assert llama._chats is not None and llama._chats.bytes == llama._chats.hits == 0
