"""A WebUI by its API: AUTOMATIC1111, Forge or Forge Neo with this extension, one image a request.

What was used (entities, checkpoint, version) is read off each image's own answer, so a WebUI whose checkpoint
is changed while a run goes on is found out at the next image.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ....settings import TITLE
from ..plan import Job, Sampling
from ..prompts import Prompt
from .base import HASH_DIGITS, About, Drawn, Unreachable, WrongCheckpoint, as_png

FOUND, BY_UPDATE, STOOD_ASIDE = "Decouple found", "Decouple IoU by update", "Decouple stood aside"
"""Keys of the extension's results in an infotext."""

ASK_SECONDS = 30.0
"""For an answer that needs no drawing."""


class WebUI:
    """One address; ``auth``: ``user:password`` as ``--api-auth`` has it; ``sha256``: the wanted checkpoint's."""

    batch = 1

    def __init__(self, url: str, sampling: Sampling, timeout: float, auth: str = "", sha256: str = "") -> None:
        try:
            import httpx
        except ImportError:
            raise ValueError("backend: a WebUI needs httpx; pip install -r requirements-evaluate.txt") from None
        self.url, self.sampling, self.timeout, self.sha256 = url, sampling, timeout, sha256
        user, _, password = auth.partition(":")
        self._client = httpx.Client(base_url=url, auth=(user, password) if auth else None, trust_env=False)
        self._tokens: dict[str, dict[str, list[int]]] = {}
        self._extension: bool | None = None
        self._host = ""

    def _ask(self, method: str, path: str, body: Any = None, seconds: float = ASK_SECONDS) -> Any:
        """The answer's JSON; None for 404. Raises Unreachable, and ValueError for what no WebUI would take."""
        import httpx

        try:
            answer = self._client.request(method, path, json=body, timeout=httpx.Timeout(seconds, connect=10.0))
        except httpx.TimeoutException:
            raise Unreachable(f"{self.url}: no answer to {path} within {seconds:g} s") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url}: {type(error).__name__} at {path}: {error}") from None
        if answer.status_code == 404:
            return None
        if answer.status_code == 401:
            raise Unreachable(f"{self.url}: user and password are wanted (401); --api-auth USER:PASSWORD")
        if answer.status_code == 422:
            raise ValueError(f"{self.url}: {_said(answer)}")
        if answer.status_code != 200:
            raise Unreachable(f"{self.url}: status {answer.status_code} at {path}: {_said(answer)}")
        try:
            return answer.json()
        except ValueError:
            raise Unreachable(f"{self.url}: no JSON at {path}; is it a WebUI with --api?") from None

    def about(self) -> About:
        """Host, version and loaded checkpoint, as it tells before it draws.

        Raises WrongCheckpoint where the plan names another, Unreachable where this is no WebUI with ``--api``.
        """
        options = self._ask("GET", "/sdapi/v1/options")
        models = self._ask("GET", "/sdapi/v1/sd-models")
        if not isinstance(options, dict) or not isinstance(models, list):
            raise Unreachable(f"{self.url}: no /sdapi/v1; the WebUI has to be started with --api")
        title = str(options.get("sd_model_checkpoint") or "")
        name = title.partition(" [")[0]
        own: dict[str, Any] = next((m for m in models if title in (m.get("title"), m.get("model_name"))), {})
        own = own or next((m for m in models if name in (m.get("title"), m.get("model_name"))), {})
        digest = str(own.get("sha256") or own.get("hash") or options.get("sd_checkpoint_hash") or "")
        if not digest:  # a host reckons it when it first loads the checkpoint, unless it is told never to
            digest = str(self._try(1).get("sd_model_hash") or "")
        self._host = host_of(options)
        found = About(self._host, "", digest[:HASH_DIGITS], name or title)
        self._check(found.checkpoint, found.name)
        return found

    def _check(self, digest: str, name: str) -> None:
        if self.sha256 and digest and not self.sha256.startswith(digest):
            raise WrongCheckpoint(f"{self.url}: has checkpoint {name} [{digest}], the run has [{self.sha256[:10]}]")

    @property
    def extension(self) -> bool:
        """Whether Attention Decoupling answers there."""
        if self._extension is None:
            self._extension = self._ask("GET", "/decouple/v1/schema") is not None
        return self._extension

    def tokens(self, prompt: Prompt) -> dict[str, list[int]] | None:
        """By the host's own tokenizer; None where the extension is not there."""
        if not self.extension:
            return None
        if prompt.id not in self._tokens:
            field = ", ".join(json.dumps(e) if re.search('[,"]', e) else e for e in prompt.entities)
            found = self._ask("POST", "/decouple/v1/tokens", {"prompt": prompt.text, "entities": field})
            words = found["words"]
            for one in found["entities"]:
                if one["problem"]:
                    raise ValueError(one["problem"])
            self._tokens[prompt.id] = {
                one["text"]: sorted({token for k in one["words"] for token in words[k]["tokens"]})
                for one in found["entities"]
            }
        return self._tokens[prompt.id]

    def draw(self, jobs: Sequence[Job]) -> list[Drawn]:
        """Raises Unreachable for a job that needs the extension where it is not, ValueError for what can't be drawn."""
        return [self._draw(job) for job in jobs]

    def _draw(self, job: Job) -> Drawn:
        if job.settings.enabled and not self.extension:
            self._extension = None  # asked anew: it may be installed meanwhile, or another WebUI have it
            raise Unreachable(f"{self.url}: Attention Decoupling is not installed there; arm {job.arm!r} needs it")
        tokens = self.tokens(job.prompt)
        body = self._body(job.prompt.text, job.seed, self.sampling.steps)
        if self.extension:
            own = {**job.settings.as_dict(), "entities": list(job.prompt.entities)} if job.settings.enabled else {}
            body["alwayson_scripts"] = {TITLE: {"args": [own or {"enabled": False}]}}
        started = time.perf_counter()
        answer = self._ask("POST", "/sdapi/v1/txt2img", body, self.timeout)
        seconds = time.perf_counter() - started
        image, info = self._read(answer)
        self._check_sampler(info.get("sampler_name"))
        self._host = self._host or host_of(self._ask("GET", "/sdapi/v1/options"))
        about = About(
            self._host,
            str(info.get("version") or ""), str(info.get("sd_model_hash") or "")[:HASH_DIGITS],
            str(info.get("sd_model_name") or ""),
        )  # fmt: skip
        self._check(about.checkpoint, about.name)
        text = str((info.get("infotexts") or [""])[0])
        found = value(text, FOUND)
        iou = re.match(r"([\d.]+) to ([\d.]+) (?:at|over) ", value(text, BY_UPDATE) or "")
        return Drawn(
            image,
            job.prompt.entities if found is None else tuple(_listed(found)),
            tokens,
            seconds,
            None if job.settings.enabled else 0,
            {"iou by update": [float(iou[1]), float(iou[2])]} if iou else None,
            value(text, STOOD_ASIDE) or "",
            about,
        )

    def _body(self, prompt: str, seed: int, steps: int) -> dict[str, Any]:
        """A request with all that the host could add turned off."""
        sampling = self.sampling
        return {
            "prompt": prompt, "negative_prompt": sampling.negative, "seed": seed, "subseed_strength": 0,
            "steps": steps, "cfg_scale": sampling.cfg, "width": sampling.width, "height": sampling.height,
            "sampler_name": sampling.sampler, "batch_size": 1, "n_iter": 1, "styles": [], "enable_hr": False,
            "restore_faces": False, "tiling": False, "send_images": True, "save_images": False,
        }  # fmt: skip

    def _read(self, answer: Any) -> tuple[bytes, dict[str, Any]]:
        """The image, read whole, and the answer's info. Raises Unreachable for one that can't be read."""
        try:
            data = base64.b64decode(answer["images"][0].rpartition(",")[2], validate=True)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return as_png(image), json.loads(answer["info"])
        except (KeyError, IndexError, TypeError, AttributeError, binascii.Error, OSError, ValueError) as error:
            raise Unreachable(
                f"{self.url}: its answer holds no readable image: {type(error).__name__}: {error}"
            ) from None

    def _check_sampler(self, drawn: str | None) -> None:
        """WebUIs take another sampler for a name that they do not know. Raises ValueError for that."""
        wanted = self.sampling.sampler
        if drawn in (None, wanted):
            return
        schedule = wanted.removeprefix(f"{drawn} ")  # "DPM++ 2M Karras" of older WebUIs
        for own in self._ask("GET", "/sdapi/v1/schedulers") or () if schedule != wanted else ():
            if schedule in (own.get("label"), own.get("name"), *(own.get("aliases") or ())):
                return
        raise ValueError(
            f"sampling.sampler: {wanted!r} is not known at {self.url}, which drew with {drawn!r}; "
            "/sdapi/v1/samplers lists its names"
        )

    def _try(self, steps: int) -> dict[str, Any]:
        """The info of a plain picture that is thrown away."""
        info = self._read(self._ask("POST", "/sdapi/v1/txt2img", self._body("a", 0, steps), self.timeout))[1]
        self._check_sampler(info.get("sampler_name"))
        return info

    def seconds_a_step(self) -> float:
        """Asks for two small numbers of steps, so that loading and decoding do not count."""
        taken = []
        for steps in (1, 3):
            started = time.perf_counter()
            self._try(steps)
            taken.append(time.perf_counter() - started)
        return taken[1] / 3


def host_of(options: Mapping[str, Any]) -> str:
    """By what it can be set to: Forge and what stems from it have options of their own; versions tell them apart."""
    return "Forge" if any(key.startswith("forge_") for key in options) else "AUTOMATIC1111"


def value(infotext: str, key: str) -> str | None:
    """An infotext key's value as it was before the host quoted it; None where the key is not there."""
    found = re.search(rf'(?:^|, |\n){re.escape(key)}: ("(?:\\.|[^\\"])*"|[^,]*)', infotext)
    if not found:
        return None
    text = found[1]
    return str(json.loads(text)) if text.startswith('"') else text.strip()


def _listed(text: str) -> list[str]:
    """Entities as the extension writes them: by comma, those with a comma or a quote as JSON strings."""
    parts = re.findall(r'\s*("(?:\\.|[^\\"])*"|[^,]+)(?:,|$)', text)
    return [str(json.loads(part)) if part.startswith('"') else part.strip() for part in parts]


def _said(answer: Any) -> str:
    """What an error's body tells, short."""
    try:
        body = answer.json()
        text = str(body.get("detail") or body.get("errors") or body.get("error") or body)
    except (ValueError, AttributeError):
        text = answer.text
    return text[:300]
