"""``evaluate run`` on real WebUIs: one, then two of which one is killed half-way. AUTOMATIC1111, see conftest.py."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("httpx", reason="httpx is not installed: pip install -r requirements-evaluate.txt")

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate import plan as plans
from lib_decouple.lab.evaluate.store import Store
from lib_decouple.settings import Settings
from tests.hosts.conftest import Host, free_port

SAMPLING = "[sampling]\nsteps = 6\ncfg = 3\nwidth = 96\nheight = 96\n"
PLAN = 'arms = ["plain", "com", {preset = "Balanced"}]\n[[prompts]]\nset = "embedded-2"\n'


def planned(folder: Path, text: str) -> Path:
    file = folder / "plan.toml"
    file.write_text(text)
    return file


@contextmanager
def twin(host: Host) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A second WebUI of the same command line, environment and data, on a port of its own."""
    own = host.inside(
        "import os, sys\nresult = {'argv': [sys.executable, *sys.argv], 'cwd': os.getcwd(), 'env': dict(os.environ)}"
    )
    if not Path(own["cwd"]).is_dir() or "--port" not in own["argv"]:
        pytest.skip("the WebUI runs elsewhere, so no second one can be started beside it")
    port = free_port()
    command = list(own["argv"])
    command[command.index("--port") + 1] = str(port)
    process = subprocess.Popen(
        command,
        cwd=own["cwd"],
        env=own["env"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    second = Host(f"http://127.0.0.1:{port}")
    try:
        for _ in range(300):
            assert process.poll() is None
            try:
                second.get("/sdapi/v1/samplers")
                break
            except OSError:
                time.sleep(2)
        second.draw()
        yield second.url, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def loaded(host: Host) -> str:
    """The first digits of the SHA-256 of the checkpoint that the WebUI has loaded."""
    digits = host.inside("from modules import shared\nresult = shared.sd_model.sd_checkpoint_info.sha256[:10]")
    return str(digits)


def test_a_plan_on_one_webui(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = loaded(host)
    backend = f'[backend]\nkind = "webui"\nurls = ["{host.url}"]\nsha256 = "{checkpoint}"\n'
    plan = planned(tmp_path, f"seeds = 1\n{PLAN}limit = 2\n{SAMPLING}{backend}")
    command = ["evaluate", "run", str(plan), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    store = Store(tmp_path / "run")
    rows = store.images()
    assert len(rows) == 6
    for row in rows:
        guided = row["arm"] != "plain"
        assert (row["host"], row["checkpoint"], row["stood_aside"]) == ("AUTOMATIC1111", checkpoint, "")
        assert row["version"].removeprefix("v").startswith("1.")
        assert row["tokens"] == {row["entities"][0]: [2], row["entities"][1]: [5]}
        assert guided == (row["trace"] is not None)
        assert not guided or all(0 <= iou <= 1 for iou in row["trace"]["iou by update"])
        settings = Settings.from_dict(row["settings"])
        own = {**settings.as_dict(), "entities": row["entities"]} if guided else None
        again = host.draw(own, prompt=row["prompt"], seed=row["seed"])
        with Image.open(store.folder / row["file"]) as image:
            assert image.tobytes() == again.pixels[0]
            assert image.info == {}
    assert len({Image.open(store.folder / row["file"]).tobytes() for row in rows}) == 6
    capsys.readouterr()
    assert main(command) == 0
    assert "6 are drawn and reused" in capsys.readouterr().out
    assert [row["id"] for row in store.images()] == [row["id"] for row in rows]


def test_a_webui_of_another_checkpoint_is_refused(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = f'[backend]\nkind = "webui"\nurls = ["{host.url}"]\nsha256 = "0123456789"\n'
    plan = planned(tmp_path, f"{PLAN}limit = 2\n{SAMPLING}{backend}")
    assert main(["evaluate", "run", str(plan), "--out", str(tmp_path / "run")]) == 2
    assert f"[{loaded(host)}], the run has [0123456789]" in capsys.readouterr().err
    assert not (tmp_path / "run/images").exists()


def test_two_webuis_one_killed_half_way(host: Host, tmp_path: Path) -> None:
    """Each image has one row, those of the killed one stay, and the other draws the rest."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -r requirements-evaluate.txt")
    with twin(host) as (second, process):
        backend = f'[backend]\nkind = "webui"\nurls = ["{host.url}", "{second}"]\n'
        plan = planned(tmp_path, f"seeds = 2\n{PLAN}limit = 6\n{SAMPLING}{backend}")
        _, jobs = plans.read(plan)

        def rows_of(url: str) -> int:
            with suppress(FileNotFoundError):
                return sum(row["endpoint"] == url for row in Store(tmp_path / "run").images())
            return 0

        def kill() -> None:
            while rows_of(second) < 5:
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGKILL)

        killing = threading.Thread(target=kill, daemon=True)
        killing.start()
        assert main(["evaluate", "run", str(plan), "--out", str(tmp_path / "run")]) == 0
        killing.join(1)
        assert not killing.is_alive()
    store = Store(tmp_path / "run")
    rows = store.images()
    assert sorted((r["prompt_id"], r["arm"], r["seed"]) for r in rows) == sorted(job.key for job in jobs)
    by = Counter(row["endpoint"] for row in rows)
    assert set(by) == {host.url, second}
    assert 5 <= by[second] < len(jobs) - 5
    assert len(list((store.folder / "images").rglob("*.png"))) == len(rows)
