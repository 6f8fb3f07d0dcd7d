"""The routes under ``/decouple/v1/``, on the host's own FastAPI application.

Who may read: whom the host lets onto its page or to its API. With ``--api-auth`` its users, with a UI login whoever
is logged in; with neither, everybody. The page itself sends ``PAGE_KEY`` in the header ``X-Decouple-Key``, as a
browser knows no ``--api-auth``: whoever was given the page was let in. Writing takes what the host's own API takes,
and the key is not enough. What a run drew is for those who know its id; see :mod:`callers`. Requests that write and
come from another site's page are refused.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from .. import doctor
from ..profiles import UNKNOWN, Profile
from ..prompt import lexicon
from ..prompt.align import Piece
from ..prompt.syntax import HOST, Dialect
from . import beforehand, callers, check_machine, draft_routes, preset_routes, run_routes, schema, tokens
from .answers import sayable, shown
from .infotext import join_list, split_list
from .runs import Live, Runs

PREFIX = "/decouple/v1"

MOST_BYTES = 128 * 1024
"""Of a request's body."""

MOST_CHARACTERS = 10_000
"""Of a prompt."""


@dataclass(frozen=True)
class Host:
    """What the routes need of the WebUI."""

    tokenize: Callable[[str], Sequence[Piece]]
    """The tokens of one ``AND`` part: the chosen model's, or while it isn't loaded the bundled tokenizer's."""
    preset_folder: Callable[[], Path]
    """That of the user's presets."""
    dialect: Callable[[], Dialect] = lambda: HOST
    """What the WebUI's settings make of a prompt's signs."""
    credentials: str = ""
    """``user:password``s by comma, as ``--api-auth`` has them."""
    origins: Sequence[str] = ()
    """Other sites whose pages may write, as ``--cors-allow-origins`` has them."""
    runs_to_show: run_routes.RunsToShow = field(default_factory=run_routes.RunsToShow)
    """The last runs, and the one that is being drawn."""
    model: Callable[[], str] = lambda: ""
    """The chosen model's name; "" while it isn't loaded."""
    warnings: Callable[[], list[str]] = list
    """Why the chosen model, where it is loaded, would not be guided."""
    sampler: Callable[[str], str] = lambda name: ""
    """The name of a sampler's function by its name on the page; "" for an unknown one."""
    profile: Callable[[], Profile | None] = lambda: None
    """What fills the settings that are left open; None while the chosen model isn't loaded."""
    lacks_curve: Callable[[], bool] = lambda: False
    """Is the chosen model loaded, and nothing learned of its presence?"""
    check: Callable[[], doctor.Report] = check_machine.check
    """Examines the machine; see :func:`check_machine.check`."""


class Prompt(BaseModel):
    """A prompt as typed; entities as the field holds them; and words that were clicked, by their indexes."""

    prompt: str = Field(..., max_length=MOST_CHARACTERS)
    entities: str = Field("", max_length=MOST_CHARACTERS)
    selected: list[list[int]] = []
    settings: dict[str, str] = {}
    """As the controls hold them, for the warnings; any subset."""
    sampler: str = Field("", max_length=100)
    """Its name on the page."""
    steps: int = Field(0, ge=0, le=10_000)
    """Of the sampler; 0 where they are not known."""


class Word(BaseModel):
    """One word or sign; see :class:`tokens.PromptWord`."""

    text: str
    start: int
    end: int
    kind: tokens.Kind
    selectable: bool
    tokens: list[int]
    chunk: int
    part: int
    weight: float
    occurrence: int


class Entity(BaseModel):
    """An entity that was typed or clicked; see :class:`tokens.Chosen`."""

    text: str
    words: list[int]
    problem: str


class LeftOut(BaseModel):
    """A thing that is named but not kept apart by itself; see :class:`tokens.LeftOut`."""

    text: str
    words: list[int]
    why: str


class ModelProfile(BaseModel):
    """What fills settings that are left open; see :class:`lib_decouple.profiles.Profile`. ``window``: the guided steps'
    beginning and end as shares of all, None for the first half."""

    family: str
    source: str
    measured: bool
    loss: str
    rule: str
    size: float
    window: tuple[float, float] | None
    stop_below: float | None
    layers: str
    side: int


class Tokens(BaseModel):
    """A prompt's words; suggestions as lists of indexes of words; what is named but left out; the entities that were
    typed, then those that were clicked, and how the field would hold them; the entities' colours, or the suggestions'
    where there are no entities; how many tokens it has; the model whose tokens they are, "" while the chosen one
    isn't loaded and the bundled tokenizer answers, and its profile; and what a job of this prompt would be told."""

    words: list[Word]
    suggested: list[list[int]]
    left_out: list[LeftOut]
    entities: list[Entity]
    field: str
    colours: list[str]
    tokens: int
    model: str
    profile: ModelProfile | None
    warnings: list[str]


class MachineReport(BaseModel):
    """What was found of the machine: plain sentences, and what to paste into an issue, without prompts and paths."""

    sentences: list[str]
    report: dict[str, Any]


def _text_of(words: Sequence[tokens.PromptWord], indexes: Sequence[int]) -> str:
    return " ".join(words[k].text for k in indexes)


def add(app: Any, host: Host) -> None:
    """Add the routes to ``app``, with the checks that stand before them."""
    lexicon.load()  # nobody's first keystroke is to wait for it
    users = callers.Users(app, host.credentials)
    router = APIRouter(
        prefix=PREFIX,
        tags=["Attention Decoupling"],
        route_class=_checked(host.origins),
        dependencies=[Depends(users.admit)],
        responses={401: {"description": "Not allowed in."}, 403: {"description": "A write from another site."}},
    )

    @router.get("/schema")
    def settings_schema() -> dict[str, Any]:
        """JSON Schema of the settings."""
        return schema.json_schema()

    @router.post("/tokens", response_model=Tokens)
    def prompt_tokens(body: Prompt, request: Request) -> JSONResponse:
        """A prompt's words with their tokens, and the entities that are suggested."""
        gone: threading.Event = request.state.decouple_gone
        try:
            typed = split_list(body.entities)
            for name, given in (("prompt", body.prompt), *(("entities", one) for one in typed)):
                if given != sayable(given):
                    raise ValueError(f"{name}: {shown(given)} holds half a character (a lone surrogate)")
            found = tokens.describe(body.prompt, host.tokenize, typed, body.selected, host.dialect(), gone.is_set)
        except ValueError as error:
            raise HTTPException(status_code=422, detail=f"{error}") from None
        except tokens.Abandoned:
            raise HTTPException(status_code=499, detail="whoever asked has gone") from None
        chosen = found["entities"]
        profile = host.profile()
        asked = beforehand.warnings(
            [one.text for one in chosen] or [_text_of(found["words"], one) for one in found["suggested"]],
            body.settings, profile or UNKNOWN, body.steps, host.sampler(body.sampler),
            "" if chosen else ", ".join(f"{one.text} ({one.why})" for one in found["left_out"]), host.lacks_curve,
        )  # fmt: skip
        # It fits Tokens, as tests see: to check thousands of words here takes longer than all else.
        answer = {
            **found,
            "words": [word._asdict() for word in found["words"]],
            "left_out": [asdict(one) for one in found["left_out"]],
            "entities": [asdict(entity) for entity in chosen],
            "field": join_list(entity.text for entity in chosen),
            "model": host.model(),
            "profile": asdict(profile) if profile else None,
            "warnings": [*host.warnings(), *(asked if body.prompt.strip() else ())],
        }
        return JSONResponse(answer)

    refused: dict[int | str, dict[str, Any]] = {409: {"description": "A job runs, or no model is loaded."}}

    @router.post(
        "/doctor", response_model=MachineReport, responses=refused, dependencies=[Depends(users.admit_writing)]
    )
    def check_this_machine() -> dict[str, Any]:
        """Check this machine, by a job of the WebUI's own on the loaded model: is the gradient whole, how good is half
        precision, what do steps take in time and memory. Nothing is saved; what has not
        begun 40 s into the examination is left out."""
        try:
            report = host.check()
        except check_machine.NotNow as error:
            raise HTTPException(status_code=409, detail=str(error)) from None
        return {"sentences": doctor.sentences(report), "report": asdict(report)}

    preset_routes.add(router, host.preset_folder, [Depends(users.admit_writing)])
    run_routes.add(router, host.runs_to_show, users.caller)
    draft_routes.add(router, host.runs_to_show.runs, users.caller)
    app.include_router(router)
    app.openapi_schema = None


def _checked(origins: Sequence[str]) -> type[APIRoute]:
    """Routes that look at where a write comes from, and at its size, before they read it."""

    class Checked(APIRoute):
        def get_route_handler(self) -> Callable[..., Any]:
            handle = super().get_route_handler()

            async def check(request: Request) -> Any:
                if request.method not in ("GET", "HEAD"):
                    if not _same_site(request, origins):
                        raise HTTPException(status_code=403, detail="refused: a write from another site's page")
                    request = await _bounded(request)
                try:
                    async with _watched(request):
                        return await handle(request)
                except RequestValidationError as error:  # its "input" may be what no answer can hold
                    told = [{key: one[key] for key in ("loc", "msg", "type")} for one in error.errors()]
                    raise HTTPException(status_code=422, detail=sayable(told)) from None
                except RecursionError:
                    raise HTTPException(status_code=422, detail="nested too deeply") from None
                except HTTPException as error:
                    error.detail = sayable(error.detail)
                    raise

            return check

    return Checked


def _same_site(request: Request, origins: Sequence[str]) -> bool:
    """Whether no other site's page sent this; clients that are no browser send neither header."""
    origin = request.headers.get("origin")
    if origin in origins:
        return True
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    try:
        return origin is None or urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:  # no browser's
        return False


async def _bounded(request: Request) -> Request:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(status_code=413, detail=f"the body is larger than {MOST_BYTES} bytes")
    given = False

    async def receive() -> Any:
        nonlocal given
        if given:
            return await request.receive()  # that whoever sent it is gone
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    read = Request(request.scope, receive)
    await read.body()
    return read


@asynccontextmanager
async def _watched(request: Request) -> AsyncIterator[None]:
    """Inside, ``request.state.decouple_gone`` is set once whoever sent the request, whose body is read, has gone."""
    gone = request.state.decouple_gone = threading.Event()

    async def watch() -> None:
        with suppress(Exception):  # then nobody knows
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone.set()

    watching = asyncio.ensure_future(watch()) if request.method not in ("GET", "HEAD") else None
    try:
        yield
    finally:
        if watching:
            watching.cancel()
            await asyncio.wait({watching})


def of_webui(runs: Runs, live: Live) -> Host:
    """The WebUI that this runs in."""
    from modules import images, prompt_parser, shared

    from ..hosts import detect, sampling
    from ..hosts.family import profile_of_model
    from . import bundled
    from . import options as chosen
    from .loaded import loaded_model, why_not_guided

    def name() -> str:
        model = loaded_model()
        about = getattr(model, "sd_checkpoint_info", None)
        return "" if model is None else str(getattr(about, "name", type(model).__name__))

    def tokenize(text: str) -> list[Piece]:
        try:
            return detect.adapter(loaded_model()).tokenize(text)
        except detect.Unsupported:
            plain = getattr(shared.opts, "emphasis", "") == "None"
            backtrack = int(getattr(shared.opts, "comma_padding_backtrack", 20))
            parse = {} if plain else {"parse": prompt_parser.parse_prompt_attention}
            return bundled.tokenize(text, backtrack=backtrack, **parse)

    def warnings() -> list[str]:
        model = loaded_model()
        told = "" if model is None else why_not_guided(model)
        return [told] if told else []

    def profile() -> Profile | None:
        model = loaded_model()
        return None if model is None else profile_of_model(model)

    def lacks_curve() -> bool:
        model = loaded_model()
        return model is not None and sampling.curve_of(model) is None

    def sampler(name: str) -> str:
        for kind in ("k_diffusion", "timesteps", "lcm"):
            with suppress(ImportError):
                module = importlib.import_module(f"modules.sd_samplers_{kind.replace('_', '')}")
                for label, function, *_ in getattr(module, f"samplers_{kind}", ()):
                    if label == name:
                        return str(getattr(function, "__name__", function))
        return ""

    def dialect() -> Dialect:
        return sampling.dialect(comments=getattr(shared.opts, "enable_prompt_comments", False))

    options = shared.cmd_opts
    origins = [one.strip() for one in (getattr(options, "cors_allow_origins", None) or "").split(",") if one.strip()]
    to_show = run_routes.RunsToShow(
        runs,
        live,
        enabled=lambda: bool(chosen.chosen("decouple_live_panel")),
        interval_ms=lambda: int(shared.opts.live_preview_refresh_period or 500),  # as the host's page
        busy=lambda: bool(shared.state.job),
        font=images.get_font,
    )
    users = getattr(options, "api_auth", None) or ""
    return Host(
        tokenize, chosen.preset_folder, dialect, users, origins, to_show, name, warnings, sampler, profile, lacks_curve
    )  # fmt: skip
