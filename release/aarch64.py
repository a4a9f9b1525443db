"""The kernels on aarch64, on a machine of another kind: they are compiled for it, and run in an emulator.

In build/aarch64, `root` gets Debian's Python for arm64, `lib` llama2c, and `site` the Python packages that its tests need.
`root/usr/bin/python` starts that Python in qemu. This machine needs apt-get and dpkg-deb (Debian, Ubuntu), qemu-aarch64
(package qemu-user) and aarch64-linux-gnu-gcc (gcc-aarch64-linux-gnu). Nothing is installed outside the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "aarch64"
SYSTEM = PLACE / "root"
PYTHON = SYSTEM / "usr" / "bin" / "python"
COMPILER = "aarch64-linux-gnu-gcc"
TOOLS = ("apt-get", "dpkg-deb", "qemu-aarch64", COMPILER)
DEBIAN = ["python3", "libpython3-dev", "libgomp1", "libstdc++6"]
PACKAGES = ["numpy>=2.0", "pytest>=8", "hypothesis>=6.100", "safetensors>=0.4"]
# But for those that run all tests of the kernels once more, for the level generic: in an emulator they take too long.
TESTS = [*(f"tests/test_{name}.py" for name in ("kernels", "kernels_blocks", "same_bits")), "-k", "not every_other_level"]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode != 0:
        sys.exit(f"{done.stdout}make aarch64: {command[0]} failed with exit code {done.returncode}")
    return done.stdout


def make_system() -> None:
    """Download and unpack Debian's packages. apt gets folders of its own, so it does not touch this machine's packages."""
    apt = PLACE / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keys}] http://deb.debian.org/debian bookworm main\n")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
    }
    (apt / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    run("apt-get", "-qq", "update", APT_CONFIG=str(apt / "apt.conf"))
    options = ["-qq", "--yes", "--download-only", "--no-install-recommends"]
    run("apt-get", *options, "install", *DEBIAN, APT_CONFIG=str(apt / "apt.conf"))
    unpacked = PLACE / "unpacked"
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, unpacked)
    unpacked.rename(SYSTEM)


def make_python() -> None:
    """Write the program that starts the emulated Python. Python finds itself by the name it was called with: this one."""
    (real,) = SYSTEM.glob("usr/bin/python3.*[0-9]")
    places = f"{PLACE / 'lib'}:{PLACE / 'site'}"
    PYTHON.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{places}"\n'
        f'exec qemu-aarch64 -L "{SYSTEM}" -0 "{PYTHON}" "{real}" "$@"\n'
    )
    PYTHON.chmod(0o755)


def install_packages() -> None:
    """Unpack the wheels that pip finds for an emulated Python into `site`."""
    version = run(PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    platforms = [f"--platform=manylinux{name}_aarch64" for name in ("2014", "_2_17", "_2_28")]
    options = [f"--python-version={version}", "--only-binary=:all:", *platforms, "--target", PLACE / "site", "--upgrade"]
    run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *options, *PACKAGES)


def build() -> None:
    """Compile llama2c with the compiler of this machine that makes code for aarch64. Only what has changed is compiled."""
    (headers,) = SYSTEM.glob("usr/include/python3.*[0-9]")
    suffix = run(PYTHON, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))").strip()
    environment = {
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": suffix,
        "CC": COMPILER,
        "LDSHARED": f"{COMPILER} -shared",
        "AR": "aarch64-linux-gnu-ar",
        "CFLAGS": f"-g0 -I{headers} -I{SYSTEM / 'usr/include'}",
        "LDFLAGS": "",
    }
    run(sys.executable, "setup.py", "--quiet", "build", "--build-lib", PLACE / "lib", **environment)


def main() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        sys.exit(f"make aarch64 needs {', '.join(missing)} (Debian: apt install qemu-user gcc-aarch64-linux-gnu)")
    if not SYSTEM.is_dir():
        make_system()
    make_python()
    if not (PLACE / "site").is_dir():
        install_packages()
    build()
    print(run(PYTHON, "-c", "import llama2c, platform; print(platform.platform(), llama2c.build_info())"))
    same = ["-q", "tests/test_same_bits.py", "-k", "another_python"]
    print(run(sys.executable, "-m", "pytest", *same, LLAMA2C_OTHER_PYTHON=str(PYTHON)))
    print(run(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(sys.argv[1:] or TESTS)))


if __name__ == "__main__":
    main()
