"""docs/server.md: its examples run against a real server, and the table of fields is that of the code."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("llguidance", reason="needs llguidance")

import chat_templates
from tool_models import open_scripted, write_folder

from llama2c.commands.serve import make_parser
from llama2c.errors import RequestError
from llama2c.server.protocol import NO_EFFECT, read_chat, read_completion

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:8080"
SECONDS = 120
NOT_RUN = {"text", "yaml", "nginx"}  # commands that take a model or a network, and settings of other programs


@pytest.fixture(scope="module")
def address(start: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a server with a model that knows tools. What it says makes no sense."""
    folder = write_folder(tmp_path_factory.mktemp("page") / "model", chat_templates.HERMES)
    return f"127.0.0.1:{start(open_scripted(folder)).port}"


def of_kind(kind: str) -> list[str]:
    return [content for found, content in BLOCKS if found == kind]


def run(*command: str | Path, folder: Path, **env: str) -> str:
    """stdout. The command has to succeed, and to write nothing on stderr."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path, **env}, capture_output=True, encoding="utf-8", timeout=SECONDS
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_every_block_is_run_or_known() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "javascript", *NOT_RUN}
    assert all(ADDRESS in block for block in of_kind("bash"))


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl"))), reason="needs bash and curl")
@pytest.mark.parametrize("block", range(len(of_kind("bash"))))
def test_commands(block: int, address: str, tmp_path: Path) -> None:
    """curl ends with an error if the server answers with one."""
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
    (tmp_path / "python").symlink_to(sys.executable)
    script = of_kind("bash")[block].replace(ADDRESS, address)
    out = run("bash", "-euc", script, folder=tmp_path, CURL_HOME=str(tmp_path), LLAMA2C_API_KEY="none")
    made = out or (tmp_path / "first.json").read_text()
    assert '"object":"' in made or '"tokens":[' in made


def test_python_with_openai(address: str) -> None:
    pytest.importorskip("openai", reason="needs openai")
    names: dict[str, Any] = {"__name__": "__main__"}
    out = io.StringIO()
    blocks = [block for block in of_kind("python") if "langchain" not in block]
    assert len(blocks) == 3
    with contextlib.redirect_stdout(out):
        for block in blocks:
            exec(compile(block.replace(ADDRESS, address), "docs/server.md", "exec", dont_inherit=True), names)
    names["client"].close()
    assert re.search(r"mood='(good|bad)' stars=[1-5]$", out.getvalue(), re.MULTILINE)
    assert names["city"] in ("Paris", "Rome", "Oslo")
    assert names["messages"][-1]["content"] == f"18 degrees and rain in {names['city']}"


@pytest.mark.skipif(importlib.util.find_spec("langchain_openai") is None, reason="needs langchain-openai")
@pytest.mark.filterwarnings("default")  # those of its packages
def test_python_with_langchain(address: str, tmp_path: Path) -> None:
    [block] = [block for block in of_kind("python") if "langchain" in block]
    script = f"model = 'model'\n{block.replace(ADDRESS, address)}"
    assert len(run(sys.executable, "-c", script, folder=tmp_path)) > 10


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_javascript(address: str, tmp_path: Path) -> None:
    [block] = of_kind("javascript")
    assert len(run("node", "--input-type=module", "-e", block.replace(ADDRESS, address), folder=tmp_path)) > 10


# ---------------------------------------------------------------------------
# the table of fields

ROWS = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \| (.*) \|$", PAGE.partition("\n## Fields\n")[2], re.MULTILINE)
FIELDS = [(name, *said) for names, *said in ROWS for name in re.findall(r"\w+", names)]
READERS = (
    (read_completion, {"prompt": "Hi"}),
    (read_chat, {"messages": [{"role": "user", "content": "Hi"}]}),
)


def refusal(read: Any, body: dict[str, Any]) -> str:
    """The message about a body; "" if it is read."""
    try:
        read(body)
    except RequestError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("name", "completion", "chat"), FIELDS, ids=[field[0] for field in FIELDS])
def test_fields_are_what_the_table_says(name: str, completion: str, chat: str) -> None:
    for (read, body), said in zip(READERS, (completion, chat), strict=True):
        message = refusal(read, {**body, name: "x"})
        assert refusal(read, {**body, name: None}) in ("", refusal(read, {name: None}))
        if said.startswith("refused"):
            assert message.startswith(f"{name}: this field is not supported"), said
        elif said == "no effect":
            assert name in NO_EFFECT
            assert read({**body, name: "x"}) == read(body)
        else:
            assert said.startswith("yes"), said
            assert "not supported" not in message


def test_the_table_has_every_field() -> None:
    names = {name for name, *_ in FIELDS}
    assert len(names) == len(FIELDS)
    for read, body in READERS:
        everything = {name: "x" for name in names if not refusal(read, {**body, name: "x"})}
        assert set(NO_EFFECT) <= set(everything)
        assert refusal(read, {**body, "unheard_of": "x"}) == "unheard_of: this field is not supported"
    from llama2c.server import protocol

    assert names == {*protocol.COMPLETION_FIELDS, *protocol.CHAT_FIELDS}


# ---------------------------------------------------------------------------
# the service and the container

UNIT = (ROOT / "examples" / "llama2c.service").read_text(encoding="utf-8")
CONTAINER = (ROOT / "examples" / "Containerfile").read_text(encoding="utf-8")


def test_the_flags_of_the_unit_are_those_of_serve() -> None:
    [command] = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    python, *arguments = shlex.split(command)
    assert (python, arguments[:3]) == ("/opt/llama2c/bin/python", ["-m", "llama2c", "serve"])
    options = make_parser().parse_args(arguments[3:])
    assert (options.host, options.model) == ("127.0.0.1", "/srv/llama2c/model.gguf")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "llama2c.service"
    unit.write_text(UNIT.replace("/opt/llama2c/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, encoding="utf-8", timeout=SECONDS)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, said) == (0, []), done
    unit.write_text(UNIT.replace("/opt/llama2c/bin/python", sys.executable).replace("PrivateUsers=", "PrivateUser="))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, encoding="utf-8", timeout=SECONDS)
    assert "PrivateUser" in done.stderr  # it does look


def test_the_flags_and_the_health_check_of_the_container(address: str, tmp_path: Path) -> None:
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", CONTAINER, re.MULTILINE)
    python, _, package, verb, *flags = re.findall(r'"([^"]*)"', entry)
    assert (python, package, verb) == ("python", "llama2c", "serve")
    assert make_parser().parse_args([*flags, "/model.gguf"]).host == "0.0.0.0"
    [check] = re.findall(r'CMD \["python", "-c", "(.*)"\]$', CONTAINER, re.MULTILINE)
    assert run(sys.executable, "-c", check.replace(ADDRESS, address), folder=tmp_path) == ""
    assert int(re.findall(r"^USER (\d+)", CONTAINER, re.MULTILINE)[0]) > 0
