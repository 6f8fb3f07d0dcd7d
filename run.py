"""Set up and run: ``python run.py demo``, ``python run.py test``, ``python run.py <command of lib_decouple> …``.

Needs Python 3.10 or newer with pip, and nothing else: the first call makes a virtual environment in
``.venv`` beside this file. Of torch it takes the CPU build; set DECOUPLE_TORCH to a requirement
(such as ``torch==2.5.1``) or a wheel's path to choose another, for a GPU say.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TORCH = "torch>=2.1"
KNOWN_TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GRADIOS = ("gradio3", "gradio4")
OF_GRADIO = ("tests/webui/test_ui.py", "tests/webui/test_localize.py")
OPEN_CLIP = "open_clip-nodeps"
GPU_MARKS = ("nvidia", "cuda", "triton", "rocm")

OF_A_HUNDRED = (
    "These are the first six seeds. Of the first hundred 53 show both when drawn plainly and 96 when decoupled; 47 got "
    "something back, 4 lost something, and 69 and 20 show something twice or besides. A blend in which something of "
    'each is left counts as both (generate "a cat and a dog" --n 100 --batch 20; docs/results.md).'
)
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")
"""How the whole suite runs: a process a core, each with torch in memory, so that more than four are none's gain."""


def call(*command: str | Path, packages: Path | None = None) -> None:
    """Run, with ``packages`` before those of the environment, or end with the command's own exit status."""
    more = {"PYTHONPATH": str(packages)} if packages else {}
    status = subprocess.call([str(part) for part in command], cwd=HERE, env={**os.environ, **more})
    if status:
        sys.exit(status)


def pip(*arguments: str, quiet: bool = True) -> None:
    """pip of the virtual environment."""
    call(PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *(["-q"] if quiet else []), *arguments)


def draws_gpu_packages(arguments: Sequence[str]) -> bool | None:
    """Would pip take packages of a GPU build? None when it finds nothing to install at all."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "-q", "--dry-run", "--report", "-"]
    found = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=HERE)
    if found.returncode:
        return None
    names = [item["metadata"]["name"].lower() for item in json.loads(found.stdout)["install"]]
    return any(name.startswith(GPU_MARKS) for name in names)


def install_torch() -> None:
    """The first of these that is a CPU build: a local wheel or pip's own choice, then PyTorch's CPU index."""
    if subprocess.call([str(PYTHON), "-c", "import torch"], stderr=subprocess.DEVNULL) == 0:
        return
    chosen = os.environ.get("DECOUPLE_TORCH")
    if chosen:
        return pip(chosen, quiet=False)
    for arguments in ([KNOWN_TORCH], [TORCH], [TORCH, "--index-url", CPU_INDEX]):
        if draws_gpu_packages(arguments) is False:
            return pip(*arguments, quiet=False)
    sys.exit(
        "no CPU build of torch was found (pip would draw a GPU build of several GB, or nothing). Install one into "
        f"{ENVIRONMENT}, or set DECOUPLE_TORCH to a wheel or a requirement, and run this again."
    )


def set_up(files: Sequence[str]) -> None:
    """Make the environment, or bring it up to date when a requirements file has changed."""
    marker = ENVIRONMENT / "installed.json"
    wanted = {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in files}
    have = json.loads(marker.read_text()) if marker.exists() else {}
    if all(have.get(name) == digest for name, digest in wanted.items()):
        return
    if not PYTHON.exists():
        print(f"making {ENVIRONMENT} …", flush=True)
        venv.create(ENVIRONMENT, with_pip=True)
    print("installing packages (once; some minutes) …", flush=True)
    install_torch()
    for name in files:
        no_deps = ["--no-deps"] if name.endswith("nodeps.txt") else []
        pip("-r", name, *no_deps)
    marker.write_text(json.dumps({**have, **wanted}))


def set_up_apart(name: str) -> Path:
    """A folder of the packages of ``requirements-{name}.txt``, which would not fit into the environment."""
    folder = ENVIRONMENT / name
    wanted, marker = (HERE / f"requirements-{name}.txt").read_text(), folder / "requirements.txt"
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {name} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--target", folder]
        command += ["--no-deps"] if name.endswith("nodeps") else []
        # pip warns of every package that does not fit the environment, which is why they stand apart.
        done = subprocess.run([*command, "-r", HERE / f"requirements-{name}.txt"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        marker.write_text(wanted)
    return folder


def check() -> None:
    """Formatter, linter and type checker; sets up what they and the tests need."""
    set_up(["requirements.txt", "requirements-test.txt", "requirements-test-nodeps.txt"])
    call(PYTHON, "-m", "ruff", "format", "--check", "-q", ".")
    call(PYTHON, "-m", "ruff", "check", "-q", ".")
    call(PYTHON, "-m", "mypy")


def main(arguments: list[str]) -> None:
    """Set up for the command, then run it."""
    if sys.version_info < (3, 10):  # noqa: UP036 - an older Python must be told, not fail on syntax
        sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}")
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    if arguments[0] == "embedded":  # needs no package, and is called with a WebUI's own Python, too
        sys.path.insert(0, str(HERE))  # which the embeddable Python of a WebUI in one folder leaves out
        from lib_decouple.embedded import place

        sys.exit(place.main(arguments))
    elif arguments[0] == "checks":
        check()
    elif arguments[0] == "test":
        check()
        if not arguments[1:]:
            set_up_apart(OPEN_CLIP)
        call(PYTHON, "-m", "pytest", *(arguments[1:] or SIDE_BY_SIDE))
        for name in GRADIOS if not arguments[1:] else ():
            print(f"{name}: the accordion", flush=True)
            call(PYTHON, "-m", "pytest", *OF_GRADIO, packages=set_up_apart(name))
    else:
        set_up(["requirements.txt", *(["requirements-evaluate.txt"] if arguments[0] == "evaluate" else [])])
        as_it_comes = arguments == ["demo"]
        if arguments[0] == "demo":
            arguments = ["generate", "a cat and a dog", "--out", "out/demo", "--overwrite", *arguments[1:]]
        call(PYTHON, "-m", "lib_decouple", *arguments)
        if as_it_comes:
            print(OF_A_HUNDRED)


if __name__ == "__main__":
    main(sys.argv[1:])
