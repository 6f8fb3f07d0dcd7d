"""``evaluate run``: draw a plan's images, each once, with a manifest; a stop at any moment costs one batch at most.

An image is written whole before its row is; what the rows tell is there, and is not drawn again.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shlex
import sqlite3
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...settings import Settings
from . import pool
from .backends import About, Backend, Drawn, Unreachable
from .backends.base import wrong_checkpoint
from .files import PART, write_durably, write_whole
from .fleet import AUTH_VARIABLE, BackendOpener, NoEndpoint, Outcome, draw_all
from .plan import Job, Plan, read
from .statistics import detectable
from .store import IMPORTED, Row, Store

GUIDED_COST = 1.5
"""Of a guided pass in steps, for the estimate: a step is two rows forward; a pass one forward and its gradient."""
IMAGES, LOCK = "images", ".lock"


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("run", help="draw the images of a plan", description=__doc__)
    parser.add_argument("plan", type=Path, metavar="PLAN.toml", help="the plan; docs/evaluate.md is its reference")
    parser.add_argument("--out", type=Path, help="folder of the run; out/evaluate/<plan's name> when left out")
    parser.add_argument("--endpoints", type=Path, help="file of WebUIs, one a line, read again while it runs")
    parser.add_argument(
        "--api-auth", default=os.environ.get(AUTH_VARIABLE, ""), metavar="USER:PASSWORD",
        help="as the WebUIs were started with; else the environment's DECOUPLE_API_AUTH",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="tell what would be drawn, and end")
    parser.add_argument("--redo", action="store_true", help="draw again what the plan has changed")
    parser.set_defaults(run=run)


@dataclass
class Work:
    """What a run's folder has of a plan. Each image of the plan is in one of reused, fresh, lost and redone."""

    reused: list[Job] = field(default_factory=list)
    fresh: list[Job] = field(default_factory=list)
    """Never drawn."""
    lost: list[Job] = field(default_factory=list)
    """Drawn, but the file is gone."""
    redone: list[tuple[Job, str]] = field(default_factory=list)
    """Drawn otherwise, and what differs."""
    back: list[int] = field(default_factory=list)
    """Ids of reused images that an earlier plan did without."""
    aside: list[int] = field(default_factory=list)
    """Ids of images that this plan does without."""
    stale: list[int] = field(default_factory=list)
    """Ids of images to be redone; none of the run until they are."""

    def left(self, jobs: Sequence[Job]) -> list[Job]:
        """What is to be drawn, in the plan's order."""
        done = {job.key for job in self.reused}
        return [job for job in jobs if job.key not in done]


def run(arguments: argparse.Namespace) -> int:
    """Draw what is not drawn yet; 1 when some could not be."""
    plan, jobs = read(arguments.plan)
    words = ["python", "-m", "lib_decouple", "evaluate", "run", str(arguments.plan)]
    words += ["--out", str(arguments.out)] if arguments.out else []
    invocation = Invocation(arguments.plan.read_text(encoding="utf-8"), shlex.join(words), arguments.redo)
    folder = arguments.out or Path("out/evaluate") / arguments.plan.stem
    return carry_out(plan, jobs, opener_of(plan, arguments), folder, invocation, arguments.dry_run)


@dataclass(frozen=True)
class Invocation:
    """What a run is told besides its plan."""

    text: str
    """The plan's."""
    command: str
    """That the report names."""
    redo: bool = False
    """Draw again what the plan has changed."""
    file: Path | None = None
    """Where the text is to stand once the run takes it up."""


def carry_out(
    plan: Plan, jobs: Sequence[Job], opener: BackendOpener, folder: Path, invocation: Invocation, dry_run: bool = False
) -> int:
    """Draw what is not drawn yet into ``folder``; 1 when some could not be. Raises ValueError when it can't go on."""
    names, first, about = survey(opener)
    opener = replace(opener, expected=about.checkpoint)
    folder.mkdir(parents=True, exist_ok=True)  # else a name with a dot is taken for the SQLite file's
    store = Store(folder, create=True)
    with locked(folder):
        for part in folder.glob(f"{IMAGES}/*/*{PART}"):
            part.unlink()
        work = compare(store, jobs, plan, about)
        check_prompts(first, jobs)
        left = work.left(jobs)
        print(in_words(plan, jobs, work, len(names)), flush=True)
        if left:
            print(f"About {duration(estimate(store, left, plan, first) / max(1, len(names)))}.", flush=True)
        if dry_run:
            return 0
        if work.redone and not invocation.redo:
            raise ValueError(
                f"plan: {len(work.redone)} images of {folder} were drawn otherwise and would be replaced, with their "
                "scores; --redo does it, another --out keeps both"
            )
        store.set_status(work.back, "done")
        store.set_status([*work.aside, *work.stale], "aside")
        write_notes(store, plan, invocation, about)
        if invocation.file:
            write_whole(invocation.file, invocation.text)
        missing = draw(
            store, plan, opener, left, about, None if opener.part.endpoints or len(opener.names()) > 1 else first
        )
    for line in missing[:20]:
        print(line, file=sys.stderr)
    print(f"{len(jobs) - len(missing)} of {len(jobs)} images are in {folder}")
    return 1 if missing else 0


def opener_of(plan: Plan, arguments: argparse.Namespace) -> BackendOpener:
    """The plan's backend, with what the command line says. Raises ValueError."""
    part = plan.backend
    if arguments.endpoints:
        if part.kind != "webui":
            raise ValueError(f"endpoints: are of kind 'webui'; the plan's backend is {part.kind!r}")
        part = replace(part, urls=(), endpoints=str(arguments.endpoints.resolve()))
    if arguments.api_auth and ":" not in arguments.api_auth:
        raise ValueError("api-auth: USER:PASSWORD is needed")
    return BackendOpener(part, plan.sampling, arguments.plan.resolve().parent, arguments.api_auth, plan.maps)


def survey(opener: BackendOpener) -> tuple[list[str], Backend, About]:
    """Endpoints that answer, one of them, and what they have. Raises ValueError when none does or they differ."""
    there: list[tuple[str, Backend, About]] = []
    for name in opener.names():
        try:
            backend = opener.open(name)
            there.append((name, backend, backend.about()))
        except Unreachable as error:
            if len(opener.names()) == 1:
                raise ValueError(str(error)) from None
            print(f"left out for now: {error}", file=sys.stderr)
    if not there:
        raise ValueError("endpoints: none of them answers")
    checkpoints = {about.checkpoint for _, _, about in there}
    if len(checkpoints) > 1:
        own = "; ".join(f"{name} has {about.name} [{about.checkpoint}]" for name, _, about in there)
        raise ValueError(f"checkpoint: the endpoints have several: {own}. One run, one checkpoint; nothing was drawn")
    if not (there[0][2].checkpoint or opener.part.kind != "webui"):
        print("warning: the WebUI tells no hash of its checkpoint; a change of it will not be noticed", file=sys.stderr)
    if len({about.host for _, _, about in there}) > 1:
        print("warning: A1111 and Forge together: the same seed may look different in each", file=sys.stderr)
    return [name for name, _, _ in there], there[0][1], there[0][2]


def compare(store: Store, jobs: Sequence[Job], plan: Plan, about: About) -> Work:
    """What of the plan is drawn already. Raises ValueError for an image that is there and can't be read."""
    rows = {(row["prompt_id"], row["arm"], row["seed"]): row for s in ("done", "aside") for row in store.images(s)}
    work = Work()
    for job in jobs:
        row = rows.pop(job.key, None)
        if row is None:
            work.fresh.append(job)
        elif row["recipe"] != job.recipe(plan.sampling, plan.backend, about.checkpoint):
            work.redone.append((job, difference(row, job, plan, about)))
            work.stale.append(row["id"])
        elif not (store.folder / row["file"]).exists():
            work.lost.append(job)
        else:
            check_readable(store.folder / row["file"])
            work.reused.append(job)
            if row["status"] == "aside":
                work.back.append(row["id"])
    work.aside = [row["id"] for row in rows.values() if row["status"] == "done" and row["recipe"] != IMPORTED]
    return work


def check_readable(path: Path) -> None:
    """Raises ValueError."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"image: {path} cannot be read: {error}. Nothing was changed; put it back, or remove it to have it drawn "
            "again"
        ) from None


def difference(row: Row, job: Job, plan: Plan, about: About) -> str:
    """In words, why a drawn image is not what the plan wants."""
    if row["recipe"] == IMPORTED:
        return "it was imported"
    own: dict[str, Any] = {**(row["settings"] or {}), **(row["sampling"] or {}), "checkpoint": row["checkpoint"]}
    new = {**job.settings.as_dict(), **asdict(plan.sampling), "checkpoint": about.checkpoint}
    own["entities"], new["entities"] = row["entities"], list(job.prompt.entities)
    found = [f"{name} {own.get(name)!r} is {new[name]!r} now" for name in new if own.get(name) != new[name]]
    return ", ".join(found) or "it was drawn by another backend"


def check_prompts(backend: Backend, jobs: Sequence[Job]) -> None:
    """Raises ValueError for a prompt that does not name its entities; before anything is drawn."""
    for prompt in dict.fromkeys(job.prompt for job in jobs):
        try:
            backend.tokens(prompt)
        except Unreachable as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            raise ValueError(f"prompt {prompt.text!r} of {prompt.origin}: {error}") from None


def in_words(plan: Plan, jobs: Sequence[Job], work: Work, endpoints: int) -> str:
    """The run in words, before anything is drawn."""
    prompts = dict.fromkeys(job.prompt for job in jobs)
    lines = [f"{len(jobs)} images: {len(prompts)} prompts, {len(plan.arms)} arms; {endpoints} drawing."]
    for count in sorted({len(prompt.entities) for prompt in prompts}):
        own = [job for job in jobs if len(job.prompt.entities) == count and job.arm == plan.arms[0].name]
        number = len({job.prompt for job in own})
        if len(plan.arms) > 1 and len(own) > 1:
            can = detectable(number, len(own) / number, len(plan.arms) - 1, plan.expected_missing)
            lines.append(f"{count} entit{'y' if count == 1 else 'ies'}: {can.rstrip('.')}.")
    for jobs_of, what in (
        (work.reused, "are drawn and reused"), (work.fresh, "are to be drawn"),
        (work.lost, "were drawn, but their files are gone: drawn again"),
        (work.redone, "were drawn otherwise and are to be redone"),
        (work.aside, "are not in this plan any more: kept, and left out of the report"),
    ):  # fmt: skip
        if jobs_of:
            lines.append(f"{len(jobs_of)} {what}.")
    for why, number in Counter(why for _, why in work.redone).most_common(5):
        lines.append(f"  {number} x {why}")
    return "\n".join(lines)


def estimate(store: Store, left: Sequence[Job], plan: Plan, backend: Backend) -> float:
    """Seconds for all of them on one endpoint: as before in this run, or from a short try. Raises ValueError."""
    known: dict[tuple[str, int], list[float]] = {}
    for row in store.images():
        if row["seconds"] is not None:
            known.setdefault((row["arm"], row["count"]), []).append(row["seconds"])
    step, total = None, 0.0
    for job in left:
        own = known.get((job.arm, len(job.prompt.entities)))
        if own:
            total += sum(own) / len(own)
            continue
        if step is None:
            try:
                step = backend.seconds_a_step()
            except Unreachable as error:
                raise ValueError(str(error)) from None
        total += step * (plan.sampling.steps + GUIDED_COST * guided_passes(job.settings, plan.sampling.steps))
    return total


def guided_passes(settings: Settings, steps: int) -> int:
    """At most so many of one image; stopping early and refining less make fewer."""
    if not settings.enabled:
        return 0
    settings = settings.fixed()  # what is left to a profile is known when the model is
    guided = range(settings.start, min(steps, settings.steps or steps // 2), settings.every)
    return len(guided) + sum(settings.refine_rounds for k in settings.refine_steps if k in guided)


def duration(seconds: float) -> str:
    """``1 h 20 min``."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """At most ``size`` each, of one arm and its settings, near the plan's order: a stopped run still has pairs."""
    open_ones: dict[tuple[str, Settings], list[Job]] = {}
    for job in jobs:
        own = open_ones.setdefault((job.arm, job.settings), [])
        own.append(job)
        if len(own) == size:
            yield open_ones.pop((job.arm, job.settings))
    yield from open_ones.values()


def alone(backend: Backend, opener: BackendOpener, groups: Sequence[Sequence[Job]]) -> Generator[Outcome, None, None]:
    """Each batch on the one endpoint, in this process. Raises ValueError when that is gone."""
    name = getattr(backend, "url", "")
    for group in groups:
        try:
            found = backend.draw(group)
        except Unreachable as error:
            raise ValueError(f"{error}. What is drawn is kept; the same command goes on") from None
        except ValueError as error:
            yield Outcome(group, problem=str(error))
            continue
        if problem := wrong_checkpoint(found, opener.expected, name or "the backend"):
            raise ValueError(problem)
        yield Outcome(group, name, found)


def draw(
    store: Store, plan: Plan, opener: BackendOpener, left: Sequence[Job], about: About, single: Backend | None
) -> list[str]:
    """Draw and keep; gives a line for each image that nobody could draw. Raises ValueError when it can't go on."""
    groups = list(batches(left, 1 if opener.part.kind == "webui" else opener.part.batch))
    failed: list[str] = []
    aside = 0
    with tqdm(total=len(left), unit="image", disable=not left, smoothing=0.05) as bar:
        if single:
            found = alone(single, opener, groups)
        elif opener.part.kind != "webui":
            found = pool.draw_all(opener, groups)
        else:
            found = draw_all(opener, groups, bar.write)
        try:
            # Closed at once when it can't go on, so that Ray ends, too.
            with closing(found) as outcomes:
                for outcome in outcomes if groups else ():
                    for job, one in zip(outcome.jobs, outcome.drawn):
                        recipe = job.recipe(plan.sampling, plan.backend, about.checkpoint)
                        keep(store, job, one, plan, recipe, outcome.endpoint)
                        aside += bool(one.stood_aside)
                    if outcome.problem:
                        failed += [
                            f"{j.prompt.text!r}, {j.arm}, seed {j.seed}: {outcome.problem}" for j in outcome.jobs
                        ]
                    bar.update(len(outcome.jobs))
        except NoEndpoint as error:
            raise ValueError(f"endpoints: {error}. What is drawn is kept; the same command goes on") from None
    if aside:
        print(f"guidance stood aside in {aside} images, which count as drawn; the manifest says why", file=sys.stderr)
    return failed


def keep(store: Store, job: Job, drawn: Drawn, plan: Plan, recipe: str, endpoint: str) -> None:
    """The image, then its maps, then its row; then, where it replaces another, that one's file goes.

    Raises ValueError where the folder can't be written, with what was there as it was.
    """
    try:
        _keep(store, job, drawn, plan, recipe, endpoint)
    except (OSError, sqlite3.OperationalError) as error:
        raise ValueError(
            f"out: {store.folder} cannot be written: {error}. What is drawn is kept, nothing was overwritten; "
            "the same command goes on"
        ) from error


def _keep(store: Store, job: Job, drawn: Drawn, plan: Plan, recipe: str, endpoint: str) -> None:
    before = store.file_of(*job.key)
    file = f"{IMAGES}/{job.prompt.id}/{job.seed}-{recipe}.png"
    write_durably(store.folder / file, drawn.image)
    if drawn.maps is not None:
        data = io.BytesIO()
        np.savez_compressed(data, maps=drawn.maps.astype(np.float16))
        write_durably((store.folder / file).with_suffix(".maps.npz"), data.getvalue())
    store.put_image(
        {
            "prompt_id": job.prompt.id, "prompt": job.prompt.text, "prompt_set": job.prompt.origin,
            "entities": list(job.prompt.entities), "count": len(job.prompt.entities), "arm": job.arm,
            "seed": job.seed, "file": file, "settings": job.settings.as_dict(), "sampling": asdict(plan.sampling),
            "tokens": {name: places for name, places in (drawn.tokens or {}).items() if name in drawn.entities}
            if drawn.tokens is not None else None,
            "host": drawn.about.host, "version": drawn.about.version, "endpoint": endpoint,
            "checkpoint": drawn.about.checkpoint, "seconds": drawn.seconds, "passes": drawn.passes,
            "trace": drawn.trace, "stood_aside": drawn.stood_aside, "recipe": recipe,
        }
    )  # fmt: skip
    if before and before != file:
        for old in (store.folder / before, (store.folder / before).with_suffix(".maps.npz")):
            old.unlink(missing_ok=True)


def write_notes(store: Store, plan: Plan, invocation: Invocation, about: About) -> None:
    """What the report tells of the run; without any password."""
    store.put_plan(invocation.text)
    store.put_note("plan", {**asdict(plan), "steps": plan.sampling.steps, "cfg": plan.sampling.cfg})
    store.put_note("commands", [invocation.command])
    store.put_note(
        "environment",
        {"host": about.host, "version": about.version, "checkpoint": f"{about.name} [{about.checkpoint}]",
         "device": plan.backend.device if plan.backend.kind != "webui" else "the WebUI's",
         "Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"},
    )  # fmt: skip


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else draws into this folder meanwhile; the system lets go when the process ends, however it does.

    Raises ValueError when somebody does.
    """
    with closing(sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise ValueError(f"out: another run draws into {folder}") from None
        yield
