"""Real WebUIs to test against, where they are given: the fixtures ``host`` (AUTOMATIC1111) and ``forge``.

DECOUPLE_A1111_ROOT, DECOUPLE_FORGE_ROOT: the WebUI's folder. With DECOUPLE_A1111_URL or DECOUPLE_FORGE_URL that running
instance is used; else DECOUPLE_A1111_START or DECOUPLE_FORGE_START is the shell command that starts one ({port} and
{data} are filled in), by default ``launch.py`` with CPU flags in the WebUI's own venv. The instance needs this folder
and ``tests/hosts/probe`` under its ``extensions/``, and as models ``decouple-drawn`` or, in Forge, what
``models_of_forge`` makes; one that is started here gets them, and A1111 the files of the folder DECOUPLE_CHECKPOINTS
(see a1111_checkpoints.py) as further checkpoints. DECOUPLE_EXTENSIONS: a folder of other extensions to link in (their
packages have to be in the WebUI's environment; see test_a1111_others.py). DECOUPLE_HOSTS_TABLE: a Markdown file to
write the rows to; give it with one of the hosts.
"""

from __future__ import annotations

import base64
import functools
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from lib_decouple.settings import FIXED
from tests.hosts import small_checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
rows: list[tuple[str, str]] = []
versions: dict[str, dict[str, str]] = {}
"""A host's name -> what runs there."""
CALLER = {"X-Decouple-Caller": "a secret of the tests"}
"""By which they find the runs that they drew."""
OVERRIDDEN = {
    "CLIP_stop_at_last_layers": 1, "skip_early_cond": 0, "token_merging_ratio": 0, "pad_cond_uncond": False,
    "batch_cond_uncond": True,
}  # fmt: skip
"""Options that the tests override for a job, at their defaults; the host restores only those that its
configuration file holds (processing.py, ``process_images``)."""
FORGE_MODELS = {
    "Stable-diffusion": (
        *("sd1", "sd1-other", "sd1-fp8-mixed", "sd1-int8-mixed", "sd1-fp8-scaled", "sd2", "sdxl", "sdxl-v"),
        "sdxl-rectified",
    ),
    "ControlNet": ("control", "lllite"), "Lora": ("lora",),
}  # fmt: skip
VERSIONS = """
import platform
from importlib.metadata import version
from modules import launch_utils, shared
result = {"version": launch_utils.git_tag(), "Python": platform.python_version()}
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


def encoded(image: Image.Image) -> str:
    """As the API takes an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Host:
    """A WebUI over HTTP."""

    name = "a1111"
    upscaler = "Latent"
    """One for hires fix that needs no file."""
    is_neo = False

    def __init__(self, url: str, headers: Mapping[str, str] = CALLER) -> None:
        self.url, self.headers = url.rstrip("/"), dict(headers)

    def post(self, path: str, body: dict[str, Any], timeout: float = 600) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def get(self, path: str) -> Any:
        """JSON of an answer."""
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, headers=self.headers), timeout=60
        ) as answer:
            return json.load(answer)

    def draw(self, decouple: dict[str, Any] | list[Any] | None = None, **given: Any) -> Picture:
        """txt2img, or img2img where ``init_images`` are given: "a cat and a dog" at 96 pixels, Euler, 6 steps.

        Of ``decouple`` by name nothing is left to the loaded model's profile, so that tests mean the same on any.
        """
        body: dict[str, Any] = {
            "prompt": "a cat and a dog", "seed": 3, "steps": 6, "cfg_scale": 3, "width": 96, "height": 96,
            "sampler_name": "Euler", **given,
        }  # fmt: skip
        if decouple is not None:
            args = (
                decouple
                if isinstance(decouple, list)
                else [{"enabled": True, **({} if "preset" in decouple else FIXED), **decouple}]
            )
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


class Forge(Host):
    """Forge or Forge Neo over HTTP; 128 pixels and 4 steps where nothing else is said."""

    name = "forge"

    @functools.cached_property
    def is_neo(self) -> bool:
        """Only Neo knows Anima."""
        found = "all(importlib.util.find_spec(name) for name in ('backend', 'backend.nn.anima'))"  # reForge has neither
        return bool(self.inside(f"import importlib.util\nresult = {found}"))

    @functools.cached_property
    def upscaler(self) -> str:
        """Neo has none among the latents."""
        return "None" if self.is_neo else "Latent"

    @functools.cached_property
    def offers(self) -> dict[str, list[str]]:
        """Its samplers, and its scripts of txt2img and img2img, in lower case."""
        samplers = [one["name"] for one in self.get("/sdapi/v1/samplers")]
        return {"samplers": samplers, **self.get("/sdapi/v1/scripts")}

    def needs(self, kind: str, *names: str) -> None:
        """Skips the test where this host lacks one of them."""
        for name in names:
            if name not in self.offers[kind]:
                pytest.skip(f"{kind}: this host has no {name}")

    def draw(self, decouple: dict[str, Any] | list[Any] | None = None, **given: Any) -> Picture:
        return super().draw(decouple, **{"width": 128, "height": 128, "steps": 4, **given})


def encoded_alike(webui: Host, *given: Any, **more: Any) -> Picture:
    """img2img's encoding of the picture draws from the global generator, which no seed sets."""
    webui.inside("import torch\ntorch.manual_seed(5)\nresult = 0")
    return webui.draw(*given, **more)


AnyHost = TypeVar("AnyHost", bound=Host)


def made_ready(host: AnyHost, name: str, **options: Any) -> AnyHost:
    """Options that the host leaks are set; the model is there, which Forge loads with the first picture."""
    for option, value in {**OVERRIDDEN, **options}.items():  # one by one: a host may lack some
        host.post("/sdapi/v1/options", {option: value})
    host.draw()
    versions[name] = host.inside(VERSIONS)
    return host


def link_extensions(data: Path) -> None:
    """This extension and the probe, and others where they are given."""
    folder = data / "extensions"
    folder.mkdir()
    (folder / "attention-decoupling").symlink_to(REPOSITORY)
    (folder / "decouple-probe").symlink_to(REPOSITORY / "tests/hosts/probe")
    others = os.environ.get("DECOUPLE_EXTENSIONS")
    for other in Path(others).iterdir() if others else ():
        (folder / other.name).symlink_to(other.resolve())


@contextmanager
def started(kind: type[AnyHost], command: str, data: Path, headers: Mapping[str, str] = CALLER) -> Iterator[AnyHost]:
    """A WebUI that a shell command starts, in which {port} and {data} are filled in; ended afterwards."""
    port = free_port()
    with open(data / "log.txt", "w") as log:
        process = subprocess.Popen(
            command.format(port=port, data=data), shell=True, stdout=log, stderr=log, start_new_session=True
        )
    found = kind(f"http://127.0.0.1:{port}", headers)
    try:
        for _ in range(600):
            assert process.poll() is None, (data / "log.txt").read_text()[-2000:]
            try:
                found.get("/decouple/v1/schema")  # ours come last
                break
            except OSError as error:
                if getattr(error, "code", 0) == 401:  # there, for others
                    break
                time.sleep(2)
        yield found
    finally:
        with suppress(ProcessLookupError):  # a host that ended by itself has told why
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="session")
def start_a1111(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Starts an AUTOMATIC1111 with these flags besides; skips where its folder is not given."""
    root = os.environ.get("DECOUPLE_A1111_ROOT")
    if not root:
        pytest.skip("no WebUI to start: set DECOUPLE_A1111_ROOT to its folder")
    default = (
        f"cd {root} && exec venv/bin/python launch.py --skip-prepare-environment --skip-python-version-check "
        "--skip-version-check --skip-torch-cuda-test --use-cpu all --no-half --precision full --api "
        "--no-download-sd-model --opt-sdp-attention --port {port} --data-dir {data}"
    )

    @contextmanager
    def start(*flags: str, headers: Mapping[str, str] = CALLER) -> Iterator[Host]:
        data = tmp_path_factory.mktemp("webui")
        link_extensions(data)
        models = data / "models" / "Stable-diffusion"
        models.mkdir(parents=True)
        embedded = REPOSITORY / "lib_decouple/embedded"
        shutil.copy(embedded / "decouple-drawn.safetensors", models)
        layout = (embedded / "decouple-drawn.yaml").read_text()
        layout = re.sub(r"(version: ).*", rf"\g<1>{embedded / 'tokenizer'}", layout)
        (models / "decouple-drawn.yaml").write_text(layout)
        more = os.environ.get("DECOUPLE_CHECKPOINTS")
        for file in Path(more).iterdir() if more else ():
            if file.suffix in (".safetensors", ".yaml"):
                (models / file.name).symlink_to(file.resolve())
        command = os.environ.get("DECOUPLE_A1111_START", default)
        with started(Host, " ".join((command, *flags)), data, headers) as found:
            yield made_ready(found, "AUTOMATIC1111")

    return start


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """AUTOMATIC1111; skips where none is given."""
    url = os.environ.get("DECOUPLE_A1111_URL")
    if url:
        yield made_ready(Host(url), "AUTOMATIC1111")
        return
    if not os.environ.get("DECOUPLE_A1111_ROOT"):
        pytest.skip("no WebUI given: set DECOUPLE_A1111_ROOT to its folder, or DECOUPLE_A1111_URL")
    with request.getfixturevalue("start_a1111")() as found:
        yield found


@pytest.fixture(scope="session")
def models_of_forge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``models`` folder with the small random ones; they are kept in DECOUPLE_CHECKPOINTS, where that is given."""
    models = tmp_path_factory.mktemp("forge") / "models"
    kept = Path(os.environ.get("DECOUPLE_CHECKPOINTS") or models.parent)
    for name, families in FORGE_MODELS.items():
        (models / name).mkdir(parents=True)
        for family in families:
            for file in small_checkpoints.files(kept, family):
                (models / name / file.name).symlink_to(file.resolve())
    return models


@pytest.fixture(scope="session")
def start_forge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Starts a Forge with these flags besides; skips where its folder is not given."""
    root = os.environ.get("DECOUPLE_FORGE_ROOT")
    if not root:
        pytest.skip("no Forge to start: set DECOUPLE_FORGE_ROOT to its folder")
    models = request.getfixturevalue("models_of_forge")  # gigabytes, which nobody without a Forge wants
    on_the_cpu = "--always-cpu --no-download-sd-model"
    if on_the_cpu.split()[0] not in (Path(root) / "backend/args.py").read_text():
        on_the_cpu = "--cpu"  # Forge Neo
    default = (
        f"cd {root} && CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 exec venv/bin/python launch.py {on_the_cpu} --api "
        "--skip-prepare-environment --skip-python-version-check --skip-torch-cuda-test --skip-version-check "
        "--no-hashing --port {port} --data-dir {data} "
        f"--gradio-allowed-path {root}"
    )

    @contextmanager
    def start(*flags: str, headers: Mapping[str, str] = CALLER) -> Iterator[Forge]:
        data = tmp_path_factory.mktemp("webui")
        link_extensions(data)
        (data / "models").symlink_to(models)
        command = os.environ.get("DECOUPLE_FORGE_START", default)
        with started(Forge, " ".join((command, *flags)), data, headers) as found:
            yield made_ready(found, "Forge Neo" if found.is_neo else "Forge", sd_model_checkpoint="small-sd1")

    return start


@pytest.fixture(scope="session")
def forge(request: pytest.FixtureRequest) -> Iterator[Forge]:
    """Forge; skips where none is given."""
    url = os.environ.get("DECOUPLE_FORGE_URL")
    if url:
        found = Forge(url)
        yield made_ready(found, "Forge Neo" if found.is_neo else "Forge", sd_model_checkpoint="small-sd1")
        return
    with request.getfixturevalue("start_forge")() as found:
        yield found


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and "tests/hosts/" in report.nodeid:
        rows.append((report.nodeid.rpartition("::")[2].removeprefix("test_"), report.outcome))


def grouped() -> Iterator[str]:
    """One table row a test: what it was run with, and how often it came out how."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row, outcome in rows:
        name, _, parameters = row.partition("[")
        with_what = re.sub(r"^(host|forge)(-|$)", "", parameters.removesuffix("]"))
        found.setdefault(name.replace("_", " "), []).append((with_what, outcome))
    for name, runs in found.items():
        counts = {one: [outcome for _, outcome in runs].count(one) for _, one in runs}
        with_what = ", ".join(filter(None, (parameters.replace("|", "\\|") for parameters, _ in runs)))
        apart = "; ".join(f"{outcome}: {parameters}" for parameters, outcome in runs if outcome != "passed")
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        yield f"| {name} | {with_what} | {told}{f' ({apart})' if apart else ''} |\n"


def head(config: pytest.Config) -> Iterator[str]:
    """What was run: the command without this machine's paths, the commit, and what the hosts told."""
    given = ("A1111_ROOT", "A1111_URL", "FORGE_ROOT", "FORGE_URL", "CHECKPOINTS", "EXTENSIONS", "HOSTS_TABLE")
    environment = [f"DECOUPLE_{name}=…" for name in given if f"DECOUPLE_{name}" in os.environ]
    arguments = [one for one in config.invocation_params.args if not Path(one).is_absolute()]
    commit = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    yield f"# {' and '.join(versions)}: the matrix\n\n"
    yield "Every row was seen; it is a test of `tests/hosts`, and this file is written by\n\n"
    yield f"    {' '.join((*environment, 'python -m pytest', *arguments))}\n\n"
    yield f"on {datetime.now(timezone.utc):%Y-%m-%d}, on {os.cpu_count()} processors, with this extension at "
    yield f"{subprocess.run(commit, capture_output=True, text=True).stdout.strip() or 'an unknown commit'}.\n\n"
    for name, found in versions.items():
        yield f"{name}: {', '.join(f'{key} {version}' for key, version in found.items())}.\n\n"
    outcomes = [outcome for _, outcome in rows]
    counts = ", ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(outcomes))
    yield f"{len(rows)} runs of {len({row.partition('[')[0] for row, _ in rows})} tests: {counts}.\n\n"


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("DECOUPLE_HOSTS_TABLE")
    if target and rows:
        table = "| row | with | result |\n|---|---|---|\n"
        Path(target).write_text("".join((*head(session.config), table, *grouped())), encoding="utf-8")
