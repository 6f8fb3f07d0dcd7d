"""Arguments of the script, from the WebUI's controls or its API, as :class:`Settings`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from .. import presets
from ..settings import TITLE, Settings, refuse_unknown, written
from .answers import sayable, shown, too_deep, unsendable
from .drafts import Wanted
from .infotext import from_text

ORDER: tuple[str, ...] = (
    *("enabled", "loss", "steps", "entities", "rule", "size", "factor", "treatment", "combine", "refine_steps"),
    *("refine_threshold", "refine_rounds", "stop", "stop_below", "every", "hires", "one_at_a_time"),
    *("layers", "start", "recompute", "skip_missing", "compare", "look", "drafts", "gradient", "draw"),
    *("restarts", "drafts_only"),
)
"""Names of a positional list's values. Clients depend on it: new ones are appended."""

BESIDE = ("compare", "draw", "drafts_only")
"""Those that are no settings: they say what is done with a job, and are in no infotext, preset or plot."""

NAMED = (*(item.name for item in fields(Settings)), "preset", *BESIDE)
"""Names among named arguments."""

DEEPEST = 8
"""Lists and objects within one another among the arguments; ours need three."""

PATHS = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")
OPTIONS_PATH = "/sdapi/v1/options"

FORM = '{"args": [{"enabled": true}]}'
"""What a request holds for us, in its shortest form."""


class Arguments(NamedTuple):
    """What a job is given."""

    settings: Settings
    compare: bool = False
    """Draw each picture plain, too, from the same seed."""
    draw: Wanted | None = None
    """Draw this draft of a run that is kept, and nothing else."""
    drafts_only: bool = False
    """Make each picture's drafts, and draw none."""

    def beside(self) -> str:
        """The field that says what is done with the job; "" where none does."""
        return "compare" if self.compare else "draw" if self.draw else "drafts_only" if self.drafts_only else ""


def settings_from(args: Sequence[Any], folder: Path | None = None) -> Settings:
    """The settings among the arguments; see :func:`arguments_from`."""
    return arguments_from(args, folder).settings


def arguments_from(args: Sequence[Any], folder: Path | None = None) -> Arguments:
    """``[{named}]``, ``['{named JSON}']`` or a positional list in :data:`ORDER`; any subset, defaults for the rest.

    Among named arguments ``preset`` names one, built in or of ``folder``: it turns guidance on, and the others
    stand over it. A WebUI fills the list up with its controls' values behind named arguments; these do not count.
    Raises ValueError that names the field, the value and what is allowed.
    """
    if not args:
        return Arguments(Settings())
    first = args[0]
    if isinstance(first, str) and first.lstrip().startswith("{"):
        try:
            first = json.loads(first)
        except ValueError as error:
            raise ValueError(f"args: not JSON: {error}") from None
        except RecursionError:
            raise ValueError("args: nested too deeply") from None
    if too_deep([first, *args[1:]], DEEPEST):
        raise ValueError("args: nested too deeply")
    if isinstance(first, Mapping):
        refuse_unknown(first, NAMED)
        given = dict(first)
        beside = _beside(given)
        if "preset" not in given:
            return Arguments(Settings.from_dict(given), *beside)
        return Arguments(presets.load(given.pop("preset"), folder).with_overrides(**given), *beside)
    if len(args) > len(ORDER):
        raise ValueError(f"args: {len(args)} values are not allowed; at most {len(ORDER)}: {', '.join(ORDER)}")
    values = dict(zip(ORDER, args))
    beside = _beside(values)
    return Arguments(Settings.from_dict({name: from_text(name, value) for name, value in values.items()}), *beside)


def _beside(values: dict[str, Any]) -> tuple[bool, Wanted | None, bool]:
    """Takes what is :data:`BESIDE` the settings out of the ``values``."""
    compare, draw, drafts_only = values.pop("compare", False), values.pop("draw", ""), values.pop("drafts_only", False)
    for name, value in (("compare", compare), ("drafts_only", drafts_only)):
        if not isinstance(value, bool):
            raise ValueError(f"{name}: {shown(value)} is not allowed; true or false")
    wanted = Wanted.parse(draw)
    if drafts_only and (compare or wanted):
        raise ValueError(f"drafts_only: beside {'compare' if compare else 'draw'} true is not allowed, as it draws")
    return compare, wanted, drafts_only


def problem_of(
    request: Any, folder: Path | None = None, problem_of_draft: Callable[[Wanted], str] = lambda wanted: ""
) -> str:
    """What is wrong with our part of a txt2img or img2img request's JSON; "" when nothing is.

    ``folder``: of the user's presets; ``problem_of_draft`` says why a draft can't be drawn."""
    scripts = request.get("alwayson_scripts") if isinstance(request, Mapping) else None
    for name, given in (scripts or {}).items() if isinstance(scripts, Mapping) else ():
        if str(name).lower() != TITLE.lower():
            continue
        if problem := _problem_of_form(given):
            return problem
        args = given.get("args", [])
        # A WebUI that hands a request on to another (distributed) sends the list that it has itself filled up.
        if len(args) not in (0, 1, len(ORDER)) and isinstance(args[0], (Mapping, str)):
            return "args: named arguments stand alone; one object, or a list of values"
        try:
            own = arguments_from(args, folder)
        except ValueError as error:
            return str(error)
        bad = next((one for one in args if unsendable(one)), None)
        if bad is not None:
            return f"args: {shown(bad)} is not allowed; numbers of 64 bits, and texts without half characters"
        beside = own.beside()
        if beside and (script := request.get("script_name")):
            return f"{beside}: beside the script {shown(script)} it can't be done, as that draws pictures of its own"
        if own.draw and (problem := problem_of_draft(own.draw)):
            return problem
    return ""


def _problem_of_form(given: Any) -> str:
    """What is wrong with how our part is written, before its arguments are read."""
    if too_deep(given, DEEPEST + 2):
        return "args: nested too deeply"
    if not isinstance(given, Mapping):
        return f"{shown(given)} is not allowed; an object, such as {FORM}"
    for name in given:
        if name in NAMED:
            return f'{name}: stands beside "args"; fields stand within: {FORM}'
        if name != "args":
            return f'{written(name)}: no such part; "args" is the only one: {FORM}'
    if not isinstance(given.get("args", []), list):
        return f"args: {shown(given['args'])} is not allowed; a list, such as {FORM}"
    return ""


def check_requests(
    app: Any,
    folder: Callable[[], Path | None] = lambda: None,
    pasted: Callable[[str], str] = lambda text: "",
    options: Callable[[Mapping[str, Any]], str] = lambda values: "",
    caller: Callable[[Any], str] = lambda request: "",
    problem_of_draft: Callable[[Wanted], str] = lambda wanted: "",
) -> None:
    """Answer bad arguments of ours with 422 before the host starts to draw, or keeps an option.

    ``app``: the host's FastAPI; ``folder`` gives that of the user's presets; ``pasted`` and ``options`` say what is
    wrong with an infotext, and with new values of options; ``caller`` tells whose job a request starts;
    ``problem_of_draft`` says why a draft can't be drawn.
    """
    from fastapi import Depends, HTTPException, Request
    from fastapi.dependencies.utils import get_parameterless_sub_dependant

    from . import callers

    async def body_of(request: Request) -> Mapping[str, Any]:
        try:
            body = await request.json()
        except (ValueError, RecursionError):
            return {}  # the host says so itself
        return body if isinstance(body, Mapping) else {}

    def refuse(problem: str) -> None:
        if problem:
            raise HTTPException(status_code=422, detail=sayable(f"{TITLE}: {problem}"))

    async def check(request: Request) -> None:
        callers.remember(caller(request))
        body = await body_of(request)
        refuse(problem_of(body, folder(), problem_of_draft))
        if isinstance(body.get("override_settings"), Mapping):
            refuse(options(body["override_settings"]))
        if isinstance(body.get("infotext"), str):
            refuse(pasted(body["infotext"]))

    async def check_options(request: Request) -> None:
        refuse(options(await body_of(request)))

    for route in app.routes:
        path = getattr(route, "path", None)
        if not hasattr(route, "dependant") or "POST" not in (getattr(route, "methods", None) or ()):
            continue
        before = check if path in PATHS else check_options if path == OPTIONS_PATH else None
        if before is not None:
            before.__annotations__["request"] = Request  # not the text that "from __future__ import annotations" leaves
            ours = get_parameterless_sub_dependant(depends=Depends(before), path=route.path_format)
            route.dependant.dependencies.append(ours)
