"""The judge open-clip with open_clip's real code, in a process of its own (see open_clip_alone.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
APART = ROOT / ".venv" / "open_clip-nodeps"
"""Where ``python run.py test`` puts open_clip and torchvision, apart from what the other tests load."""

pytestmark = pytest.mark.skipif(
    not APART.is_dir() and find_spec("open_clip") is None,
    reason="open_clip is not installed; `python run.py test` puts it into .venv/open_clip-nodeps",
)


def test_cosines_are_open_clips_own(tmp_path: Path) -> None:
    pytest.importorskip("inflect")
    paths = [str(APART)] * APART.is_dir() + [str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab.evaluate.open_clip_alone", str(tmp_path / "models")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, tolerance in (("scores", 1e-6), ("alone", 1e-6), ("half", 0.02)):
        for own, expected in zip(found[name], found["expected"]):
            assert own == pytest.approx(expected, abs=tolerance)
    assert len({round(value, 3) for own in found["expected"] for value in own}) == 6
    untrained, nothing = found["lacking"]
    assert "was never trained" in untrained
    assert "cannot be loaded" in nothing
