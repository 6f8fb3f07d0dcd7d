"""docs/evaluate.md: the reference is made from the code (DECOUPLE_WRITE_DOCS=1 writes it anew), its plans are plans."""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")

from lib_decouple.lab.evaluate import plan as plans

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = DOCS / "evaluate.md"


def test_the_reference_is_up_to_date():
    marks = "<!-- plan -->\n", "<!-- /plan -->"
    whole = PAGE.read_text(encoding="utf-8")
    new = re.sub(f"{marks[0]}.*?{marks[1]}", lambda _: f"{marks[0]}{plans.reference()}\n{marks[1]}", whole, flags=re.S)
    if os.environ.get("DECOUPLE_WRITE_DOCS"):
        PAGE.write_text(new, encoding="utf-8")
    assert whole == new or os.environ.get("DECOUPLE_WRITE_DOCS"), "run this test with DECOUPLE_WRITE_DOCS=1"
    assert "| `patience` | `120.0` |" in new


def test_the_pages_plans_are_plans(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    lines = re.search(r"```\n(# lines.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    (tmp_path / "mine.txt").write_text(lines[1])
    assert len(blocks) > 5
    for block in blocks:
        text = ("" if "arms =" in block else 'arms = ["plain", "com"]\n') + block
        text += "" if "[[prompts]]" in block else '[[prompts]]\nset = "embedded-2"\n'
        (tmp_path / "plan.toml").write_text(text)
        _, jobs = plans.read(tmp_path / "plan.toml")
        assert jobs
    assert plans.read(DOCS / "evaluate/plan.toml")[0].backend.kind == "embedded"
