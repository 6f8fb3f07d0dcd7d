"""“Check this machine” in real WebUIs; see conftest.py and test_forge.py."""

from __future__ import annotations

import threading
import time

import pytest

BUSY = """
from modules import shared
result = shared.state.job
"""
LAST = """
from pathlib import Path
from modules import paths
file = Path(paths.data_path) / "params.txt"
result = file.read_text("utf-8") if file.exists() else None
"""


@pytest.fixture(params=["host", "forge"])
def webui(request):
    return request.getfixturevalue(request.param)


def check(webui):
    return webui.post("/decouple/v1/doctor", {})


def test_it_finds_the_gradient_whole_and_leaves_the_model_as_it_was(webui):
    before, last = [webui.draw().pixels, webui.draw({}).pixels], webui.inside(LAST)
    status, answer = check(webui)
    assert status == 200, answer
    report = answer["report"]
    assert report["whole"] is True
    assert (report["cut"], report["stood_aside"]) == ("", "")
    assert any("which fits" in one for one in answer["sentences"]), answer
    assert {"plain"} <= set(report["seconds"])
    assert "--api" in report["flags"]
    assert "attention-decoupling" in report["extensions"]
    assert webui.inside(LAST) == last
    assert webui.inside(BUSY) == ""
    assert [webui.draw().pixels, webui.draw({}).pixels] == before


def test_it_names_no_path_and_no_prompt(webui):
    _, answer = check(webui)
    told = str(answer)
    assert "a cat" not in told
    assert "/" not in told


def test_it_refuses_while_a_job_runs(webui):
    job = threading.Thread(target=lambda: webui.draw(steps=40))
    job.start()
    for _ in range(600):
        if webui.inside(BUSY):
            break
        time.sleep(0.1)
    status, answer = check(webui)
    job.join()
    assert status == 409
    assert answer["detail"] == "The WebUI is drawing or loading a model; check again when it is done."
    assert check(webui)[0] == 200
