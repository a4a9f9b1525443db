"""The verb `doctor`: what it says, what it keeps to itself, and that it says it where much is missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import SECONDS, Command

import llama2c
from llama2c import _kernels, limits, threads
from llama2c.commands import doctor, machine
from llama2c.commands.doctor import PACKAGES, Fact, Report, import_error
from llama2c.locate import BUNDLED

ROOT = Path(__file__).parents[2]
WORKS = "everything that was tried works"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, because other tests may keep the cores busy; and no package is imported, because that takes seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor, "import_error", lambda module: None)
    monkeypatch.setattr(doctor, "available_memory", lambda: 8 << 20)


def page(command: Command, *flags: str, code: int = 0) -> dict[str, Any]:
    """The page as JSON. What does not work is also the error."""
    found = command("doctor", "-o", "json", *flags)
    content: dict[str, Any] = json.loads(found.out)
    assert found.code == code
    assert found.err == (f"llama2c: error: does not work: {', '.join(content['problems'])}\n" if code else "")
    return content


def text_of(probe: Any) -> dict[str, str]:
    """The lines of one section as people see them."""
    report = Report()
    report.add("a", probe)
    lines = report.as_text().splitlines()[1:-1]
    return dict(re.fullmatch(r"  (.*?): +(.*)", line).groups() for line in lines)  # type: ignore[union-attr,misc]


# ---------------------------------------------------------------------------
# what it says


def test_the_page(command: Command) -> None:
    found = command("doctor")
    assert (found.code, found.err) == (0, "")
    lines = found.out.decode().splitlines()
    titles = "llama2c python processor threads memory self-check packages downloads environment terminal".split()
    assert [line for line in lines if not line.startswith(" ")] == [*(f"{title}:" for title in titles), WORKS]
    assert all(re.fullmatch(r"  [\w. -]+: +\S.*", line) for line in lines if line.startswith(" "))
    for fact in (f"version:  {llama2c.__version__}", f"package:  {Path(llama2c.__path__[0])}", f"level:       {_kernels.isa}"):
        assert f"  {fact}" in lines


def test_the_page_as_json(command: Command) -> None:
    content = page(command)
    info = llama2c.build_info()
    assert [content["llama2c"][name] for name in ("version", "commit", "compiler", "openmp")] == [
        info[name] for name in ("version", "commit", "compiler", "openmp")
    ]
    assert content["processor"]["levels"] == list(_kernels.levels)
    assert content["threads"]["threads"] == 1
    assert content["memory"]["read speed"] > 1e6
    assert content["self-check"]["speed"] > 0
    assert content["python"]["numpy"] == importlib.metadata.version("numpy")
    assert content["problems"] == []


def test_the_model(command: Command, model: Path) -> None:
    found = page(command, str(model))["model"]
    assert found["path"] == str(model)
    assert (found["format"], found["weights"], found["tokens"]) == ("v1", "fp32", 286)
    assert found["shape"]["dim"] == 16 and found["shape"]["seq_len"] == 64 and found["shape"]["head_size"] == 4
    layers = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16)
    assert found["parameters"] == layers + 2 * 286 * 16 + 16
    assert found["size"] == 4 * found["parameters"]
    assert found["tokenizer"] == str(model.with_name("tokenizer.bin"))
    assert (found["begin token"], found["end tokens"], found["chat template"]) == (1, [1, 2], None)
    assert text_of(lambda: doctor.about_model(str(model), None))["chat template"] == (
        "none was found: a chat uses the form of Llama 2"
    )


def test_the_chat_template_of_a_real_model(smollm2: Path) -> None:
    found = text_of(lambda: doctor.about_model(str(smollm2), None))
    assert found["chat template"] == 'in the file; "Hello" of a user becomes 31 tokens'  # with its default system prompt
    assert (found["tokenizer"], found["end tokens"], found["format"]) == ("in the file", "0, 2", "GGUF")


def test_a_model_that_cannot_be_used(command: Command, model: Path) -> None:
    """What is known of it is told, and then what is wrong."""
    content = page(command, str(model), "-z", "absent.bin", code=1)
    assert content["model"]["format"] == "v1"
    assert content["model"]["error"] == "absent.bin: expected a readable file, found: No such file or directory"
    assert content["problems"] == ["model: error"]
    content = page(command, "nowhere.bin", code=1)
    assert content["model"]["error"] == "nowhere.bin: expected a readable file, found: No such file or directory"


def test_the_known_story_is_that_of_the_bundled_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As far as it is in the golden story, which NumPy and a C program have told."""
    golden = json.loads((ROOT / "tests" / "golden" / "tales1M.json").read_text())
    assert doctor.FILES_SHA256["tales1M.bin"] == golden["sha256"]
    found = text_of(doctor.check_bundled_model)
    assert found["story"] == "Once upon a time, there was a little boy named Sunny. He... (as it should be)"
    for name in doctor.FILES_SHA256:
        (tmp_path / name).write_bytes(BUNDLED.with_name(name).read_bytes())
    with (tmp_path / "tales1M.bin").open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(300_000))
    monkeypatch.setattr("llama2c.locate.BUNDLED", tmp_path / "tales1M.bin")
    report = Report()
    report.add("self-check", doctor.check_bundled_model)
    assert report.problems == ["self-check: tales1M.bin", "self-check: story"]
    digest = hashlib.sha256((tmp_path / "tales1M.bin").read_bytes()).hexdigest()
    assert f"is another file: SHA-256 {digest}" in report.as_text()


# ---------------------------------------------------------------------------
# threads


def test_the_number_of_threads_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    monkeypatch.setattr(threads, "openmp", True)
    monkeypatch.setattr(threads, "bound_cores", lambda: 0)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: None)

    def found() -> str:
        return text_of(doctor.about_threads)["threads"]

    assert found() == "1 for a large model: OMP_NUM_THREADS=1"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert found() == "up to 8 for a large model: the cores that this process may use"
    monkeypatch.setattr(threads, "bound_cores", lambda: 8)
    assert found() == "up to 8 for a large model: the cores that OpenMP has bound its threads to"
    monkeypatch.setattr(threads, "cgroup_quota", lambda: 8.2)
    assert found() == "up to 8 for a large model: the CPU quota of the control group, 8.2 cores"
    monkeypatch.setattr(threads, "openmp", False)
    assert found() == "1 for a large model: this build has no OpenMP"


def test_a_warning_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    found = text_of(doctor.about_threads)
    assert re.fullmatch(r"OMP_NUM_THREADS=1000 is more than the \d+ cores? here, which is slower", found["warning"])


def test_a_wrong_setting_is_a_problem(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "two")
    content = page(command, code=1)
    assert content["threads"]["error"] == "OMP_NUM_THREADS: expected a number, found 'two'"
    assert "threads: error" in content["problems"]


# ---------------------------------------------------------------------------
# packages


def test_the_packages_are_those_of_the_extras() -> None:
    """Those for users. The others are for people who work on llama2c."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = pyproject.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    for_work = r"^(test|browser|clients|coverage|fuzz|lint|bench|peers|train) = \[.*?\]$"
    for_users = re.sub(for_work, "", extras, flags=re.MULTILINE | re.DOTALL)
    for_users = re.sub(r"#.*", "", for_users)
    listed = {name for name, _ in re.findall(r'"([\w-]+)>=([\d.]+)"', for_users)}
    assert listed == {package.name for package in PACKAGES if package.extra}
    for package in PACKAGES:  # the two without an extra are in those for work on llama2c
        assert f'"{package.name}>={package.least}"' in (for_users if package.extra else extras)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions of the packages that seem to be installed."""
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setattr(sys, "executable", "/a b/python")
    return installed


def test_missing_old_and_broken_packages(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    versions.update({"jinja2": "3.1.5", "tokenizers": "0.20.0rc1", "tqdm": "5.0", "torch": "2.2.1+cpu"})
    monkeypatch.setattr(doctor, "import_error", {"tokenizers": None, "tqdm": "ImportError: no _c"}.get)
    report = Report()
    report.add("packages", doctor.about_packages)
    found = text_of(doctor.about_packages)
    install = "'/a b/python' -m pip install"
    assert found == {
        "huggingface-hub": f"not installed; for downloads (extra hub): {install} 'huggingface-hub>=0.23'",
        "safetensors": f"not installed; for Hugging Face folders (extra hf): {install} 'safetensors>=0.4'",
        "tokenizers": "0.20.0rc1, for tokenizer.json, and the tokenizers of most GGUF files",
        "jinja2": f"3.1.5 is too old; for chat templates (extra hf): {install} 'jinja2>=3.1.6'",
        "llguidance": f"not installed; for JSON by a schema, and other constraints (extra json): {install} 'llguidance>=1.8'",
        "starlette": f"not installed; for serve (extra server): {install} 'starlette>=0.40'",
        "uvicorn": f"not installed; for serve (extra server): {install} 'uvicorn>=0.30'",
        "prometheus-client": f"not installed; for serve (extra server): {install} 'prometheus-client>=0.20'",
        "prompt_toolkit": f"not installed; for line editing in a chat (extra chat): {install} 'prompt_toolkit>=3.0.30'",
        "tqdm": f"5.0 cannot be imported (ImportError: no _c); for progress bars: {install} 'tqdm>=4.60' --force-reinstall",
        "torch": "2.2.1+cpu, for export from ckpt.pt and from Meta's folders",
    }
    assert report.problems == ["packages: jinja2", "packages: tqdm"]  # one that is not installed is not a problem


@pytest.mark.parametrize("code", ["raise ImportError('x')", "exit(3)", "1 / 0", "raise type('P', (BaseException,), {})"])
def test_a_package_that_breaks_at_import(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_package.py").write_text(code)
    found = import_error("broken_package")
    assert found is not None and re.match(r"(ImportError|SystemExit|ZeroDivisionError|P): ", found)
    assert import_error("json") is None


# ---------------------------------------------------------------------------
# downloads


def test_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA2C_CACHE", str(tmp_path / "cache"))
    assert text_of(doctor.about_downloads) == {"folder": f"{tmp_path}/cache (does not exist: nothing is downloaded)"}
    for name, size in {
        "stories15M/stories15M.bin": 60_000,
        "stories15M/tokenizer.bin": 4000,
        "me--tales/a/a.gguf": 2000,
        "repositories/me--x/config.json": 10,
        "repositories/me--x/model.safetensors": 100_000,
        "other/.download/b.bin": 7000,
    }.items():
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "cache" / "gone.bin").symlink_to("/nonexistent")
    facts = list(doctor.about_downloads())
    assert facts[1] == Fact("size", 173_010, "0.2 MB")
    assert [fact.value for fact in facts[2:]] == [
        {"name": "me--tales/a/a.gguf", "size": 2000},
        {"name": "other/.download/b.bin", "size": 7000},
        {"name": "repositories/me--x", "size": 100_010},
        {"name": "stories15M/stories15M.bin", "size": 60_000},
    ]
    assert facts[3].text == "other/.download/b.bin, 0.0 MB (an incomplete download)"


# ---------------------------------------------------------------------------
# what it keeps to itself


def test_no_secret_is_printed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_API_KEY", "LLAMA2C_SECRET", "hf_password", "MY_KEY"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cret@proxy:3128/")
    monkeypatch.setenv("http_proxy", "me:s3/cret@proxy:3128")
    monkeypatch.setenv("HF_ENDPOINT", "https://s3cret@hub.example/a?s3cret=s3cret")
    monkeypatch.setenv("LLAMA2C_TOKENIZER_URL", "https://hub.example/tokenizer.bin")
    monkeypatch.setenv("OMP_PROC_BIND", "two\nlines")
    content = page(command)["environment"]
    assert content["HF_TOKEN"] == content["hf_password"] == "(set; not shown)"
    assert content["HTTPS_PROXY"] == "http://***@proxy:3128/"
    assert content["http_proxy"] == "***@proxy:3128"
    assert content["HF_ENDPOINT"] == "https://***@hub.example/a?***"
    assert content["LLAMA2C_TOKENIZER_URL"] == "https://hub.example/tokenizer.bin"
    assert "MY_KEY" not in content
    for flags in ((), ("-o", "json")):
        out = command("doctor", *flags).out
        assert b"s3" not in out
    assert b"two\\nlines" in command("doctor").out


# ---------------------------------------------------------------------------
# where things are missing


def test_without_proc_and_control_groups(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(type(Path())):  # type: ignore[misc]
        def read_text(self, *arguments: Any, **options: Any) -> str:
            if str(self).startswith(("/proc", "/sys")):
                raise FileNotFoundError(2, "No such file or directory", str(self))
            text: str = super().read_text(*arguments, **options)
            return text

    monkeypatch.setattr(machine, "Path", Elsewhere)
    monkeypatch.setattr(limits, "Path", Elsewhere)
    monkeypatch.setattr(doctor, "available_memory", limits.available_memory)
    monkeypatch.setattr(threads.cgroup_quota, "__defaults__", (Elsewhere("/sys/fs/cgroup"), Elsewhere("/proc/self/cgroup")))
    monkeypatch.setattr(doctor, "read_bandwidth", lambda memory, n_threads: 1e9)
    content = page(command)
    assert content["threads"]["quota"] is None
    assert content["processor"]["name"]
    assert content["memory"]["total"] == content["memory"]["available"] > 1e6


def test_without_a_home_folder(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA2C_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    content = page(command, code=1)
    assert content["problems"] == ["downloads: error"]
    assert content["downloads"]["error"].startswith("LLAMA2C_CACHE: not set, and there is no home folder")


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.delenv("TERM", raising=False)
    found = text_of(doctor.about_terminal)
    assert (found["stdin"], found["stderr"], found["TERM"]) == ("closed", "closed", "not set")


def start(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that prints the page; `code` runs before."""
    run = f"import sys\n{code}\nfrom llama2c.__main__ import main\nsys.argv[1:] = {['doctor', *arguments]!r}\nsys.exit(main())"
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", run], env=env, capture_output=True, encoding="utf-8", timeout=SECONDS)


def test_with_stderr_closed() -> None:
    done = start(code="sys.stderr.close(); sys.stderr = None", LLAMA2C_ISA="none")
    assert done.returncode == 1
    assert done.stdout.endswith("self-check: error\n") and "\nterminal:\n" in done.stdout


@pytest.mark.parametrize("module", ["llama2c._kernels", "numpy"])
def test_where_a_module_cannot_be_loaded(module: str) -> None:
    """The compiled modules, or NumPy: the page is still printed, and says so."""
    done = start(code=f"sys.modules[{module!r}] = None")
    assert done.returncode == 1
    assert "\n  package:" in done.stdout and "\nterminal:\n" in done.stdout
    reason = rf"^  error: +ModuleNotFoundError: .*{module.rpartition('.')[2]}"
    assert len(re.findall(reason, done.stdout, re.MULTILINE)) >= 3
    assert re.fullmatch(r"llama2c: error: does not work: .*memory: error, self-check: error.*\n", done.stderr)


def test_a_level_that_this_machine_lacks() -> None:
    done = start(LLAMA2C_ISA="vax")
    assert done.returncode == 1
    assert re.search(r"^  error: +ImportError: LLAMA2C_ISA: expected one of .* found 'vax'$", done.stdout, re.MULTILINE)
    assert re.search(r"^  LLAMA2C_ISA: +vax$", done.stdout.partition("\nenvironment:\n")[2], re.MULTILINE)
