"""Bodies and addresses that nobody should send, made from a seed; what they are sent to is in test_fuzz.py."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lib_decouple import presets
from lib_decouple.settings import Settings, specs
from lib_decouple.webui.api import NAMED, ORDER
from lib_decouple.webui.options import OPTIONS

ATOMS = (
    "a", "cat", "dog", "red", " ", ",", "，", "、", "(", ")", "[", "]", "{", "}", "|", ":", "::", ":1.2", ":-1",
    ":0", ":nan", ":1e999", "\\", "\\(", "\\)", '"', "'", "`", "BREAK", "AND", " AND ", "AND_PERP", "ADDCOL",
    "<lora:x:1>", "<", ">", "__x__", "#", "#1-3", "# no", "@2", "#0-99999999999", "{a|b}", "[a:b:0.5]", "[a|b]",
    "[a:b:", "9" * 400, "1e400", "\ud800", "\udfff", "\x00", "\n", "\r\n", "\t", "\u2028", "\ufeff", "\u200b",
    "\u202e", "é", "e\u0301", "猫", "ไทย", "🐱", "👩\u200d🚀", "ﬁ", "İ", "ß", "-1", "no", "without", "$", "%s", "{0}",
    "../", "%00", "NUL", "</script>", "' OR 1=1", "=1+1", "decouple", "last",
)  # fmt: skip
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.0, 0.5, 1e-320, 1e308, -0.0, 10**20, 10**400, -(10**400), float("nan"),
    float("inf"), float("-inf"), "", " ", "0", "1", "-1", "1e5", "nan", "true", "null", "[]", "{}", "{", "auto",
    "com", "iou", "all",
)  # fmt: skip
LONGEST = 4_000
"""Of a part of an address; servers refuse longer ones before anybody sees them."""
METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS")


@dataclass(frozen=True)
class Sent:
    """One request."""

    method: str
    path: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


def text(rng: random.Random, longest: int = 12) -> str:
    """Pieces of prompts, names and syntax, sometimes one of them many times."""
    if rng.random() < 0.05:
        return rng.choice(ATOMS) * rng.choice((50, 500, 3_000))
    return "".join(rng.choice(ATOMS) for _ in range(rng.randint(0, longest)))


def quoted(name: str) -> str:
    """As a part of an address, not longer than servers take."""
    whole = quote(name.encode("utf-8", "surrogatepass"), safe="")
    return whole if len(whole) <= LONGEST else whole[:LONGEST].rpartition("%")[0]


def nested(rng: random.Random, depth: int) -> Any:
    """Lists and objects within one another."""
    found: Any = rng.choice(SCALARS)
    for _ in range(depth):
        found = [found] if rng.random() < 0.7 else {text(rng, 2): found}
    return found


def value(rng: random.Random) -> Any:
    """Anything that JSON can hold, and what Python's JSON holds besides."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(SCALARS)
    if kind < 0.7:
        return text(rng)
    if kind < 0.8:
        return [value(rng) for _ in range(rng.randint(0, 4))]
    if kind < 0.9:
        return {rng.choice((*NAMED, "args", text(rng, 3))): value(rng) for _ in range(rng.randint(0, 4))}
    if kind < 0.97:
        return nested(rng, rng.randint(1, 30))
    return nested(rng, rng.choice((300, 900, 1_100)))


def likely(rng: random.Random, name: str) -> Any:
    """A value of a field's own kind, allowed or just beyond."""
    about = specs().get(name)
    default = getattr(Settings(), name, None)
    if about is None:
        return rng.choice((True, False, "fast", "Balanced", "balnced", *SCALARS))
    if about.choices:
        return rng.choice((*about.choices, "other"))
    if isinstance(default, bool):
        return rng.choice((True, False, 1, "true"))
    if isinstance(default, tuple):
        inner = (lambda: rng.randint(-1, 151)) if about.low is not None else (lambda: text(rng, 3))
        return [inner() for _ in range(rng.randint(0, 5))]
    if about.low is not None and about.high is not None:
        number = rng.choice((about.low, about.high, about.low - 1, about.high + 1, 0, 1, 2))
        return int(number) if isinstance(default, int) else number
    return rng.choice(
        ("com", "iou", "kl", "cc", "intensity", "spread", "iou + 0.5*intensity", "com *", "2*com", text(rng))
    )


def named(rng: random.Random) -> dict[str, Any]:
    """Named arguments, some of them bad."""
    names = rng.sample(NAMED, rng.randint(0, 6))
    found = {name: likely(rng, name) if rng.random() < 0.7 else value(rng) for name in names}
    if rng.random() < 0.1:
        found[text(rng, 3)] = value(rng)
    return found


def packed(body: Any) -> bytes:
    """JSON as a careless client writes it; where it nests too deeply for that, brackets."""
    try:
        return json.dumps(body).encode()
    except RecursionError:
        return b'{"x": ' + b"[" * 2_000 + b"]" * 2_000 + b"}"


def damaged(rng: random.Random, body: bytes) -> bytes:
    """Cut, doubled or with other bytes in it."""
    k = rng.randrange(len(body) + 1)
    return rng.choice(
        (
            body[:k], body + body, body[:k] + bytes([rng.randrange(256)]) + body[k:], b"", b"\xff\xfe" + body,
            body.replace(b'"', b"'"), b"[" * rng.choice((10, 2_000)) + body,
        )
    )  # fmt: skip


def arguments(rng: random.Random) -> Sent:
    """A request to draw; what is allowed is drawn, small and in one step."""
    kind = rng.random()
    if kind < 0.5:
        ours: Any = {"args": [named(rng)]}
    elif kind < 0.65:
        ours = {
            "args": [likely(rng, name) if rng.random() < 0.8 else value(rng) for name in ORDER][: rng.randint(0, 30)]
        }
    elif kind < 0.75:
        ours = {"args": [packed(named(rng)).decode() if rng.random() < 0.7 else "{" + text(rng)]}
    elif kind < 0.85:
        ours = {"args": value(rng)}
    else:
        ours = value(rng)
    name = rng.choice(("attention decoupling", "Attention Decoupling", "ATTENTION DECOUPLING"))
    body: dict[str, Any] = {
        "prompt": "a cat and a dog", "steps": 1, "width": 64, "height": 64, "sampler_name": "Euler",
        "alwayson_scripts": {name: ours},
    }  # fmt: skip
    if rng.random() < 0.1:
        body["override_settings"] = {rng.choice(tuple(OPTIONS)): value(rng)}
    if rng.random() < 0.1:
        about = rng.choice(tuple(specs().values()))
        body["infotext"] = (
            f"a cat\nSteps: 1, Decouple: {rng.choice('12x')}, {about.infotext}: {rng.choice(('1', 'x', '-3'))}"
        )
    return Sent("POST", f"/sdapi/v1/{rng.choice(('txt2img', 'img2img'))}", packed(body))


def preset(rng: random.Random) -> Sent:
    """Presets under hostile names, and imports."""
    name = rng.choice(("Fuzz", "fuzz 2", "Balanced", "fast", text(rng, 4), text(rng, 4)))
    path = "/decouple/v1/presets/" + quoted(name)
    kind = rng.random()
    if kind < 0.4:
        body: Any = {"settings": named(rng), "reason": rng.choice(("", text(rng)))}
        if rng.random() < 0.5:
            body["overwrite"] = rng.choice((True, False, value(rng)))
        return Sent("PUT", path, packed(body if rng.random() < 0.8 else value(rng)))
    if kind < 0.7:
        whole = rng.choice((presets.to_text(rng.choice(presets.BUILT_IN)), text(rng), packed(value(rng)).decode()))
        shown = whole[: rng.randrange(len(whole) + 1)] + rng.choice(("", text(rng)))
        body = {"text": rng.choice((whole, shown)), "settings": rng.choice(({}, named(rng), value(rng)))}
        return Sent("POST", "/decouple/v1/presets/import", packed(body))
    return Sent(rng.choice(("GET", "DELETE", *METHODS)), path)


def prompt(rng: random.Random) -> Sent:
    """A prompt for its tokens, and entities, typed and clicked."""
    body: dict[str, Any] = {"prompt": text(rng, 40)}
    if rng.random() < 0.5:
        body["entities"] = rng.choice((text(rng), json.dumps(text(rng, 3)), value(rng)))
    if rng.random() < 0.3:
        body["selected"] = rng.choice(([[rng.randint(-2, 12) for _ in range(3)]], value(rng)))
    return Sent("POST", "/decouple/v1/tokens", packed(body if rng.random() < 0.9 else value(rng)))


def trace(rng: random.Random, runs: tuple[str, ...]) -> Sent:
    """Runs that are there and others, their images and moments."""
    run = quoted(rng.choice((*runs, *runs, "last", text(rng, 3))))
    of = quoted(rng.choice(("", "cat", "dog", "overlap", text(rng, 3))))
    image = rng.choice(("0", "0", "1", "-1", "9" * 400, "9" * 5_000, "x", "%00", "1.5"))
    moment = rng.choice(("unguided", "first", "last", "middle", "%ff"))
    path = rng.choice(
        (
            f"trace/{run}", f"trace/{run}/csv", f"maps/{run}", f"maps/{run}/{image}/{moment}.png?of={of}",
            f"maps/{run}/{image}/{moment}.png?hires={of}", f"live?task={of}", "runs", f"runs?x={of}", "schema",
        )
    )  # fmt: skip
    return Sent(rng.choice(("GET", "GET", "GET", *METHODS)), f"/decouple/v1/{path}")


HEADERS = (
    ("Origin", "http://["), ("Origin", "null"), ("Origin", "http://" + "a" * 5_000),
    ("Sec-Fetch-Site", "cross-site"), ("X-Decouple-Caller", "short"), ("X-Decouple-Caller", "x" * 5_000),
    ("X-Decouple-Key", "x"), ("Host", "["), ("Authorization", "Basic"), ("Authorization", "Basic ????"),
    ("Authorization", "Basic gIA="), ("Authorization", "x" * 5_000), ("Content-Type", "text/plain"),
    ("Content-Type", "application/json; charset=utf-16"), ("Content-Type", "multipart/form-data"),
    ("Cookie", "access-token=x; ;=;"),
)  # fmt: skip


def requests(seed: int, number: int, runs: tuple[str, ...] = ()) -> list[Sent]:
    """``number`` requests over arguments, presets, tokens and traces; the same for the same seed."""
    found = []
    kinds: tuple[Callable[[random.Random], Sent], ...] = (
        arguments,
        arguments,
        preset,
        prompt,
        lambda rng: trace(rng, runs),
    )
    for k in range(number):
        rng = random.Random(f"{seed}/{k}")
        one = kinds[k % len(kinds)](rng)
        body, headers = one.body, [("Content-Type", "application/json")]
        if body is not None and rng.random() < 0.05:
            body = damaged(rng, body)
        if rng.random() < 0.05:
            headers.append(rng.choice(HEADERS))
        found.append(Sent(one.method, one.path, body, tuple(headers)))
    return found
