"""``evaluate rate``: a local page where people compare pictures pair by pair, not knowing which arm drew which.

Starlette and uvicorn rather than gradio: gradio loads fonts and sends analytics unless told not to, names its served
files after those on the disk, and knows neither keys nor per-rater order; here the page is three files of our own
and a policy that lets the browser ask no other machine. What the page gets of a picture is its pixels under an id
that says nothing. Sides and order are drawn for each rater from the run's seed and the rater's name, so a rater who
comes back goes on where they stopped. A name belongs to the browser that gave it first, by a secret in a cookie.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import io
import ipaddress
import itertools
import os
import random
import secrets
import socket
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from PIL import Image

from .store import Row, Store

PAGE = Path(__file__).with_name("rate_page")
ACTIONS = ("state", "answer", "undo")
CHOICES = ("left", "right", "both", "neither")
COOKIE, OWN_COOKIE = "decouple_rate", "decouple_rater"
"""The page's token; a browser's own secret, by which its names are its own."""
YEAR = 365 * 24 * 3600
SHORTEST_TOKEN = 16
LONGEST_NAME = 40
LONGEST_BODY = 20_000
TOKEN_VARIABLE = "DECOUPLE_RATE_TOKEN"
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def add_parser(commands: Any) -> None:
    """Describe the command's options."""
    parser = commands.add_parser("rate", help="blind pairwise comparison by people", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--arms", help="by comma; the first is compared with each other one (the plan's first, else plain; then all)"
    )
    parser.add_argument("--n", type=int, default=0, help="how many pairs, the same for every rater (0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of order, sides and, with --n, the choice of pairs (0)")
    parser.add_argument(
        "--rater", help="your name, so that the page does not ask; frees it, where a lost browser has it"
    )
    parser.add_argument("--no-ticks", action="store_true", help="do not ask which of the named things are seen")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; beyond loopback needs a token")
    parser.add_argument("--port", type=int, default=7880, help="0 takes a free one (7880)")
    parser.add_argument(
        "--token",
        nargs="?",
        const="",
        help=f"asked of every visitor; without a value a new one is made. {TOKEN_VARIABLE} sets it unseen by others",
    )
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt and seed."""

    images: tuple[Row, Row]
    """Of the arm compared with, and of the other."""

    @property
    def ids(self) -> tuple[int, int]:
        """As the store knows them."""
        return self.images[0]["id"], self.images[1]["id"]


@dataclass(frozen=True)
class ShownPair:
    """A pair as one rater sees it."""

    key: str
    pair: Pair
    sides: tuple[Row, Row]
    """Left and right."""
    keys: tuple[str, str]
    """What the page calls the pictures."""


def clean_name(name: Any) -> str:
    """A rater's name as it is stored. Raises ValueError for an empty, long or unprintable one."""
    found = unicodedata.normalize("NFC", name).strip() if isinstance(name, str) else ""
    if not found or len(found) > LONGEST_NAME or not found.isprintable():
        raise ValueError(f"rater: a name of 1 to {LONGEST_NAME} printable characters is needed")
    return found


def arms_of(store: Store, text: str | None) -> list[str]:
    """The arms to compare, the one compared with first. Raises ValueError by name."""
    drawn = list(dict.fromkeys(row["arm"] for row in store.images()))
    base = store.base_arm()
    wanted = [part.strip() for part in text.split(",")] if text else sorted(drawn, key=lambda arm: arm != base)
    for arm in wanted:
        if arm not in drawn:
            raise ValueError(f"arms: {arm!r} is not one of {', '.join(drawn) or 'none, since nothing is drawn'}")
        if arm in CHOICES:
            raise ValueError(f"arms: {arm!r} is also an answer, so its ratings could not be told apart; rename the arm")
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise ValueError(f"arms: {', '.join(wanted) or 'none'}; two different ones at least")
    return wanted


class Deck:
    """All pairs of a run that are to be rated, and the order in which each rater sees them.

    ``n`` pairs (0: all) are chosen from ``seed``, evenly over prompts, the same for every rater. Raises ValueError
    where there is no pair.
    """

    def __init__(self, store: Store, arms: Sequence[str], n: int = 0, seed: int = 0) -> None:
        self.store, self.seed = store, seed
        self._secret = self._kept_secret()
        self._lock = threading.Lock()
        self._orders: dict[str, list[ShownPair]] = {}
        self._pictures: dict[str, Row] = {}
        cases: dict[tuple[str, int], dict[str, Row]] = {}
        for row in store.images():
            cases.setdefault((row["prompt_id"], row["seed"]), {})[row["arm"]] = row
        rivals = arms[1:]
        pairs = [
            Pair((own[arms[0]], own[arm])) for own in cases.values() for arm in rivals if arms[0] in own and arm in own
        ]
        if not pairs:
            raise ValueError(f"arms: no prompt and seed is drawn in {arms[0]!r} and another of {', '.join(rivals)}")
        if n < 0:
            raise ValueError(f"n: {n} is not allowed; 0 (all) or more")
        self.pairs = _evenly(pairs, random.Random(f"{seed}"))[:n] if n else pairs

    def _kept_secret(self) -> bytes:
        """Made once for a run: ids outlive a restart, and cannot be computed from what a rater may know."""
        note = self.store.notes().get("rate") or {"secret": secrets.token_hex(32)}
        self.store.put_note("rate", note)
        return bytes.fromhex(note["secret"])

    def claim(self, rater: str, secret: str) -> None:
        """A name is whose ``secret`` came with it first. Raises ValueError for somebody else's."""
        given = hashlib.sha256(secret.encode()).hexdigest()
        with self._lock:
            note = self.store.notes()["rate"]
            owners = note.setdefault("raters", {})
            rated = any(row["rater"] == rater for row in self.store.ratings())
            owner = owners.get(rater, "" if rated else None)  # "": rated when names were nobody's
            if owner is None:
                owner = owners[rater] = given
                self.store.put_note("rate", note)
            if not hmac.compare_digest(owner, given):
                raise ValueError(
                    f"rater: {rater!r} rates in another browser; go on there, choose another name, or have whoever "
                    "runs the page start it with --rater and this name"
                )

    def release(self, rater: str) -> None:
        """The name is whose browser gives it next."""
        note = self.store.notes()["rate"]
        note.setdefault("raters", {})[rater] = None
        self.store.put_note("rate", note)

    def _key(self, *parts: Any) -> str:
        return hmac.new(self._secret, repr(parts).encode(), hashlib.sha256).hexdigest()[:32]

    def order(self, rater: str) -> list[ShownPair]:
        """A rater's pairs. No picture comes twice before every case has come once."""
        with self._lock:
            if rater not in self._orders:
                rng = random.Random(f"{self.seed}/{rater}")
                shown = [self._show(pair, rater, rng.random() < 0.5) for pair in self.pairs]
                self._orders[rater] = _rounds(shown, rng)
                self._pictures |= {k: row for one in shown for k, row in zip(one.keys, one.sides)}
            return self._orders[rater]

    def _show(self, pair: Pair, rater: str, swap: bool) -> ShownPair:
        sides = pair.images[::-1] if swap else pair.images
        # A picture that is in several pairs has another id in each: ids that come again would tell the arm.
        keys = self._key(rater, pair.ids, "left"), self._key(rater, pair.ids, "right")
        return ShownPair(self._key(rater, pair.ids), pair, sides, keys)

    def rated(self, rater: str) -> list[tuple[int, ...]]:
        """Pairs that this rater has answered, the last one last."""
        own = {tuple(sorted(pair.ids)) for pair in self.pairs}
        found = [tuple(row["pair"]) for row in self.store.ratings() if row["rater"] == rater]
        return [pair for pair in found if pair in own]

    def state(self, rater: str) -> dict[str, Any]:
        """What the page shows: progress and the next pair, or null when all are done."""
        done = set(self.rated(rater))
        found: dict[str, Any] = {"done": len(done), "total": len(self.pairs), "pair": None}
        for shown in self.order(rater):
            if tuple(sorted(shown.pair.ids)) not in done:
                row = shown.sides[0]
                found["pair"] = {
                    "key": shown.key,
                    "prompt": row["prompt"],
                    "entities": row["entities"],
                    "left": shown.keys[0],
                    "right": shown.keys[1],
                }
                break
        return found

    def answer(self, rater: str, key: Any, choice: Any, ticks: Any) -> None:
        """Store a rater's word. ``ticks``: "left" and "right" -> entities seen; None where they were not asked.

        Raises ValueError by name.
        """
        shown = next((one for one in self.order(rater) if one.key == key), None)
        if shown is None:
            raise ValueError("pair: no such pair for this rater; reload the page")
        if choice not in CHOICES:
            raise ValueError(f"choice: {choice!r} is not one of {', '.join(CHOICES)}")
        seen: dict[str, list[str]] = {}
        if ticks is not None:
            if not isinstance(ticks, Mapping) or set(ticks) != {"left", "right"}:
                raise ValueError("ticks: left and right are needed")
            for side, row in zip(("left", "right"), shown.sides):
                if not isinstance(ticks[side], list) or any(name not in row["entities"] for name in ticks[side]):
                    raise ValueError(f"ticks: {side} must be a list of the named things")
                seen[row["arm"]] = [name for name in row["entities"] if name in ticks[side]]
        arm = {"left": shown.sides[0]["arm"], "right": shown.sides[1]["arm"]}.get(choice, choice)
        self.store.put_rating(shown.pair.ids, rater, arm, seen)

    def undo(self, rater: str) -> bool:
        """Take the last answer back; False where there is none."""
        done = self.rated(rater)
        return bool(done) and self.store.remove_rating((done[-1][0], done[-1][1]), rater)

    def picture(self, key: str) -> bytes | None:
        """PNG of the pixels and nothing else; None for an unknown id. Raises OSError where it cannot be read."""
        row = self._pictures.get(key)
        if row is None:
            return None
        with Image.open(self.store.folder / row["file"]) as image:
            pixels = image.convert("RGB")
        bare = Image.frombytes("RGB", pixels.size, pixels.tobytes())
        data = io.BytesIO()
        bare.save(data, "PNG")
        return data.getvalue()


def _evenly(pairs: Sequence[Pair], rng: random.Random) -> list[Pair]:
    """Shuffled, one of each prompt and arm in turn."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in rng.sample(pairs, len(pairs)):
        groups.setdefault((pair.images[1]["prompt_id"], pair.images[1]["arm"]), []).append(pair)
    return [pair for turn in itertools.zip_longest(*groups.values()) for pair in turn if pair is not None]


def _rounds(shown: Sequence[ShownPair], rng: random.Random) -> list[ShownPair]:
    """Shuffled, each prompt and seed once a round."""
    groups: dict[tuple[str, int], list[ShownPair]] = {}
    for one in rng.sample(shown, len(shown)):
        groups.setdefault((one.sides[0]["prompt_id"], one.sides[0]["seed"]), []).append(one)
    rounds = ([one for one in turn if one is not None] for turn in itertools.zip_longest(*groups.values()))
    return [one for turn in rounds for one in rng.sample(turn, len(turn))]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(url: str) -> SplitResult:
    """As urlsplit; empty for what is no URL, such as ``http://[``."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def checked_token(host: str, token: str | None) -> str | None:
    """The token to ask for; a new one for "". Raises ValueError for a host beyond loopback without, or a short one."""
    token = os.environ.get(TOKEN_VARIABLE) if token is None else token
    if token == "":
        return secrets.token_urlsafe(24)
    if token is None:
        if not is_loopback(host):
            raise ValueError(f"host: {host} lets other machines in, so --token is needed (without a value one is made)")
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not all(c.isalnum() or c in "-._~" for c in token):
        raise ValueError(f"token: {SHORTEST_TOKEN} letters, digits or -._~ at least; --token alone makes one")
    return token


def make_app(deck: Deck, *, token: str | None = None, rater: str | None = None, ticks: bool = True) -> Any:
    """The page as a Starlette application. Raises ValueError where Starlette is not installed."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.requests import Request
        from starlette.responses import JSONResponse, RedirectResponse, Response
        from starlette.routing import Mount, Route
        from starlette.staticfiles import StaticFiles
    except ImportError:
        raise ValueError("rate: needs the package starlette; `pip install -r requirements-evaluate.txt`") from None

    def refusal(request: Any) -> Any:
        """None for a visitor who may come in."""
        host = request.headers.get("host", "")
        if token is None and not is_loopback(_split(f"//{host}").hostname or ""):
            # Another site's name that was made to point here would make its scripts this page's own.
            return Response("this page answers on this machine's own address only\n", 403)
        origin = request.headers.get("origin")
        if request.method != "GET" and origin is not None and _split(origin).netloc != host:
            return Response("refused: sent by another site's page\n", 403)
        if token is not None:
            given = request.query_params.get("token")
            shown = given if given is not None else request.cookies.get(COOKIE, "")
            if not hmac.compare_digest(shown.encode(), token.encode()):
                return Response("a token is needed: open the address that `evaluate rate` printed\n", 401)
            if given is not None:  # out of the address line and the history
                found = RedirectResponse(request.url.path, 303)
                found.set_cookie(COOKIE, token, httponly=True, samesite="lax")
                return found
        return None

    async def guard(request: Request, follow: Any) -> Any:
        response = refusal(request) or await follow(request)
        response.headers.update(HEADERS)
        return response

    def config(request: Request) -> Any:
        return JSONResponse({"rater": rater, "ticks": ticks, "longest": LONGEST_NAME})

    def picture(request: Request) -> Any:
        try:
            data = deck.picture(request.path_params["key"])
        except OSError:  # its words hold the file's name
            return Response("this picture cannot be read\n", 500)
        return Response("no such picture\n", 404) if data is None else Response(data, media_type="image/png")

    def act(action: str, body: Mapping[str, Any], secret: str) -> dict[str, Any]:
        name = clean_name(body.get("rater"))
        deck.claim(name, secret)
        if action == "/answer":
            deck.answer(name, body.get("pair"), body.get("choice"), body.get("ticks") if ticks else None)
        elif action == "/undo":
            deck.undo(name)
        return deck.state(name)

    async def step(request: Request) -> Any:
        secret = request.cookies.get(OWN_COOKIE, "")
        if len(secret) < SHORTEST_TOKEN:
            secret = secrets.token_urlsafe(24)
        try:
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                raise ValueError("body: application/json is needed")
            if int(request.headers.get("content-length") or LONGEST_BODY + 1) > LONGEST_BODY:
                raise ValueError(f"body: {LONGEST_BODY} bytes at most, with their number")
            body = await request.json()
            if not isinstance(body, dict):
                raise ValueError("body: an object is needed")
            found = JSONResponse(await run_in_threadpool(act, request.url.path, body, secret))
        except (ValueError, RecursionError) as error:
            found = JSONResponse({"error": str(error)}, 400)
        found.set_cookie(OWN_COOKIE, secret, max_age=YEAR, httponly=True, samesite="strict")
        return found

    return Starlette(
        routes=[
            Route("/config", config),
            Route("/picture/{key}", picture),
            *[Route(f"/{action}", step, methods=["POST"]) for action in ACTIONS],
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError where the address or port cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port: {port} is not allowed; 0 to 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"host: cannot listen at {host}, port {port}: {error.strerror or error}") from None


def make_server(app: Any) -> Any:
    """A uvicorn server of the application; its ``run(sockets=[...])`` blocks. Raises ValueError without uvicorn."""
    try:
        import uvicorn
    except ImportError:
        raise ValueError("rate: needs the package uvicorn; `pip install -r requirements-evaluate.txt`") from None
    # No log of addresses: they may hold the token.
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none"))


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    token = checked_token(arguments.host, arguments.token)
    rater = None if arguments.rater is None else clean_name(arguments.rater)
    store = Store(arguments.folder)
    deck = Deck(store, arms_of(store, arguments.arms), arguments.n, arguments.seed)
    if rater is not None:
        deck.release(rater)
    app = make_app(deck, token=token, rater=rater, ticks=not arguments.no_ticks)
    with bind(arguments.host, arguments.port) as listening:
        server = make_server(app)
        shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{shown}:{listening.getsockname()[1]}/{f'?token={token}' if token else ''}"
        print(f"{len(deck.pairs)} pairs to rate at {address} (Ctrl-C ends it; nothing is lost)", flush=True)
        server.run(sockets=[listening])
    return 0
