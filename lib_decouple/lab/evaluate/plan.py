"""The plan of a run: a TOML file, read into what it stands for. Its reference (docs/evaluate.md) is made from here."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ... import presets
from ...core.losses import WeightedLoss
from ...settings import Settings
from . import prompts, trials
from .arms import NAMES, tuned
from .prompts import Prompt
from .prompts.splits import CFG, SPLITS, STEPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = ("embedded", "diffusers", "webui")
MOST_SEEDS = 10_000
NO_ARM = ("both", "neither")
"""What a rater can say besides an arm's name, so that no arm has it."""


def _key(default: Any, help: str, low: float | None = None, high: float | None = None, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, **more})


@dataclass(frozen=True)
class PromptsPart:
    """``[[prompts]]``, as often as wanted: each a set that comes with the program, a file, or a split."""

    set: str = _key("", f"one of {', '.join(prompts.SETS)}")
    file: str = _key("", "a *.txt, *.csv or *.jsonl file, from the plan's folder; instead of a set")
    split: str = _key(
        "", f"{', '.join(SPLITS)}: the embedded model's own pictures, each with a seed of its own; instead of a set"
    )
    entities: int = _key(2, "split: named entities of each", 1, 4)
    limit: int = _key(0, "so many of them, by a fixed lot; 0: all. split: so many pictures", 0, 1_000_000)
    seeds: int = _key(0, "seeds for each of these prompts; 0: the plan's", 0, MOST_SEEDS)
    first_seed: int = _key(
        -1, "split: the first picture's seed, the next one's is one more; -1: its own", -1, 2**32 - 1
    )


@dataclass(frozen=True)
class ArmPart:
    """A value of ``arms``: ``"plain"``, a loss such as ``"com"``, or a table with one of loss, preset and tuned."""

    name: str = _key("", "in the report; the loss's, preset's or tuned arm's when left out")
    loss: str = _key("", "a loss or a sum of losses; all else the extension's defaults")
    preset: str = _key("", f"one of {', '.join(one.name for one in presets.BUILT_IN)}, or of preset_folder")
    tuned: str = _key("", f"the embedded model's settings, by number of entities and of steps: {', '.join(NAMES)}")
    settings: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "table of any of the extension's settings, over the former"}
    )


@dataclass(frozen=True)
class Sampling:
    """``[sampling]``: how every image is drawn."""

    steps: int = _key(0, f"sampling steps; 0: {STEPS} on the embedded model, else 50", 0, 1000)
    cfg: float = _key(0.0, f"guidance scale; 0: {CFG:g} on the embedded model, else 7.5", 0, 100)
    width: int = _key(0, "pixels; 0: the model's own, 512 in a WebUI", 0, 8192)
    height: int = _key(0, "pixels; 0: the model's own, 512 in a WebUI", 0, 8192)
    sampler: str = _key(
        "", "webui: its name of the sampler; Euler when left out. A local file has DDIM, a folder its own"
    )
    negative: str = _key("", "the negative prompt")


@dataclass(frozen=True)
class BackendPart:
    """``[backend]``: what draws."""

    kind: str = _key("embedded", f"one of {', '.join(KINDS)}", choices=KINDS)
    checkpoint: str = _key("", "diffusers: a .safetensors file or a folder, from the plan's folder")
    prediction: str = _key("", "diffusers: epsilon or v_prediction, where a file does not say")
    device: str = _key("cpu", "diffusers, embedded: cpu, cuda, mps ...")
    half: bool = _key(False, "diffusers: fp16 weights")
    batch: int = _key(8, "diffusers, embedded: images at once", 1, 256)
    workers: int = _key(1, "diffusers, embedded: processes, each with the model in memory", 1, 64)
    urls: tuple[str, ...] = _key((), "webui: addresses; more than one needs Ray")
    endpoints: str = _key("", "webui: a file of addresses, one a line, read again while it runs; needs Ray")
    sha256: str = _key("", "webui: the checkpoint's SHA-256 or its first digits; an endpoint of another is refused")
    timeout: float = _key(600.0, "webui: seconds for an image, after which an endpoint counts as hung", 1, 86400)
    retries: int = _key(5, "with Ray: how often an image is tried again elsewhere", 0, 1000)
    patience: float = _key(120.0, "with Ray: seconds without any endpoint before the run gives up", 1, 86400)


@dataclass(frozen=True)
class Plan:
    """The whole file. Raises ValueError that names field, value and what is allowed."""

    prompts: tuple[PromptsPart, ...] = _key((), "what is drawn")
    arms: tuple[ArmPart, ...] = _key((), 'how; the first is what others are compared with, as a rule "plain"')
    seeds: int = _key(4, "seeds for each prompt, the same ones in every arm", 1, MOST_SEEDS)
    first_seed: int = _key(1, "the first of them", 0, 2**31)
    same_seeds: bool = _key(True, "every prompt has the same seeds, as in Attend-and-Excite; else each its own")
    maps: bool = _key(False, "diffusers, embedded: keep each image's maps beside it, for the report")
    expected_missing: float = _key(0.3, "missing rate that the smallest visible effect is reckoned from", 0.001, 0.999)
    preset_folder: str = _key("", "folder of presets of your own, from the plan's folder")
    sampling: Sampling = field(default_factory=Sampling, metadata={"help": "how every image is drawn"})
    backend: BackendPart = field(default_factory=BackendPart, metadata={"help": "what draws"})


@dataclass(frozen=True)
class Job:
    """One image that the plan wants."""

    prompt: Prompt
    arm: str
    settings: Settings
    """Without entities: those are the prompt's."""
    seed: int
    way: str = ""
    """What settings alone do not say of how it is drawn: one of :mod:`trials`, or a name that a backend knows."""

    @property
    def key(self) -> tuple[str, str, int]:
        """One image each."""
        return self.prompt.id, self.arm, self.seed

    def recipe(self, sampling: Sampling, backend: BackendPart, checkpoint: str) -> str:
        """A digest of what the picture is asked with, not of rounding (batch, machine); 16 hex digits."""
        how = self.settings.as_dict() if self.settings.enabled else {"enabled": False}
        what = [
            self.prompt.text, self.prompt.entities, self.seed, how, asdict(sampling),
            "webui" if backend.kind == "webui" else ["diffusers", backend.half, backend.prediction], checkpoint,
            *([self.way] if self.way else []),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def read(path: Path) -> tuple[Plan, list[Job]]:
    """The plan of a file and the images that it wants, those of one prompt and seed together.

    Raises ValueError that names field, value and what is allowed; FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"plan: {path} does not exist")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"plan: {path} is no TOML: {error}") from None
    plan = parsed(given)
    return plan, jobs(plan, path.parent)


def parsed(given: Mapping[str, Any]) -> Plan:
    """The plan of a parsed TOML file. Raises ValueError by name."""
    values = dict(given)
    for name, part in (("sampling", Sampling), ("backend", BackendPart)):
        if name in values:
            values[name] = _built(part, values[name], name)
    if "prompts" in values:
        own = values["prompts"]
        if not isinstance(own, list):
            raise ValueError(f"prompts: {own!r} is not allowed; [[prompts]] tables")
        values["prompts"] = tuple(_built(PromptsPart, one, f"prompts[{k}]") for k, one in enumerate(own, start=1))
    if "arms" in values:
        own = values["arms"]
        if not isinstance(own, list):
            raise ValueError(f'arms: {own!r} is not allowed; a list such as ["plain", "com"]')
        values["arms"] = tuple(_arm(one, f"arms[{k}]") for k, one in enumerate(own, start=1))
    plan: Plan = _built(Plan, values, "")
    _check(plan)
    return replace(plan, sampling=_resolved(plan.sampling, plan.backend.kind))


def _resolved(sampling: Sampling, kind: str) -> Sampling:
    """With the backend's own values where the plan has none, so that the manifest tells what was drawn with."""
    steps, cfg = (STEPS, CFG) if kind == "embedded" else (50, 7.5)
    found = replace(sampling, steps=sampling.steps or steps, cfg=sampling.cfg or cfg)
    if kind == "webui":
        found = replace(found, width=found.width or 512, height=found.height or 512, sampler=found.sampler or "Euler")
    return found


def _arm(given: Any, where: str) -> ArmPart:
    if isinstance(given, str):
        given = {"name": given} if given == "plain" else {"loss": given}
    part: ArmPart = _built(ArmPart, given, where)
    sources = [name for name in ("loss", "preset", "tuned") if getattr(part, name)]
    if len(sources) > 1:
        raise ValueError(f"{where}: {' and '.join(sources)} exclude each other")
    if part.settings.get("enabled", True) is not True:
        raise ValueError(
            f"{where}.settings.enabled: is not allowed but as true; the arm plain is drawn without guidance"
        )
    for name in ("entities", "hires"):
        if name in part.settings:
            raise ValueError(f"{where}.settings.{name}: is not allowed; an arm's entities are each prompt's own")
    if part.name == "plain" and (sources or part.settings):
        raise ValueError(f"{where}: the arm plain is drawn without guidance; give this one another name")
    if not sources and not part.settings and part.name != "plain":
        raise ValueError(f"{where}: {part.name!r} says nothing; one of loss, preset, tuned, settings")
    name = part.name or next((getattr(part, s) for s in sources), "")
    if not name:
        raise ValueError(f"{where}: name: is needed for an arm of settings alone")
    if name in (*NO_ARM, "plain") and not (name == "plain" and not sources):
        raise ValueError(f"{where}: name: {name!r} is not allowed; the rating page needs the word")
    if part.loss:
        _named(where, "loss", lambda: WeightedLoss.parse(part.loss))
    if part.tuned and part.tuned not in NAMES:
        raise ValueError(f"{where}.tuned: {part.tuned!r} is not one of {', '.join(NAMES)}")
    return ArmPart(name, part.loss, part.preset, part.tuned, part.settings)


def _named(where: str, name: str, make: Any) -> Any:
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{where}.{name}: {error}") from None


def _check(plan: Plan) -> None:
    if not plan.prompts:
        raise ValueError("prompts: none; at least one [[prompts]] table with set or file")
    if not plan.arms:
        raise ValueError('arms: none; a list such as ["plain", "com"]')
    names = [arm.name for arm in plan.arms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"arms: {twice!r} stands twice; give one of them a name")
    for k, part in enumerate(plan.prompts, start=1):
        _check_prompts(part, f"prompts[{k}]")
    backend = plan.backend
    own = {
        "checkpoint": ("diffusers",), "prediction": ("diffusers",), "half": ("diffusers",), "urls": ("webui",),
        "endpoints": ("webui",), "sha256": ("webui",), "device": KINDS[:2], "workers": KINDS[:2], "batch": KINDS[:2],
    }  # fmt: skip
    for item in fields(BackendPart):
        if getattr(backend, item.name) != item.default and backend.kind not in own.get(item.name, KINDS):
            raise ValueError(
                f"backend.{item.name}: is not of kind {backend.kind!r}; only of {' and '.join(own[item.name])}"
            )
    if backend.kind == "diffusers" and not backend.checkpoint:
        raise ValueError("backend.checkpoint: is needed for kind 'diffusers'; a .safetensors file or a folder")
    if backend.prediction not in ("", "epsilon", "v_prediction"):
        raise ValueError(f"backend.prediction: {backend.prediction!r} is not one of epsilon, v_prediction")
    if backend.kind == "webui" and bool(backend.urls) == bool(backend.endpoints):
        raise ValueError("backend: either urls or endpoints is needed for kind 'webui'")
    for url in backend.urls:
        checked_url(url)
    if backend.sha256 and not re.fullmatch("[0-9a-f]{10,64}", backend.sha256):
        raise ValueError(f"backend.sha256: {backend.sha256!r} is not allowed; 10 to 64 hex digits in lower case")
    if plan.sampling.sampler and backend.kind != "webui":
        raise ValueError(
            f"sampling.sampler: {plan.sampling.sampler!r} is not allowed; a local file has DDIM, a folder its own"
        )
    for arm in plan.arms:
        trial = trials.TRIALS.get(arm.tuned)
        if trial and backend.kind == "webui":
            raise ValueError(f"arm {arm.name!r}.tuned: {arm.tuned!r} is not drawn by a WebUI: it is no setting")
        if trial and trial.seeds > 1 and backend.kind != "embedded":
            raise ValueError(
                f"arm {arm.name!r}.tuned: {arm.tuned!r} is drawn by the embedded model alone, whose judge chooses"
            )
    if plan.maps and backend.kind == "webui":
        raise ValueError("maps: true is not allowed; a WebUI does not hand them out")


def _check_prompts(part: PromptsPart, where: str) -> None:
    if sum(map(bool, (part.set, part.file, part.split))) != 1:
        raise ValueError(f"{where}: one of set, file and split is needed")
    if not part.split:
        for item in fields(PromptsPart):
            if item.name in ("entities", "first_seed") and getattr(part, item.name) != item.default:
                raise ValueError(f"{where}.{item.name}: is of a split only")
    elif part.seeds:
        raise ValueError(f"{where}.seeds: {part.seeds} is not allowed; each picture of a split has a seed of its own")
    elif not part.limit:
        raise ValueError(f"{where}.limit: is needed with split: how many pictures")


def checked_url(url: str) -> str:
    """Without a slash at its end. Raises ValueError."""
    if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url):
        raise ValueError(
            f"urls: {url!r} is not allowed; http://HOST:PORT (user and password: --api-auth, never in the address)"
        )
    return url.rstrip("/")


def _built(cls: Any, given: Any, where: str) -> Any:
    """The dataclass of a TOML table, its values of the fields' types and in their ranges."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {given!r} is not allowed; a table")
    known: dict[str, Field[Any]] = {item.name: item for item in fields(cls)}
    dot = f"{where}." if where else ""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise ValueError(
                f"{dot}{name}: no such field{f' (did you mean {near[0]}?)' if near else ''}; "
                f"allowed are {', '.join(known)}"
            )
    return cls(**{name: _value(dot + name, known[name], value) for name, value in given.items()})


def _value(name: str, item: Field[Any], value: Any) -> Any:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    about = item.metadata

    def wrong(allowed: str) -> ValueError:
        return ValueError(f"{name}: {value!r} is not allowed; {allowed}")

    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise wrong("true or false")
    elif isinstance(default, (int, float)):
        whole = isinstance(default, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise wrong(f"a {'whole ' if whole else ''}number, {about['low']:.10g} to {about['high']:.10g}")
        if not about["low"] <= value <= about["high"]:
            raise wrong(f"{about['low']:.10g} to {about['high']:.10g}")
        return value if whole else float(value)
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise wrong("a text")
        if about.get("choices") and value not in about["choices"]:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(about['choices'])}")
    elif isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or (
            name.endswith("urls") and not all(isinstance(v, str) for v in value)
        ):
            raise wrong("a list of texts")
        return tuple(value)
    elif isinstance(default, dict) and not isinstance(value, Mapping):
        raise wrong("a table")
    return value


def settings_of(arm: ArmPart, count: int, folder: Path | None = None, steps: int = STEPS) -> Settings:
    """An arm's settings for prompts of ``count`` entities, themselves without entities, in a run of so many ``steps``.

    Raises ValueError by name.
    """
    where = f"arm {arm.name!r}"
    if arm.name == "plain":
        return Settings()
    if arm.preset:
        found = _named(where, "preset", lambda: presets.load(arm.preset, folder).with_overrides(**arm.settings))
        return Settings.from_dict({**found.as_dict(), "entities": []})
    base: dict[str, Any] = {}
    if arm.tuned:
        base = _named(where, "tuned", lambda: tuned(arm.tuned, count, steps)).as_dict()
    elif arm.loss:
        base = {"loss": arm.loss}
    given = {**base, "enabled": arm.tuned != "plain" or bool(arm.settings), **arm.settings}
    found = _named(where, "settings", lambda: Settings.from_dict(given))
    return Settings.from_dict({**found.as_dict(), "entities": []})


def jobs(plan: Plan, folder: Path) -> list[Job]:
    """Every image, those of one prompt and seed together; first all prompts with their first seeds, so that a run
    that is stopped early has seen every prompt. Raises ValueError by name."""
    own = folder / plan.preset_folder if plan.preset_folder else None
    wanted: list[tuple[int, Prompt, int, dict[str, Settings]]] = []
    seen: dict[str, str] = {}
    for k, part in enumerate(plan.prompts, start=1):
        where = f"prompts[{k}]"
        pictures = _pictures(plan, part, folder, where)
        counts = {len(prompt.entities) for _, prompt, _ in pictures}
        settings = {n: {arm.name: settings_of(arm, n, own, plan.sampling.steps) for arm in plan.arms} for n in counts}
        for prompt in dict.fromkeys(prompt for _, prompt, _ in pictures):
            if prompt.id in seen:
                raise ValueError(f"{where}: {prompt.text!r} stands in {seen[prompt.id]} already; each prompt once")
            seen[prompt.id] = prompt.origin
        wanted += [(number, prompt, seed, settings[len(prompt.entities)]) for number, prompt, seed in pictures]
    ways = {arm.name: arm.tuned for arm in plan.arms if arm.tuned in trials.TRIALS}
    return [
        Job(prompt, arm, how, seed, ways.get(arm, ""))
        for _, prompt, seed, arms in sorted(wanted, key=lambda one: one[0])
        for arm, how in arms.items()
    ]


def _pictures(plan: Plan, part: PromptsPart, folder: Path, where: str) -> list[tuple[int, Prompt, int]]:
    """What one table asks for: place in the plan's order, prompt and seed. Raises ValueError by name."""
    if part.split:
        first = None if part.first_seed < 0 else part.first_seed
        found = _named(where, "split", lambda: prompts.of_split(part.split, part.entities, part.limit, first))
        return [(number, *one) for number, one in enumerate(found)]
    listed = prompts.from_file(folder / part.file) if part.file else None
    listed = listed or _named(where, "set", lambda: prompts.built_in(part.set))
    chosen = _named(where, "limit", lambda: prompts.drawn_from(listed, part.limit))
    times = Counter(prompt.id for prompt in chosen)
    if again := next((prompt for prompt in chosen if times[prompt.id] > 1), None):
        raise ValueError(f"{where}: {again.text!r} stands in {again.origin} {times[again.id]} times; each prompt once")
    numbers = range(part.seeds or plan.seeds)
    return [(number, prompt, seed_of(plan, prompt, number)) for prompt in chosen for number in numbers]


def seed_of(plan: Plan, prompt: Prompt, number: int) -> int:
    """A prompt's seed ``number`` (from 0), in 0..2**32 - 1; it stays when other prompts come or go."""
    own = 0 if plan.same_seeds else int(hashlib.sha256(prompt.id.encode()).hexdigest()[:4], 16) * MOST_SEEDS
    return plan.first_seed + own + number


def reference() -> str:
    """Markdown tables of every field; `docs/evaluate.md` holds them."""
    lines: list[str] = []
    for part in (Plan, PromptsPart, ArmPart, Sampling, BackendPart):
        about = " ".join((part.__doc__ or "").partition(" Raises ")[0].split())
        lines += [
            about.replace("The whole file.", "At the top of the file:"),
            "",
            "| field | default | |",
            "|---|---|---|",
        ]
        for item in fields(part):
            default = item.default if item.default_factory is MISSING else None
            shown = "" if default in (None, (), "") else f"`{json.dumps(default)}`"
            low, high = item.metadata.get("low"), item.metadata.get("high")
            allowed = "" if low is None else f"; {low:.10g} to {high:.10g}"
            lines.append(f"| `{item.name}` | {shown} | {item.metadata['help']}{allowed} |")
        lines.append("")
    lines += ["Sets of prompts:", "", "| set | prompts | |", "|---|---|---|"]
    lines += [f"| `{name}` | {len(make())} | {about} |" for name, (about, make) in prompts.SETS.items()]
    return "\n".join(lines)
