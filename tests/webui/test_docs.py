"""The parts of docs/api.md that are made from the code are up to date.

DECOUPLE_WRITE_DOCS=1 writes them anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")

from lib_decouple.webui import api, rest, schema  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs/api.md"


def routes():
    app = fastapi.FastAPI()
    rest.add(app, rest.Host(lambda text: [], Path))
    lines = ["| | route | |", "|---|---|---|"]
    for path, methods in app.openapi()["paths"].items():
        for method, about in methods.items():
            told = " ".join(about.get("description", "").split())
            lines.append(f"| {method.upper()} | `{path}` | {told} |")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("part", "made"),
    [("fields", schema.table), ("order", lambda: ", ".join(f"`{name}`" for name in api.ORDER)), ("routes", routes)],
    ids=["fields", "order", "routes"],
)
def test_made_part_is_up_to_date(part, made):
    marks = f"<!-- {part} -->\n", f"<!-- /{part} -->"
    whole = PAGE.read_text(encoding="utf-8")
    new = re.sub(f"{marks[0]}.*?{marks[1]}", lambda _: f"{marks[0]}{made()}\n{marks[1]}", whole, flags=re.DOTALL)
    if os.environ.get("DECOUPLE_WRITE_DOCS"):
        PAGE.write_text(new, encoding="utf-8")
    assert whole == new or os.environ.get("DECOUPLE_WRITE_DOCS"), "run this test with DECOUPLE_WRITE_DOCS=1"
    assert made().count("`") > 10
