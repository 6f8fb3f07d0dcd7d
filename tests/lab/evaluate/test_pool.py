"""Processes of this machine, each with the model in memory."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed")

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate.fleet import BackendOpener
from lib_decouple.lab.evaluate.plan import BackendPart, Sampling
from lib_decouple.lab.evaluate.pool import spread, workers_of
from lib_decouple.lab.evaluate.store import Store

PLAN = """arms = ["plain", {tuned = "com"}]
[[prompts]]
split = "tune"
limit = 2
[sampling]
steps = 4
[backend]
batch = 1
workers = WORKERS
"""


def who(backend, task):
    if task == "end":
        os._exit(1)
    return os.getpid(), type(backend).__name__, task


def opener():
    return BackendOpener(BackendPart(), Sampling(2, 4.0), Path())


def test_work_is_spread_and_comes_back_in_order():
    tasks = [str(k) for k in range(6)]
    found = list(spread(who, tasks, opener(), 2))
    assert [task for task, _ in found] == [told for _, (_, _, told) in found] == tasks
    assert os.getpid() not in {process for _, (process, _, _) in found}
    assert {kind for _, (_, kind, _) in found} == {"Embedded"}
    (_, (process, kind, _)), *_ = spread(who, ["1"], opener(), 1)
    assert (process, kind) == (os.getpid(), "Embedded")


def test_a_process_that_dies_is_told():
    with pytest.raises(ValueError, match="workers: a process that draws has died"):
        list(spread(who, ["end"], opener(), 2))


def test_two_workers_draw_what_one_draws(tmp_path):
    pictures = []
    for workers in (1, 2):
        plan, out = tmp_path / f"{workers}.toml", tmp_path / str(workers)
        plan.write_text(PLAN.replace("WORKERS", str(workers)))
        assert main(["evaluate", "run", str(plan), "--out", str(out)]) == 0
        rows = Store(out).images()
        assert len(rows) == 4
        pictures.append({row["file"]: np.asarray(Image.open(out / row["file"])).astype(int) for row in rows})
    one, two = pictures
    assert one.keys() == two.keys()  # named by seed and recipe
    # Threads differ, and rounding with them.
    assert max(np.abs(one[file] - two[file]).max() for file in one) <= 2


def test_jobs_are_named():
    assert workers_of(3) == 3
    assert workers_of(0) == min(64, os.cpu_count() or 1)
    with pytest.raises(ValueError, match="jobs: 65 is not allowed; 0 to 64"):
        workers_of(65)
