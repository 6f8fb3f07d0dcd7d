"""Many endpoints at once, on Ray: each batch of images is a Ray task, which Ray itself tries again elsewhere.

An actor, :class:`Directory`, knows the endpoints and lends each to one task at a time. A task borrows one, draws,
and gives it back; when the endpoint fails, it is left out for a while and the task ends with
:class:`Unreachable`, upon which Ray runs it anew (``retry_exceptions``). Results come to the one process that
writes them down, so that there is one row an image however often it was tried.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .backends import Backend, Drawn, Unreachable, WrongCheckpoint, opened
from .plan import BackendPart, Job, Sampling, checked_url

REFRESH = 1.0
"""Seconds between two looks at the file of endpoints, and at those that were left out."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds that a failed endpoint is left out, doubled with every failure in a row."""
LEASE_MARGIN = 60.0
"""Seconds beyond the time of a batch after which a lent endpoint is free again: its borrower died."""


AUTH_VARIABLE = "DECOUPLE_API_AUTH"


class NoEndpoint(Exception):
    """There has been none for longer than the plan's patience."""


@dataclass(frozen=True)
class BackendOpener:
    """All that a task needs to open a backend."""

    part: BackendPart
    sampling: Sampling
    folder: Path
    auth: str = field(default="", repr=False)
    """``user:password``. Ray's objects do not carry it: its workers find it in their environment."""
    maps: bool = False
    expected: str = ""
    """The run's checkpoint, as :class:`About` has it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "auth": ""}

    def open(self, name: str) -> Backend:
        """The backend of an endpoint; opened once a process."""
        own = replace(self, auth=self.auth or os.environ.get(AUTH_VARIABLE, ""))
        return _opened(own, name if self.part.kind == "webui" else "")

    def names(self) -> list[str]:
        """The endpoints as they are known now. Raises ValueError for a bad address, FileNotFoundError."""
        if self.part.kind != "webui":
            return [f"worker {k}" for k in range(1, self.part.workers + 1)]
        if not self.part.endpoints:
            return list(dict.fromkeys(map(checked_url, self.part.urls)))
        path = self.folder / self.part.endpoints
        if not path.is_file():
            raise FileNotFoundError(f"endpoints: {path} does not exist")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return list(dict.fromkeys(checked_url(line) for line in lines if line and not line.startswith("#")))


@lru_cache(maxsize=64)
def _opened(opener: BackendOpener, url: str) -> Backend:
    return opened(opener.part, opener.sampling, opener.folder, url, opener.auth, opener.maps)


@dataclass
class _Endpoint:
    state: str = "new"
    """new, free, lent, out, refused."""
    until: float = 0.0
    """When it is looked at again (out), or taken back (lent); seconds of :func:`time.monotonic`."""
    failures: int = 0
    problem: str = ""


@dataclass(frozen=True)
class FleetState:
    """What a look found. ``live``: endpoints that draw or could."""

    live: int
    messages: tuple[str, ...]
    """Who has joined, failed or returned since the last look."""


class Directory:
    """Which endpoints there are, and which of them are free. Run as a Ray actor with many threads."""

    def __init__(self, opener: BackendOpener) -> None:
        self.opener = opener
        self._known: dict[str, _Endpoint] = {}
        self._changed = threading.Condition()
        self._last_live = time.monotonic()
        self._messages: list[str] = []
        self._list_problem = ""

    def refresh(self) -> FleetState:
        """Read the list anew, look at what is new or was left out long enough."""
        now = time.monotonic()
        try:
            names, problem = self.opener.names(), ""
        except (ValueError, OSError) as error:  # a file that is being written; the next look reads it again
            names, problem = list(self._known), f"endpoints: {error}; those known go on"
        if problem and problem != self._list_problem:
            self._tell(problem)
        self._list_problem = problem
        with self._changed:
            for name in [n for n in self._known if n not in names]:
                self._tell(f"{name}: left the list")
                del self._known[name]
            for name in names:
                self._known.setdefault(name, _Endpoint())
            for name, own in self._known.items():
                if own.state == "lent" and now > own.until:
                    self._put_out(name, own, "its borrower died")
            due = [
                n for n, own in self._known.items() if own.state == "new" or (own.state == "out" and now > own.until)
            ]
        if due:
            with ThreadPoolExecutor(len(due)) as pool:
                list(pool.map(self._look, due))
        with self._changed:
            live = sum(own.state in ("free", "lent") for own in self._known.values())
            if live:
                self._last_live = time.monotonic()
            messages, self._messages = tuple(self._messages), []
            self._changed.notify_all()
        return FleetState(live, messages)

    def _look(self, name: str) -> None:
        problem, refused = "", False
        try:
            about = self.opener.open(name).about()
            if self.opener.expected and about.checkpoint and about.checkpoint != self.opener.expected:
                raise WrongCheckpoint(
                    f"{name}: has checkpoint {about.name} [{about.checkpoint}], the run has [{self.opener.expected}]"
                )
        except (Unreachable, ValueError, OSError) as error:
            problem, refused = str(error), isinstance(error, WrongCheckpoint)
        with self._changed:
            own = self._known.get(name)
            if own is None:
                return
            if problem:
                self._put_out(name, own, problem, refused)
            else:
                self._tell(f"{name}: {'joins' if own.state == 'new' else 'is back'}")
                own.state, own.failures = "free", 0

    def _put_out(self, name: str, own: _Endpoint, problem: str, refused: bool = False) -> None:
        if problem != own.problem or own.state not in ("new", "out"):
            self._tell(f"{problem}; left out" if name in problem else f"{name}: {problem}; left out")
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**own.failures)
        own.state, own.problem, own.failures = "out", problem, own.failures + 1
        own.until = time.monotonic() + (LONGEST_PAUSE if refused else pause)

    def _tell(self, text: str) -> None:
        if text not in self._messages:
            self._messages.append(text)

    def lend(self, images: int) -> str:
        """A free endpoint, waited for. Raises NoEndpoint after the plan's patience without any."""
        with self._changed:
            while True:
                for name, own in self._known.items():
                    if own.state == "free":
                        own.state = "lent"
                        own.until = time.monotonic() + images * self.opener.part.timeout + LEASE_MARGIN
                        return name
                if time.monotonic() - self._last_live > self.opener.part.patience:
                    why = "; ".join(own.problem for own in self._known.values() if own.problem)
                    raise NoEndpoint(f"none for {self.opener.part.patience:g} s{f': {why}' if why else ''}")
                self._changed.wait(REFRESH)

    def give_back(self, name: str, problem: str) -> None:
        """``problem``: why it could not draw; "" when it did."""
        with self._changed:
            own = self._known.get(name)
            if own is not None and problem:
                self._put_out(name, own, problem)
            elif own is not None:
                own.state, own.failures, own.problem = "free", 0, ""
            self._changed.notify_all()


def _draw(directory: Any, opener: BackendOpener, jobs: Sequence[Job]) -> tuple[str, list[Drawn]]:
    """The task: borrow, draw, give back."""
    import ray

    name = ray.get(directory.lend.remote(len(jobs)))
    problem = "drawing was cut short"
    try:
        drawn = opener.open(name).draw(jobs)
        wrong = next(
            (d.about for d in drawn if opener.expected and d.about.checkpoint not in ("", opener.expected)), None
        )
        if wrong:
            raise WrongCheckpoint(f"{name}: has checkpoint {wrong.name} [{wrong.checkpoint}], not [{opener.expected}]")
        problem = ""
    except Unreachable as error:
        problem = str(error)
        raise
    except ValueError:
        problem = ""  # the job's fault, not the endpoint's
        raise
    finally:
        ray.get(directory.give_back.remote(name, problem))
    return name, drawn


@dataclass
class Outcome:
    """Of one batch: its images and who drew them, or why nobody could."""

    jobs: Sequence[Job]
    endpoint: str = ""
    drawn: list[Drawn] = field(default_factory=list)
    problem: str = ""


def draw_all(
    opener: BackendOpener, batches: Sequence[Sequence[Job]], tell: Callable[[str], None]
) -> Generator[Outcome, None, None]:
    """Each batch's outcome as it comes. Raises NoEndpoint when there is none for too long, ValueError without Ray.

    No more tasks are given to Ray than there are endpoints; ``tell`` hears of those that join, fail and return.
    """
    here = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    # Ray's workers inherit these.
    given = {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "PYTHONPATH": path,
        AUTH_VARIABLE: opener.auth, **_guard(),
    }  # fmt: skip
    with _environment(given):
        try:
            import ray
        except ImportError:
            raise ValueError("backend: several endpoints need Ray; pip install ray") from None
        if ray.is_initialized():
            raise ValueError("ray: runs in this process already; the run needs its own")
        try:
            ray.init(
                address="local", num_cpus=max(1, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False,
                _node_ip_address="127.0.0.1", object_store_memory=200 * 1024 * 1024, logging_level=logging.ERROR,
            )  # fmt: skip
            tell(ports_of_ray(ray.__version__))
            yield from _drawn(ray, opener, batches, tell)
        finally:
            ray.shutdown()


@lru_cache(maxsize=1)
def _guard() -> dict[str, str]:
    """What makes Ray (2.52 on) ask for a token. It reads that once a process, when it is imported."""
    return {} if "ray" in sys.modules else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def ports_of_ray(version: str) -> str:
    """Who may reach the Ray that a run starts, in a sentence."""
    start = f"Ray {version} runs beside this run and listens on ports of this machine until it ends"
    if find_spec("ray._private.authentication") and os.environ.get("RAY_AUTH_MODE") == "token":
        return f"{start}; it answers only who has the token of this run."
    return (
        f"{start}. It asks nobody for a token: whoever reaches them, such as this machine's other users, can run code."
    )


@contextmanager
def _environment(given: Mapping[str, str]) -> Iterator[None]:
    """These variables, and afterwards those from before."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _drawn(
    ray: Any, opener: BackendOpener, batches: Sequence[Sequence[Job]], tell: Callable[[str], None]
) -> Generator[Outcome, None, None]:
    from ray.exceptions import RayError, RayTaskError

    directory = ray.remote(num_cpus=0, max_concurrency=256)(Directory).remote(opener)
    task = ray.remote(num_cpus=0, max_retries=opener.part.retries, retry_exceptions=[Unreachable])(_draw)
    left = iter(batches)
    running: dict[Any, Sequence[Job]] = {}
    state = ray.get(directory.refresh.remote())
    looking, looked = None, time.monotonic()
    more = True
    while more or running:
        for line in state.messages:
            tell(line)
        while more and len(running) < max(1, state.live):
            jobs = next(left, None)
            if jobs is None:
                more = False
            else:
                running[task.remote(directory, opener, jobs)] = jobs
        if looking is None and time.monotonic() - looked > REFRESH:
            looking = directory.refresh.remote()
        state = FleetState(state.live, ())
        waited = [*running, *([looking] if looking is not None else [])]
        for ready in ray.wait(waited, timeout=REFRESH)[0] if waited else ():
            if ready is looking:
                state, looking, looked = ray.get(ready), None, time.monotonic()
                continue
            jobs = running.pop(ready)
            try:
                name, drawn = ray.get(ready)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, RayTaskError):
                    cause = cause.cause
                if isinstance(cause, NoEndpoint):
                    raise cause from None
                yield Outcome(jobs, problem=str(cause))
            except RayError as error:
                yield Outcome(jobs, problem=f"Ray: {error}")
            else:
                yield Outcome(jobs, name, drawn)
