"""The page at /: how it is sent, and how it works in a browser, headless Chromium, against a real server.

The tests with a browser need the package playwright and Debian's chromium; CONTRIBUTING.md says how to get them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import chat_templates
import numpy as np
import pytest

import llama2c
from llama2c.llama import Llama
from llama2c.server import page as page_module
from llama2c.text.vocabulary import ChatTemplate
from llama2c.transformer import Transformer

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "llama2c" / "server" / "page.html"
TEXT = SOURCE.read_text(encoding="utf-8")
LINK = "#run="
PATIENCE = 60_000  # milliseconds for what takes a few


# ---------------------------------------------------------------------------
# as it is sent


class Elements(HTMLParser):
    """What a page contains: the texts of its styles and scripts, and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.cdata_elem in self.contents:
            self.contents[self.cdata_elem].append(data)


def test_the_page_and_its_headers(server) -> None:
    """The policy allows this style and this script, and nothing that is not listed here."""
    answer = server.ask("GET", "/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.data.decode() == TEXT
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    found = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    hashes = {}
    for tag, contents in Elements(TEXT).contents.items():
        digest = hashlib.sha256("".join(contents).encode()).digest()
        hashes[f"{tag}-src"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    none = ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types")
    others = {"connect-src": "'self'", "img-src": "data:", "require-trusted-types-for": "'script'"}
    assert found == {**dict.fromkeys(none, "'none'"), **hashes, **others}


def test_head_and_other_methods(server) -> None:
    whole, head = server.ask("GET", "/"), server.ask("HEAD", "/")
    assert (head.status, head.data) == (200, b"")
    own = ("date", "x-request-id")
    same = {name: value for name, value in whole.headers.items() if name not in own}
    assert {name: value for name, value in head.headers.items() if name not in own} == same
    assert int(head.headers["content-length"]) == len(whole.data)
    assert server.ask("POST", "/", {}).status == 405


def test_headers_do_not_grow_with_the_requests(start, llama) -> None:
    """An allowed origin adds headers to an answer, not to the next one."""
    server = start(llama, allowed_origins=("https://page.example",))
    first, again = (server.ask("GET", "/", headers={"Origin": "https://page.example"}) for _ in range(2))
    assert first.headers["access-control-allow-origin"] == "https://page.example"
    assert len(again.headers) == len(first.headers)
    assert "access-control-allow-origin" not in server.ask("GET", "/").headers


def test_the_page_needs_no_key_but_a_host_of_ours(start, llama) -> None:
    server = start(llama, key="secret")
    assert server.ask("GET", "/").data.decode() == TEXT
    assert server.ask("GET", "/v1/models").status == 401
    assert server.ask("GET", "/", headers={"Host": "evil.example"}).status == 403


def test_the_file_is_short_and_names_no_other_host() -> None:
    lines = TEXT.splitlines()
    assert len(lines) < 400
    assert max(map(len, lines)) <= 128
    assert "://" not in TEXT
    attributes = Elements(TEXT).attributes
    assert [value for name, value in attributes if name in ("src", "href", "action", "srcset")] == ["data:,"]
    assert [name for name, _ in attributes if name.startswith("on") or name == "style"] == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|@import|url\(", TEXT) == []


def test_the_file_is_in_the_wheel_and_in_the_source_distribution() -> None:
    """The tests run against the installed package."""
    assert page_module.PAGE.read_text(encoding="utf-8") == TEXT
    rules = [line.split() for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()]
    included = [rule for rule in rules if rule[0] == "recursive-include" and rule[1] == "llama2c/server"]
    assert any(fnmatch(SOURCE.name, pattern) for rule in included for pattern in rule[2:])


def test_a_page_with_two_scripts_is_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        page_module.policy("<style></style><script></script><script></script>")


# ---------------------------------------------------------------------------
# in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium: apt install chromium")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not start for root
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A tab on the page of a server, used as a person would; it notes what a page must not do."""

    tab: Any
    base: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tab.set_default_timeout(PATIENCE)
        self.tab.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.tab.on("console", self._note)
        self.tab.on("request", lambda request: request.url.startswith(self.base) or self.faults.append(request.url))

    def _note(self, message: Any) -> None:
        expected = message.text.startswith("Failed to load resource")  # a status that is an error, which the tests are about
        if message.type in ("error", "warning") and not expected:
            self.faults.append(f"console: {message.text}")

    def open(self, fragment: str = "") -> Visit:
        self.tab.goto(f"{self.base}/{fragment}")
        return self

    def set(self, **settings: Any) -> Visit:
        """Fill in settings by their labels: set(Temperature=0)."""
        if self.tab.locator("details").get_attribute("open") is None:
            self.tab.get_by_text("Settings").click()
        for label, value in settings.items():
            control = self.tab.get_by_label(label.replace("_", " "))
            if label == "Mode":
                control.select_option(value)
            else:
                control.fill(str(value))
        return self

    def ask(self, text: str) -> Visit:
        self.input.fill(text)
        self.input.press("Enter")
        return self

    def press(self, name: str) -> Visit:
        self.tab.get_by_role("button", name=name, exact=True).click()
        return self

    @property
    def input(self) -> Any:
        return self.tab.locator("#input")

    @property
    def last(self) -> Any:
        return self.tab.locator("article").last

    def answer(self, n: int = 1) -> str:
        """The text of the last of n answers, once it has ended."""
        self.tab.locator("article").nth(n - 1).and_(self.tab.locator('[aria-busy="false"]')).wait_for()
        assert self.tab.locator("article").count() == n
        text: str = self.last.locator(".answer").text_content()
        return text

    def wait_for_some(self, model: Any) -> None:
        """Let a Controlled model, which is held, make the beginning of an answer, and wait until it is on the page."""
        assert model.entered.acquire(timeout=60)
        for _ in range(3):
            model.step()
        self.last.locator(".answer").filter(has_text=re.compile(r"\S")).wait_for()

    def stats(self) -> str:
        text: str = self.last.locator(".stats").text_content()
        return text

    def seed(self) -> int:
        return int(re.search(r"seed (\d+)", self.stats())[1])  # type: ignore[index]

    def link(self) -> str:
        fragment: str = self.last.get_by_role("link", name="Link to this answer").get_attribute("href")
        assert fragment.startswith(LINK)
        return fragment


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens the page of a server in a new context. No tab may have had an error, a violation or a foreign request."""
    visits: list[Visit] = []
    contexts = []

    def opened(server: Any, fragment: str = "", **options: Any) -> Visit:
        contexts.append(browser.new_context(**options))
        visits.append(Visit(contexts[-1].new_page(), f"http://127.0.0.1:{server.port}"))
        return visits[-1].open(fragment)

    yield opened
    faults = [fault for visit in visits for fault in visit.faults]
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def chat_server(start):
    """The bundled model with a chat template."""
    pytest.importorskip("jinja2")
    llama = llama2c.load(n_threads=1)
    llama.tokenizer.chat_template = ChatTemplate(chat_templates.CHATML, "template", {})
    return start(llama)


class Scripted(Transformer):
    """Says one text, whatever it is asked."""

    script: tuple[int, ...] = ()
    begin: int | None = None

    def forward_batch(self, sequences: Any, *, logits: Any = 1, out: Any = None) -> Any:
        rows = super().forward_batch(sequences, logits=logits, out=out)
        [(_, cache)], n_rows = sequences, len(rows)
        if n_rows and self.begin is None:
            self.begin = cache.length
        for row, position in zip(rows, range(cache.length - n_rows + 1, cache.length + 1), strict=True):
            i = position - (self.begin or 0)
            row[:] = 0
            row[self.script[i] if i < len(self.script) else 2] = np.float32(30)
        return rows


def says(llama: Llama, text: str) -> Llama:
    transformer = Scripted(llama.transformer.checkpoint, n_threads=1)
    transformer.script = tuple(llama.tokenizer.encode(text, bos=False))
    return Llama(transformer, llama.tokenizer)


OPTIONS = {"temperature": 1, "top_p": 0.9, "max_tokens": 512}  # what the page has at first
HOSTILE = '<img src=x onerror="document.title=\'taken\'"><script>document.title="taken"</script>&amp;</div>\n<b>'


def test_a_story_is_that_of_the_interface(server, visit: Open) -> None:
    """The bundled model has no chat template: the page continues a text."""
    page = visit(server).set(Seed=7)
    text = page.ask("The little dog").answer()
    expected = server.complete(prompt="The little dog", seed=7, **OPTIONS).json
    assert text == expected["choices"][0]["text"]
    assert len(text) > 100
    assert page.stats().startswith(f"{expected['usage']['completion_tokens']} tokens")
    assert page.stats().endswith("seed 7")
    assert re.search(r", \d+ tok/s,", page.stats())
    assert page.tab.title() == "tales1M - llama2c"


def test_a_text_may_be_empty(server, visit: Open) -> None:
    page = visit(server).set(Seed=3, Most_tokens=20)
    page.input.press("Enter")
    assert page.answer() == server.complete(prompt="", seed=3, **{**OPTIONS, "max_tokens": 20}).json["choices"][0]["text"]
    assert page.stats().endswith("seed 3, cut at the limit")


def test_a_conversation_is_that_of_the_interface(chat_server, visit: Open) -> None:
    """System prompt, temperature, seed and date; the second question has the first answer before it."""
    page = visit(chat_server).set(System_prompt="Be brief.", Temperature=0.8, Seed=5, Most_tokens=20, Date="2024-02-29")
    options = {**OPTIONS, "temperature": 0.8, "max_tokens": 20, "seed": 5, "date": "2024-02-29"}
    messages = [{"role": "system", "content": "Be brief."}]
    for n, text in enumerate(["Hi", "  And\nthen? żółw 🐢 "], 1):
        messages.append({"role": "user", "content": text})
        expected = chat_server.ask("POST", "/v1/chat/completions", {"messages": messages, **options}).json
        found = page.ask(text).answer(n)
        assert found == expected["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": found})
    page.ask("   ")
    assert page.tab.locator("article").count() == 2  # nothing was asked


def test_the_form_of_llama_2_can_be_chosen(server, visit: Open) -> None:
    page = visit(server).set(Mode="chat", Seed=5, Most_tokens=20)
    expected = server.chat("Hi", seed=5, **{**OPTIONS, "max_tokens": 20}).json["choices"][0]["message"]["content"]
    assert page.ask("Hi").answer() == expected


def test_retry_has_a_new_seed_unless_one_is_set(server, visit: Open) -> None:
    page = visit(server).set(Most_tokens=30)
    first, seed = page.ask("The little dog").answer(), page.seed()
    again = page.press("Retry").answer()
    assert page.seed() != seed
    assert again != first
    expected = server.complete(prompt="The little dog", seed=page.seed(), **{**OPTIONS, "max_tokens": 30}).json
    assert again == expected["choices"][0]["text"]
    page.set(Seed=seed)
    assert page.press("Retry").answer() == first
    assert page.press("Retry").answer() == first


def test_the_last_message_can_be_edited(chat_server, visit: Open) -> None:
    page = visit(chat_server).set(Seed=5, Most_tokens=10)
    first = page.ask("Hi").answer()
    page.ask("Who are you?").answer(2)
    page.input.fill("a draft")
    page.press("Edit")
    assert page.input.input_value() == "Who are you?"
    page.press("Do not edit")
    assert page.input.input_value() == "a draft"
    page.press("Edit")
    found = page.ask("What is this?").answer(2)
    talk = [("user", "Hi"), ("assistant", first), ("user", "What is this?")]
    messages = [{"role": role, "content": content} for role, content in talk]
    expected = chat_server.ask("POST", "/v1/chat/completions", {"messages": messages, "seed": 5, **OPTIONS, "max_tokens": 10})
    assert found == expected.json["choices"][0]["message"]["content"]
    assert page.last.locator(".own").text_content() == "What is this?"
    assert page.input.input_value() == "a draft"


@pytest.mark.parametrize("key", [None, "Escape"], ids=["button", "key"])
def test_stop(start, controlled, visit: Open, key: str | None) -> None:
    """What has come stays, the server ends the request, and the next question can be asked."""
    server = start(controlled)
    controlled.transformer.hold()
    page = visit(server).set(Seed=7).ask("The little dog")
    page.wait_for_some(controlled.transformer)
    assert page.last.get_attribute("aria-busy") == "true"
    if key is None:
        page.press("Stop")
    else:
        page.tab.keyboard.press(key)
    text = page.answer()
    assert page.stats() == "Stopped."
    controlled.transformer.let_go()
    whole = controlled.generate("The little dog", seed=7, **OPTIONS).text
    assert whole.startswith(text)
    assert 0 < len(text) < len(whole)
    assert page.press("Retry").answer() == whole
    assert any(line.startswith("completions disconnect") for line in server.lines)


# ---------------------------------------------------------------------------
# links


def test_a_link_gives_the_same_answer_in_a_new_page(chat_server, visit: Open) -> None:
    """Also the conversation before it, and the settings."""
    page = visit(chat_server).set(System_prompt="Be brief.", Temperature=0.9, Most_tokens=20)
    first = page.ask("Hi & <b>").answer()
    second = page.ask("And then? 🐢").answer(2)
    described = json.loads(unquote(page.link().removeprefix(LINK)))
    assert described["fingerprint"] == chat_server.service.llama.fingerprint
    assert described["request"]["seed"] == page.seed()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", described["request"]["date"])
    other = visit(chat_server, page.link())
    assert other.answer(2) == second
    assert other.tab.locator(".answer").first.text_content() == first
    assert other.last.locator(".note").text_content() == "The server has the fingerprint of the link: this is the same answer."
    assert other.seed() == page.seed()
    assert other.tab.url == f"{other.base}/"  # a reload does not ask again
    assert other.link() == page.link()
    assert other.press("Retry").answer(2) == second


def test_a_link_of_a_story_in_a_page_that_is_open(server, visit: Open) -> None:
    """Only the fragment changes, so the page is not loaded again."""
    page = visit(server).set(Most_tokens=25)
    text, link = page.ask("The little dog").answer(), page.link()
    page.ask("A cat").answer(2)
    page.tab.evaluate("(link) => { location.hash = link; }", link)
    page.last.locator(".note").get_by_text("this is the same answer").wait_for()
    assert page.answer() == text


def test_a_link_to_another_model_says_so(server, chat_server, visit: Open) -> None:
    """The template counts, too."""
    page = visit(server).set(Most_tokens=5)
    page.ask("The little dog").answer()
    link = page.link().replace("tales1M", "stories")
    other = visit(chat_server, link)
    other.answer()
    note = other.last.locator(".note").text_content()
    ours, theirs = chat_server.service.llama.fingerprint, server.service.llama.fingerprint
    assert note == f"⚠ Not the answer of the link, made by stories ({theirs}): this is tales1M ({ours})."


@pytest.mark.parametrize(
    "data",
    [
        "", "%", "{", "null", "{}", '{"request": {}}', '{"request": {"prompt": "x"}}', '{"request": {"messages": []}}',
        json.dumps({"request": {"messages": [1], **OPTIONS}}), json.dumps({"request": {"prompt": {}, **OPTIONS}}),
    ],
)
def test_a_damaged_link_asks_for_nothing(server, visit: Open, data: str) -> None:
    page = visit(server, LINK + (data if data == "%" else quote(data)))
    page.tab.get_by_role("alert").get_by_text("This link is damaged").wait_for()
    assert page.tab.locator("article").count() == 0
    page.set(Most_tokens=3).ask("The").answer()


# ---------------------------------------------------------------------------
# texts are texts, and errors are told


def test_markup_is_text(start, llama: Llama, visit: Open) -> None:
    """In the answer, in the user's own message, and in what a link brings."""
    server = start(says(llama, HOSTILE))
    page = visit(server).set(Most_tokens=300)
    assert page.ask(HOSTILE).answer().strip() == HOSTILE
    other = visit(server, page.link())
    assert other.answer().strip() == HOSTILE
    for one in (page, other):
        assert one.last.locator(".own").text_content() == HOSTILE
        assert one.tab.locator("article").locator("img, script, b").count() == 0
        assert one.tab.title() == "tales1M - llama2c"


def test_an_error_is_shown_and_the_message_can_be_changed(server, visit: Open) -> None:
    page = visit(server).set(Seed=1, Most_tokens=5)
    page.ask("dog " * 2000).answer()
    error = page.last.locator(".error").text_content()
    assert error.startswith("prompt: expected 1 to")
    assert "(the context)" in error
    assert page.last.get_by_role("link").count() == 0
    page.press("Edit").ask("The little dog")
    expected = server.complete(prompt="The little dog", seed=1, **{**OPTIONS, "max_tokens": 5}).json
    assert page.answer() == expected["choices"][0]["text"]


def test_a_turn_that_failed_is_not_part_of_the_conversation(chat_server, visit: Open) -> None:
    page = visit(chat_server).set(Seed=1, Most_tokens=5)
    page.ask("dog " * 2000).answer()
    expected = chat_server.chat("Hi", seed=1, **{**OPTIONS, "max_tokens": 5}).json["choices"][0]["message"]["content"]
    assert page.ask("Hi").answer(2) == expected


def test_a_wrong_setting_is_shown_before_anything_is_asked(server, visit: Open) -> None:
    page = visit(server).set(Seed=-1)
    page.tab.get_by_text("Settings").click()
    page.ask("The")
    seed = page.tab.get_by_label("Seed")
    assert seed.evaluate("control => control.matches(':invalid') && control === document.activeElement")
    assert page.tab.locator("article").count() == 0
    assert page.input.input_value() == "The"


def test_a_key_is_asked_for_and_kept_over_a_reload(start, llama: Llama, visit: Open) -> None:
    """A link waits for it."""
    page = visit(start(llama)).set(Most_tokens=5)
    text, link = page.ask("The little dog").answer(), page.link()
    locked = visit(start(llama, key="secret"), link)
    locked.tab.get_by_role("alert").get_by_text("expected the API key").wait_for()
    for key in ("wrong", "secret"):
        assert locked.tab.get_by_label("API key").evaluate("control => control === document.activeElement")
        locked.tab.get_by_label("API key").fill(key)
        locked.tab.keyboard.press("Enter")
        if key == "wrong":
            locked.tab.get_by_role("alert").get_by_text("expected the API key").wait_for()
            locked.tab.get_by_label("API key").wait_for()
    assert locked.answer() == text
    assert not locked.tab.get_by_label("API key").is_visible()
    locked.tab.reload()
    assert locked.answer() == text
    locked.ask("A cat").answer(2)
    assert locked.last.locator(".error").text_content() == ""
    assert locked.tab.evaluate("document.cookie + localStorage.length + location.href") == f"0{locked.base}/"


def test_a_server_that_stops_in_the_middle(start, controlled, visit: Open) -> None:
    """The stream ends with an error, and what has come stays. Then the server refuses."""
    server, model = start(controlled), controlled.transformer
    model.hold()
    page = visit(server).ask("The little dog")
    page.wait_for_some(model)
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(server.service.engine.close)
        while not closing.done():
            model.go.release()
            model.entered.acquire(timeout=0.01)
    assert page.answer()
    assert page.last.locator(".error").text_content() == "the server is stopping"
    assert page.press("Retry").answer() == ""
    assert page.last.locator(".error").text_content() == "the server is stopping"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('data: {"error": {"message": "the server is <b>stopping</b>"}}\n\n', "the server is <b>stopping</b>"),
        (": still here\n\n", "The server ended before the answer did."),
        ("", "The server ended before the answer did."),
    ],
    ids=["event", "end", "nothing"],
)
def test_a_stream_that_breaks(server, visit: Open, body: str, error: str) -> None:
    page = visit(server)
    chunk = {"choices": [{"index": 0, "text": "A dog", "finish_reason": None}], "model": "m", "seed": 1}
    begin = f"data: {json.dumps(chunk)}\n\n" if body else ""
    page.tab.route("**/v1/completions", lambda route: route.fulfill(body=begin + body, content_type="text/event-stream"))
    assert page.ask("x").answer() == ("A dog" if body else "")
    assert page.last.locator(".error").text_content() == error
    page.tab.unroute("**/v1/completions")
    page.set(Most_tokens=3).press("Retry").answer()
    assert page.last.locator(".error").text_content() == ""


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, "The server cannot be reached, or the connection broke."),
        ({"status": 502, "body": "<html>Bad gateway</html>"}, "The server answered with status 502."),
        ({"status": 429, "json": {"error": {"message": "the queue is full"}}}, "the queue is full"),
    ],
    ids=["gone", "proxy", "full"],
)
def test_a_server_that_does_not_answer(server, visit: Open, answer: Any, error: str) -> None:
    page = visit(server)
    page.tab.route("**/v1/completions", lambda route: route.abort() if answer is None else route.fulfill(**answer))
    page.ask("x").answer()
    assert page.last.locator(".error").text_content() == error


# ---------------------------------------------------------------------------
# tabs, reloads, long answers


def test_two_tabs_at_once(server, visit: Open) -> None:
    pages = [visit(server).set(Seed=seed, Most_tokens=60) for seed in (1, 2)]
    for page in pages:
        page.ask("The little dog")
    for seed, page in enumerate(pages, 1):
        expected = server.complete(prompt="The little dog", seed=seed, **{**OPTIONS, "max_tokens": 60}).json
        assert page.answer() == expected["choices"][0]["text"]


def test_a_reload_in_the_middle_keeps_what_was_there(start, controlled, visit: Open) -> None:
    server = start(controlled)
    page = visit(server).set(Seed=7, Most_tokens=10)
    first = page.ask("A cat").answer()
    controlled.transformer.hold()
    page.ask("The little dog")
    page.wait_for_some(controlled.transformer)
    page.tab.reload()
    text = page.answer(2)
    assert text
    assert page.stats() == "Stopped."
    assert page.tab.locator(".answer").first.text_content() == first
    controlled.transformer.let_go()
    whole = controlled.generate("The little dog", seed=7, **{**OPTIONS, "max_tokens": 10}).text
    assert whole.startswith(text)
    assert page.press("Retry").answer(2) == whole  # the settings are there, too
    page.press("New")
    assert page.tab.locator("article").count() == 0
    page.tab.reload()
    page.tab.get_by_text("Write the beginning").wait_for()
    assert page.tab.locator("article").count() == 0


def test_a_long_answer_is_whole_and_in_blocks(server, visit: Open) -> None:
    """What is complete is not laid out again with each token: its lines are in blocks of their own."""
    page = visit(server)
    text = "".join(f"{i}: the little dog\n" for i in range(10_000))
    pieces = [text[i : i + 100] for i in range(0, len(text), 100)]
    chunks = [{"choices": [{"text": piece, "finish_reason": None}], "seed": 1} for piece in pieces]
    chunks.append({"choices": [{"text": "", "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.tab.route("**/v1/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    assert page.ask("x").answer() == text
    assert page.last.locator(".answer").evaluate("node => node.innerText").strip() == text.strip()
    assert page.tab.locator("#live p").count() <= 3
    assert page.tab.evaluate("innerHeight + scrollY >= document.body.scrollHeight - 1")  # its end is in view


# ---------------------------------------------------------------------------
# for everybody


def focused(page: Visit) -> str:
    """The name of what has the focus."""
    name: str = page.tab.evaluate(
        """() => {
            const { labels, textContent, name, id } = document.activeElement;
            return (labels?.[0]?.firstChild ?? document.activeElement).textContent.trim() || name || id;
        }"""
    )
    return name


def test_the_keyboard_alone(server, visit: Open) -> None:
    """The input has the focus at first; Tab goes through the page in its order; what has the focus can be seen."""
    page = visit(server)
    keys = page.tab.keyboard
    page.tab.get_by_text("Write the beginning").wait_for()
    assert focused(page) == "Beginning of a text"
    keys.type("The little")
    keys.press("Shift+Enter")
    keys.type("dog")
    assert page.input.input_value() == "The little\ndog"
    assert page.tab.locator("article").count() == 0
    for name in ("Settings", "New"):
        keys.press("Shift+Tab")
        assert focused(page) == name
        assert page.tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keys.press("Tab")
    keys.press("Enter")  # opens the settings
    names = []
    while not names or names[-1] != "Beginning of a text":
        keys.press("Tab")
        names.append(focused(page))
        if names[-1] == "Most tokens":
            keys.type("8")
    assert names == ["Mode", "Temperature", "Top-p", "Most tokens", "Seed", "Beginning of a text"]
    keys.press("Enter")
    text = page.answer()
    assert focused(page) == "Beginning of a text"
    names = []
    while not names or names[-1] != "Retry":
        keys.press("Shift+Tab")
        names.append(focused(page))
    assert names == ["Copy link", "Link to this answer", "Edit", "Retry"]
    keys.press("Enter")
    assert page.answer() != text
    assert focused(page) == "Beginning of a text"


def test_a_composition_is_not_sent(server, visit: Open) -> None:
    """Enter that ends the composition of a character belongs to the input method."""
    page = visit(server)
    page.input.fill("にほん")
    page.input.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    assert page.tab.locator("article").count() == 0


def test_names_for_a_screen_reader(server, visit: Open) -> None:
    page = visit(server).set(Seed=7)
    page.ask("The little dog").answer()
    for role, name in [
        ("heading", "llama2c"), ("heading", "You"), ("heading", "Model"), ("button", "New"), ("combobox", "Mode"),
        ("spinbutton", "Temperature"), ("spinbutton", "Top-p"), ("spinbutton", "Most tokens"), ("spinbutton", "Seed"),
        ("textbox", "Beginning of a text"), ("button", "Continue"), ("button", "Retry"), ("button", "Edit"),
        ("link", "Link to this answer"), ("button", "Copy link"), ("log", "What is new"), ("region", "Conversation"),
    ]:  # fmt: skip
        assert page.tab.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    assert page.tab.locator("html").get_attribute("lang") == "en"
    assert page.input.get_attribute("aria-describedby") == "keys"
    snapshot = page.tab.locator("body").aria_snapshot()
    assert re.findall(r"- (button|link|textbox|spinbutton|combobox)$", snapshot, re.MULTILINE) == [], snapshot


def test_an_answer_is_said_once_by_the_sentence(server, visit: Open) -> None:
    """The answer is not a live region; each of its sentences comes into one, once and in order, then the figures."""
    page = visit(server).set(Seed=7)
    page.tab.evaluate(
        """() => {
            window.said = [];
            const note = ({ addedNodes }) => addedNodes.forEach((node) => said.push(node.textContent));
            const observer = new MutationObserver((changes) => changes.forEach(note));
            observer.observe(document.getElementById("live"), { childList: true });
        }"""
    )
    text = page.ask("The little dog").answer()
    said = page.tab.evaluate("said")
    assert said.pop() == page.stats()
    assert re.sub(r"\s", "", "".join(said)) == re.sub(r"\s", "", text)
    assert all(one.rstrip()[-1] in '.!?"' for one in said[:-1])
    assert page.last.locator("[aria-live], [role=log], [role=status]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_and_contrasts(start, llama: Llama, visit: Open, scheme: str) -> None:
    """At 320 pixels nothing is cut or scrolls sideways, and all text has the contrast of WCAG's level AA, 4.5."""
    server = start(llama, key="secret")
    options = {"color_scheme": scheme, "viewport": {"width": 320, "height": 600}}
    page = visit(server, LINK, **options)
    page.tab.get_by_label("API key").fill("secret")
    page.press("Use the key")
    page.tab.get_by_role("alert").get_by_text("damaged").wait_for()
    page.set(Most_tokens=20).ask("x" * 200).answer()
    page.ask("dog " * 2000).answer(2)
    page.press("Edit")
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 320
    boxes = page.tab.locator("button:visible, input:visible, select:visible, textarea:visible, article:visible")
    assert boxes.count() > 10
    for box in boxes.all():
        bounds = box.bounding_box()
        assert bounds["x"] >= 0
        assert bounds["x"] + bounds["width"] <= 320
    found = page.tab.evaluate(COLORS)
    assert len({color for color, _ in found}) >= 4
    assert [pair for pair in found if contrast(*pair) < 4.5] == []
    page_color = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(page_color) < 0.1) == (scheme == "dark")


# The colors of each text that can be seen, and of what is behind it.
COLORS = """() => {
    const behind = (node) => {
        const color = getComputedStyle(node).backgroundColor;
        return color === "rgba(0, 0, 0, 0)" ? behind(node.parentElement) : color;
    };
    const seen = [...document.body.querySelectorAll("*")].filter((node) => node.checkVisibility() && node.innerText);
    return seen.map((node) => [getComputedStyle(node).color, behind(node)]);
}"""


def luminance(color: str) -> float:
    """As WCAG 2 defines it: "rgb(255, 255, 255)" -> 1.0."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.01)  # the best known pair
