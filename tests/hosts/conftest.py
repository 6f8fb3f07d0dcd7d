"""A real WebUI to test against, when one is given.

DECOUPLE_A1111_ROOT: the WebUI's folder. With DECOUPLE_A1111_URL that running instance is used; else
DECOUPLE_A1111_START is the shell command that starts one ({port} and {data} are filled in), by default
``launch.py`` with CPU flags in the WebUI's own venv. The instance needs this folder and
``tests/hosts/probe`` under its ``extensions/``, and ``decouple-tiny`` as its checkpoint; one that is
started here gets them, and the files of the folder DECOUPLE_CHECKPOINTS (see a1111_checkpoints.py) as further
checkpoints. DECOUPLE_EXTENSIONS: a folder of other extensions to link in (their packages have to be in the WebUI's
environment; see test_a1111_others.py). DECOUPLE_HOSTS_TABLE: a Markdown file to write the rows to.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
rows: list[tuple[str, str]] = []
versions: dict[str, str] = {}
OVERRIDDEN = {
    "CLIP_stop_at_last_layers": 1, "skip_early_cond": 0, "token_merging_ratio": 0, "pad_cond_uncond": False,
    "batch_cond_uncond": True,
}  # fmt: skip
"""Options that the tests override for a job, at their defaults; the host restores only those that its
configuration file holds (processing.py, ``process_images``)."""
VERSIONS = """
import platform
from importlib.metadata import version
from modules import launch_utils, shared
result = {"webui": launch_utils.git_tag(), "commit": launch_utils.commit_hash(), "Python": platform.python_version()}
result.update({name: version(name) for name in ("torch", "gradio", "transformers", "einops", "pydantic", "numpy")})
result.update(device=str(shared.device), checkpoint=shared.sd_model.sd_checkpoint_info.title)
"""


@dataclass
class Picture:
    """The first images of an API answer, and their infotexts."""

    images: list[Image.Image]
    infotexts: list[str]

    @property
    def pixels(self) -> list[bytes]:
        return [image.convert("RGB").tobytes() for image in self.images]

    def value(self, key: str, index: int = 0) -> str | None:
        """An infotext key's value, as written."""
        found = re.search(rf'(?:^|, |\n){re.escape(key)}: ("(?:\\.|[^\\"])*"|[^,]*)', self.infotexts[index])
        return found and (json.loads(found[1]) if found[1].startswith('"') else found[1])


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Host:
    """A WebUI over HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def post(self, path: str, body: dict[str, Any], timeout: float = 600) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def get(self, path: str) -> Any:
        """JSON of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def draw(self, decouple: dict[str, Any] | list[Any] | None = None, **given: Any) -> Picture:
        """txt2img, or img2img where ``init_images`` are given: "a cat and a dog" at 96 pixels, Euler, 6 steps."""
        body: dict[str, Any] = {
            "prompt": "a cat and a dog", "seed": 3, "steps": 6, "cfg_scale": 3, "width": 96, "height": 96,
            "sampler_name": "Euler", **given,
        }  # fmt: skip
        if decouple is not None:
            args = decouple if isinstance(decouple, list) else [{"enabled": True, **decouple}]
            body.setdefault("alwayson_scripts", {})["attention decoupling"] = {"args": args}
        status, answer = self.post(f"/sdapi/v1/{'img2img' if 'init_images' in given else 'txt2img'}", body)
        assert status == 200, answer
        info = json.loads(answer["info"])
        images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in answer["images"]]
        for image in images:
            image.load()
        return Picture(images, info["infotexts"])

    def inside(self, code: str, **scope: Any) -> Any:
        """What ``code``, run inside the WebUI, leaves in ``result``."""
        head = "".join(f"{name} = {value!r}\n" for name, value in scope.items())
        status, answer = self.post("/decouple-probe", {"code": head + code})
        assert status == 200, answer
        assert "error" not in answer, answer["error"]
        return answer["result"]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The WebUI; skips where none is given."""
    url, root = os.environ.get("DECOUPLE_A1111_URL"), os.environ.get("DECOUPLE_A1111_ROOT")
    if url:
        found = Host(url)
        found.post("/sdapi/v1/options", OVERRIDDEN)
        versions.update(found.inside(VERSIONS))
        yield found
        return
    if not root:
        pytest.skip("no WebUI given: set DECOUPLE_A1111_ROOT to its folder, or DECOUPLE_A1111_URL")
    data = tmp_path_factory.mktemp("webui")
    (data / "extensions").mkdir()
    (data / "extensions" / "attention-decoupling").symlink_to(REPOSITORY)
    (data / "extensions" / "decouple-probe").symlink_to(REPOSITORY / "tests/hosts/probe")
    others = os.environ.get("DECOUPLE_EXTENSIONS")
    for folder in Path(others).iterdir() if others else ():
        (data / "extensions" / folder.name).symlink_to(folder.resolve())
    models = data / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    embedded = REPOSITORY / "lib_decouple/embedded"
    shutil.copy(embedded / "decouple-tiny.safetensors", models)
    layout = (embedded / "decouple-tiny.yaml").read_text()
    layout = re.sub(r"(version: ).*", rf"\g<1>{embedded / 'tokenizer'}", layout)
    (models / "decouple-tiny.yaml").write_text(layout)
    more = os.environ.get("DECOUPLE_CHECKPOINTS")
    for file in Path(more).iterdir() if more else ():
        if file.suffix in (".safetensors", ".yaml"):
            (models / file.name).symlink_to(file.resolve())
    default = (
        f"cd {root} && exec venv/bin/python launch.py --skip-prepare-environment --skip-python-version-check "
        "--skip-version-check --skip-torch-cuda-test --use-cpu all --no-half --precision full --api "
        "--no-download-sd-model --opt-sdp-attention --port {port} --data-dir {data}"
    )
    port = free_port()
    command = os.environ.get("DECOUPLE_A1111_START", default).format(port=port, data=data)
    with open(data / "log.txt", "w") as log:
        process = subprocess.Popen(command, shell=True, stdout=log, stderr=log, start_new_session=True)
    found = Host(f"http://127.0.0.1:{port}")
    try:
        for _ in range(600):
            assert process.poll() is None, (data / "log.txt").read_text()[-2000:]
            try:
                found.get("/sdapi/v1/samplers")
                break
            except OSError:
                time.sleep(2)
        found.post("/sdapi/v1/options", OVERRIDDEN)
        versions.update(found.inside(VERSIONS))
        yield found
    finally:
        with suppress(ProcessLookupError):  # a host that ended by itself has told why
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and "tests/hosts/" in report.nodeid:
        rows.append((report.nodeid.rpartition("::")[2].removeprefix("test_"), report.outcome))


def grouped() -> Iterator[str]:
    """One table row a test: what it was run with, and how often it came out how."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row, outcome in rows:
        name, _, parameters = row.partition("[")
        found.setdefault(name.replace("_", " "), []).append((parameters.removesuffix("]"), outcome))
    for name, runs in found.items():
        counts = {one: [outcome for _, outcome in runs].count(one) for _, one in runs}
        with_what = ", ".join(filter(None, (parameters.replace("|", "\\|") for parameters, _ in runs)))
        apart = "; ".join(f"{outcome}: {parameters}" for parameters, outcome in runs if outcome != "passed")
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        yield f"| {name} | {with_what} | {told}{f' ({apart})' if apart else ''} |\n"


def pytest_sessionfinish() -> None:
    target = os.environ.get("DECOUPLE_HOSTS_TABLE")
    if target and rows:
        run = ", ".join(f"{name} {version}" for name, version in versions.items())
        head = "Written by `tests/hosts` (DECOUPLE_HOSTS_TABLE); the rows are its tests."
        Path(target).write_text(
            f"{head}\n\n{run}\n\n| row | with | result |\n|---|---|---|\n{''.join(grouped())}", encoding="utf-8"
        )
