"""Arguments of the script, from the WebUI's controls or its API, as :class:`Settings`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import presets
from ..settings import TITLE, Settings
from .infotext import from_text

ORDER: tuple[str, ...] = (
    *("enabled", "loss", "steps", "entities", "rule", "size", "factor", "treatment", "combine", "refine_steps"),
    *("refine_threshold", "refine_rounds", "stop", "stop_below", "every", "hires", "one_at_a_time"),
    *("layers", "start", "recompute", "skip_missing", "compare"),
)
"""Names of a positional list's values. Clients depend on it: new ones are appended."""

BESIDE = ("compare",)
"""Those that are no settings: they say what is done with a job, and are in no infotext, preset or plot."""

PATHS = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")


class Arguments(NamedTuple):
    """What a job is given."""

    settings: Settings
    compare: bool = False
    """Draw each picture plain, too, from the same seed."""


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
    if isinstance(first, Mapping):
        given = dict(first)
        compare = _compare(given.pop("compare", False))
        if "preset" not in given:
            return Arguments(Settings.from_dict(given), compare)
        return Arguments(presets.load(given.pop("preset"), folder).with_overrides(**given), compare)
    if len(args) > len(ORDER):
        raise ValueError(f"args: {len(args)} values are not allowed; at most {len(ORDER)}: {', '.join(ORDER)}")
    values = dict(zip(ORDER, args))
    compare = _compare(values.pop("compare", False))
    return Arguments(Settings.from_dict({name: from_text(name, value) for name, value in values.items()}), compare)


def _compare(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"compare: {value!r} is not allowed; true or false")
    return value


def problem_of(request: Any, folder: Path | None = None) -> str:
    """What is wrong with our part of a txt2img or img2img request's JSON; "" when nothing is.

    ``folder``: of the user's presets."""
    scripts = request.get("alwayson_scripts") if isinstance(request, Mapping) else None
    for name, given in (scripts or {}).items() if isinstance(scripts, Mapping) else ():
        if str(name).lower() != TITLE.lower() or given is None:
            continue
        if not isinstance(given, Mapping) or not isinstance(given.get("args", []), list):
            return f'{given!r} is not allowed; {{"args": [{{…}}]}}'
        args = given.get("args", [])
        # A WebUI that hands a request on to another (distributed) sends the list that it has itself filled up.
        if len(args) not in (0, 1, len(ORDER)) and isinstance(args[0], (Mapping, str)):
            return "args: named arguments stand alone; one object, or a list of values"
        try:
            compare = arguments_from(args, folder).compare
        except ValueError as error:
            return str(error)
        if compare and (script := request.get("script_name")):
            return f"compare: beside the script {script!r} it can't be done, as that draws pictures of its own"
    return ""


def check_requests(app: Any, folder: Callable[[], Path | None] = lambda: None) -> None:
    """Answer bad arguments of ours with 422 before the host starts to draw.

    ``app``: the host's FastAPI; ``folder`` gives that of the user's presets."""
    from fastapi import Depends, HTTPException, Request
    from fastapi.dependencies.utils import get_parameterless_sub_dependant

    async def check(request: Request) -> None:
        try:
            body = await request.json()
        except ValueError:
            return  # the host says so itself
        if problem := problem_of(body, folder()):
            raise HTTPException(status_code=422, detail=f"{TITLE}: {problem}")

    check.__annotations__["request"] = Request  # not the text that "from __future__ import annotations" leaves
    for route in app.routes:
        if getattr(route, "path", None) in PATHS and hasattr(route, "dependant"):
            ours = get_parameterless_sub_dependant(depends=Depends(check), path=route.path_format)
            route.dependant.dependencies.append(ours)
