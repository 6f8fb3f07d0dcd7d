"""Who asks: whom the host lets in, and whose runs are whose.

A run is found by its id, which nobody can guess and only the answer to whoever drew it tells. Without it a caller
finds the runs of their own: of the secret that they send in the header :data:`HEADER`, else of the user of
``--api-auth``, else of whoever is logged in. Callers that send none of these can't be told apart, and find nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from contextvars import ContextVar
from typing import Any

from fastapi import HTTPException, Request

HEADER = "X-Decouple-Caller"
SHORTEST = 16
"""Characters of a caller's secret."""

PAGE_KEY = secrets.token_urlsafe(24)
"""New with every start of the WebUI; the accordion holds it for the page's own requests."""

_drawing: ContextVar[str] = ContextVar("decouple_caller", default="")


def remember(caller: str) -> None:
    """The job that this request starts is the ``caller``'s."""
    _drawing.set(caller)


def of_job(p: Any) -> str:
    """Whose job of the host this is; "" where nobody is known."""
    user = getattr(p, "user", None)  # of the page, logged in
    return _drawing.get() or (f"login:{user}" if user else "")


class Users:
    """Those whom the host knows. ``credentials``: ``user:password``s by comma, as ``--api-auth`` has them."""

    def __init__(self, app: Any, credentials: str = "") -> None:
        self._app = app
        self._pairs = [pair for pair in credentials.split(",") if pair]
        self._user_of = next(
            (
                route.dependant.dependencies[0].call
                for route in app.routes
                if getattr(route, "path", "") == "/login_check" and route.dependant.dependencies
            ),
            None,
        )

    def caller(self, request: Request) -> str:
        """Who sends this; "" where nobody can tell. Raises HTTPException for a secret that is too short."""
        if given := request.headers.get(HEADER, ""):
            if len(given) < SHORTEST:
                detail = f"{HEADER}: {len(given)} characters are not allowed; a secret of at least {SHORTEST}"
                raise HTTPException(status_code=422, detail=detail)
            return f"secret:{hashlib.sha256(given.encode()).hexdigest()}"
        if user := self._api_user(request):
            return f"api:{user}"
        user = self._logged_in(request)
        return f"login:{user}" if user else ""

    def admit(self, request: Request) -> None:
        """Let in, to read, whom the host lets onto its page or to its API. Raises HTTPException."""
        if not self._pairs and not self._login():
            return
        if _same(request.headers.get("x-decouple-key", ""), PAGE_KEY):  # who has it was let onto the page
            return
        if not self._api_user(request) and not self._logged_in(request):
            self._refuse()

    def admit_writing(self, request: Request) -> None:
        """Let in whom the host's own API would; where it asks nobody, whoever is logged in. Raises HTTPException."""
        if not self._pairs and not self._login():
            return
        if not (self._api_user(request) if self._pairs else self._logged_in(request)):
            self._refuse()

    def _login(self) -> bool:
        return getattr(self._app, "auth", None) is not None or getattr(self._app, "auth_dependency", None) is not None

    def _logged_in(self, request: Request) -> Any:
        return self._user_of(request) if self._login() and self._user_of is not None else None

    def _api_user(self, request: Request) -> str:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        try:
            pair = base64.b64decode(given, validate=True).decode("ascii") if scheme.lower() == "basic" else ""
        except (binascii.Error, ValueError):
            return ""
        known = [_same(pair, one) for one in self._pairs]  # all of them, so that the time tells nothing
        return pair.partition(":")[0] if any(known) else ""

    def _refuse(self) -> None:
        basic = {"WWW-Authenticate": "Basic"} if self._pairs else None
        raise HTTPException(status_code=401, detail="not authenticated", headers=basic)


def _same(given: str, right: str) -> bool:
    return secrets.compare_digest(given.encode(), right.encode())
