"""Test-only extension: runs Python inside the WebUI, for checks that HTTP alone cannot make.

Never install it where others can reach the port. Code is taken from 127.0.0.1 only.
"""

from __future__ import annotations

import traceback
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from modules import script_callbacks

kept: dict[str, Any] = {}
"""Outlives one call: code sees it as ``kept``."""


def add_route(_: Any, app: FastAPI) -> None:
    def run(body: dict[str, Any], request: Request) -> Any:
        if request.client is None or request.client.host != "127.0.0.1":
            raise HTTPException(403)
        scope: dict[str, Any] = {"kept": kept, "result": None}
        try:
            exec(compile(body["code"], "<probe>", "exec"), scope)
        except BaseException:
            return {"error": traceback.format_exc()}
        return {"result": scope["result"]}

    # Not the texts that "from __future__ import annotations" leaves: FastAPI looks names up elsewhere.
    run.__annotations__.update(body=dict, request=Request)
    app.add_api_route("/decouple-probe", run, methods=["POST"])


script_callbacks.on_app_started(add_route)
