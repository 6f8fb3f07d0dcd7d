"""The examples of docs/api.md, executed against real WebUIs as they stand; see conftest.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs/api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXPECTED = re.compile(r"# (.+)$", re.MULTILINE)


@pytest.fixture(scope="module", params=["host", "forge"])
def webui(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def folder(webui, tmp_path_factory):
    """Where the blocks run, one after the other."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[f"{k}-{one[0]}" for k, one in enumerate(BLOCKS)])
def test_example(webui, folder, language, code):
    if "webuiapi" in code:
        pytest.importorskip("webuiapi", reason="webuiapi is not installed")
    port = str(urlsplit(webui.url).port)
    runner = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
    done = subprocess.run([*runner, code.replace("7860", port)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for told in EXPECTED.findall(code):
        assert told in done.stdout
