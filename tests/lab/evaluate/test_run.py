"""A run draws each image once, goes on after any stop, and tells what it reuses, redoes and cannot do."""

import csv
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed")

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate import files, fleet, run
from lib_decouple.lab.evaluate import plan as plans
from lib_decouple.lab.evaluate.backends import About, Drawn, Unreachable
from lib_decouple.lab.evaluate.backends.base import as_png
from lib_decouple.lab.evaluate.store import Store

from .standin import picture

PLAN = 'arms = ["plain", "com"]\nseeds = 2\n[[prompts]]\nset = "embedded-2"\nlimit = 3\n[backend]\nbatch = 2\n'


class Painter:
    """A backend that paints squares."""

    batch = 2

    def __init__(self, checkpoint="0123456789"):
        self.checkpoint, self.drew = checkpoint, []

    def about(self):
        return About("toy", "1", self.checkpoint, "toy.safetensors")

    def tokens(self, prompt):
        return {name: [k] for k, name in enumerate(prompt.entities)}

    def seconds_a_step(self):
        return 0.1

    def draw(self, jobs):
        self.drew += [job.key for job in jobs]
        guided = jobs[0].settings.enabled
        return [
            Drawn(
                as_png(picture(job.prompt.text, job.seed, job.arm)), job.prompt.entities, self.tokens(job.prompt), 0.5,
                8 if guided else 0, {"iou": [0.6, 0.3]} if guided else None, "", self.about(),
            )
            for job in jobs
        ]  # fmt: skip


@pytest.fixture
def painter(monkeypatch):
    own = Painter()
    monkeypatch.setattr(fleet.BackendOpener, "open", lambda self, name: own)
    return own


def planned(folder: Path, text: str = PLAN) -> str:
    (folder / "plan.toml").write_text(text)
    return str(folder / "plan.toml")


def draw(folder: Path, text: str = PLAN, *more: str) -> int:
    return main(["evaluate", "run", planned(folder, text), "--out", str(folder / "run"), *more])


def pictures(folder: Path) -> dict[str, bytes]:
    own = folder / "run"
    return {p.relative_to(own).as_posix(): p.read_bytes() for p in (own / "images").rglob("*.png")}


def test_the_manifest_tells_all_of_every_image(painter, tmp_path, capsys):
    assert draw(tmp_path) == 0
    store = Store(tmp_path / "run")
    rows = store.images()
    assert len(rows) == 3 * 2 * 2
    for row in rows:
        with Image.open(store.folder / row["file"]) as image:
            assert image.tobytes() == picture(row["prompt"], row["seed"], row["arm"]).tobytes()
            assert image.info == {}
        assert row["arm"] not in row["file"]
        assert row["tokens"] == {name: [k] for k, name in enumerate(row["entities"])}
        assert (row["host"], row["version"], row["checkpoint"], row["seconds"]) == ("toy", "1", "0123456789", 0.5)
        assert row["passes"] == (8 if row["arm"] == "com" else 0)
        assert row["settings"]["enabled"] is (row["arm"] == "com")
        assert row["sampling"]["steps"] == 20
        assert (row["prompt_set"], row["stood_aside"], row["count"]) == ("embedded-2", "", 2)
    assert store.notes()["plan"]["seeds"] == 2
    assert [one["text"] for one in store.plans()] == [PLAN]
    told = capsys.readouterr().out
    assert "12 images: 3 prompts, 2 arms" in told
    assert "6 pairs for each of 1 arm" in told  # the smallest effect, before anything is drawn
    # 6 plain of 20 steps, 6 guided in the first 10 of them: 0.1 * (6 * 20 + 6 * (20 + 1.5 * 10)) = 33 s
    assert "About 33 s." in told
    assert told.index("About") < told.index("12 of 12 images are in")


def test_the_manifest_as_a_table(painter, tmp_path):
    draw(tmp_path)
    store = Store(tmp_path / "run")
    first = store.images()[0]
    store.put_scores("drawn", {first["id"]: {"": 1.0, "cat": 0.0}})
    for more in ([], ["--short"]):
        assert main(["evaluate", "table", str(tmp_path / "run"), *more]) == 0
        rows = list(csv.DictReader((tmp_path / "run/manifest.csv").read_text().splitlines()))
        assert len(rows) == 12
        assert (rows[0]["file"], rows[0]["arm"], rows[0]["seconds"]) == (first["file"], first["arm"], "0.5")
        assert json.loads(rows[0]["entities"]) == first["entities"]
        assert json.loads(rows[0]["drawn"]) == {"": 1.0, "cat": 0.0}
        assert rows[1]["drawn"] == ""
        assert ("settings" in rows[0]) == (more == [])


def test_a_dry_run_draws_nothing(painter, tmp_path, capsys):
    assert draw(tmp_path, PLAN, "--dry-run") == 0
    assert "12 are to be drawn" in capsys.readouterr().out
    assert painter.drew == []
    assert Store(tmp_path / "run").images() == []


def test_what_is_drawn_is_reused(painter, tmp_path, capsys):
    draw(tmp_path)
    before, painter.drew = pictures(tmp_path), []
    assert draw(tmp_path, PLAN.replace('"com"]', '"com", "kl"]').replace("limit = 3", "limit = 4")) == 0
    assert "12 are drawn and reused" in capsys.readouterr().out
    assert len(painter.drew) == 4 * 2 * 3 - 12 == len(set(painter.drew))
    assert before.items() <= pictures(tmp_path).items()


def test_a_changed_plan_tells_what_it_would_redo_and_waits_to_be_told(painter, tmp_path, capsys):
    draw(tmp_path)
    store, before = Store(tmp_path / "run"), pictures(tmp_path)
    ids = {row["id"]: row["arm"] for row in store.images()}
    store.put_scores("drawn", {one: {"": 1.0} for one in ids})
    painter.drew = []
    changed = PLAN.replace('"com"', '{name = "com", loss = "com", settings = {size = 0.2}}')
    assert draw(tmp_path, changed) == 2
    out, err = capsys.readouterr()
    assert "6 are drawn and reused" in out
    assert "6 were drawn otherwise and are to be redone.\n  6 x size 0.0 is 0.2 now" in out
    assert "--redo does it" in err
    assert painter.drew == []
    assert pictures(tmp_path) == before
    assert draw(tmp_path, changed, "--redo") == 0
    assert {arm for _, arm, _ in painter.drew} == {"com"}
    assert len(pictures(tmp_path)) == 12
    # A judge's word on a picture that is gone goes with it.
    assert set(store.scores("drawn")) == {one for one, arm in ids.items() if arm == "plain"}


def test_what_is_to_be_redone_is_none_of_the_run_until_it_is(painter, tmp_path):
    draw(tmp_path)
    store, real, before = Store(tmp_path / "run"), painter.draw, pictures(tmp_path)
    changed = PLAN.replace('"com"', '{name = "com", loss = "com", settings = {size = 0.2}}')

    def stopped(jobs):
        raise KeyboardInterrupt

    painter.draw = stopped
    assert draw(tmp_path, changed, "--redo") == 130
    assert {row["arm"] for row in store.images()} == {"plain"}
    assert pictures(tmp_path) == before
    painter.draw = real
    assert draw(tmp_path, changed, "--redo") == 0
    assert len(store.images()) == 12
    assert {row["settings"]["size"] for row in store.images() if row["arm"] == "com"} == {0.2}


def test_a_name_with_a_dot_is_a_folder_as_any(painter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd1.5.toml").write_text(PLAN)
    assert main(["evaluate", "run", "sd1.5.toml"]) == 0
    assert main(["evaluate", "run", "sd1.5.toml", "--out", "new/run.v2"]) == 0
    for folder in (Path("out/evaluate/sd1.5"), Path("new/run.v2")):
        assert (folder / "evaluate.sqlite").is_file()
        assert len(Store(folder).images()) == 12


def test_an_endpoint_that_is_down_at_the_start_may_still_join(painter, tmp_path, monkeypatch):
    def opened(self, name):
        if name.endswith(":2"):
            raise Unreachable(f"{name}: gone")
        return painter

    taken = []
    monkeypatch.setattr(fleet.BackendOpener, "open", opened)
    monkeypatch.setattr(run, "draw_all", lambda opener, groups, tell: (taken.append(opener.names()) or o for o in ()))
    monkeypatch.setattr(run, "alone", lambda *_: pytest.fail("one endpoint's way"))
    backend = '[backend]\nkind = "webui"\nurls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]\n'
    assert draw(tmp_path, PLAN.partition("[backend]")[0] + backend) == 0


def test_what_a_plan_does_without_is_kept_aside_and_comes_back(painter, tmp_path, capsys):
    draw(tmp_path)
    painter.drew = []
    assert draw(tmp_path, PLAN.replace(', "com"', "")) == 0
    assert "6 are not in this plan any more: kept" in capsys.readouterr().out
    store = Store(tmp_path / "run")
    assert {row["arm"] for row in store.images()} == {"plain"}
    assert draw(tmp_path) == 0
    assert painter.drew == []
    assert len(store.images()) == 12


def test_a_lost_file_is_drawn_again_and_an_unreadable_one_is_told(painter, tmp_path, capsys):
    draw(tmp_path)
    rows = Store(tmp_path / "run").images()
    gone, broken = (tmp_path / "run" / row["file"] for row in rows[:2])
    whole = broken.read_bytes()
    gone.unlink()
    broken.write_bytes(whole[:40])
    painter.drew = []
    assert draw(tmp_path) == 2
    assert f"image: {broken} cannot be read" in capsys.readouterr().err
    assert painter.drew == []
    assert broken.read_bytes() == whole[:40]
    broken.write_bytes(whole)
    assert draw(tmp_path) == 0
    assert "1 were drawn, but their files are gone" in capsys.readouterr().out
    assert painter.drew == [(rows[0]["prompt_id"], rows[0]["arm"], rows[0]["seed"])]
    assert gone.exists()


def test_a_full_disk_leaves_what_was_there(painter, tmp_path, monkeypatch, capsys):
    real, left = os.fsync, [4]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)  # two a picture: the file's and the folder's
    assert draw(tmp_path) == 2
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "the same command goes on" in told
    assert [p for p in tmp_path.rglob("*.part")] == []
    assert len(pictures(tmp_path)) == 2 == len(Store(tmp_path / "run").images())
    monkeypatch.setattr(files.os, "fsync", real)
    assert draw(tmp_path) == 0
    assert len(Store(tmp_path / "run").images()) == 12


def test_another_checkpoint_is_not_mixed_in(painter, tmp_path, capsys):
    draw(tmp_path)
    before = pictures(tmp_path)
    painter.checkpoint, painter.drew = "ffffffffff", []
    assert draw(tmp_path) == 2
    assert "12 x checkpoint '0123456789' is 'ffffffffff' now" in capsys.readouterr().out
    assert painter.drew == []
    assert pictures(tmp_path) == before


def test_a_checkpoint_changed_while_it_runs_ends_the_run(painter, tmp_path, capsys):
    real = painter.draw

    def drawing(jobs):
        if len(painter.drew) >= 4:
            painter.checkpoint = "ffffffffff"
        return real(jobs)

    painter.draw = drawing
    assert draw(tmp_path) == 2
    assert "[ffffffffff] now, the run has [0123456789]" in capsys.readouterr().err
    assert len(Store(tmp_path / "run").images()) == 4


def test_a_job_that_nobody_can_draw_is_told_and_the_others_are_drawn(painter, tmp_path, capsys):
    real = painter.draw

    def drawing(jobs):
        if jobs[0].arm == "com":
            raise ValueError("loss: not here")
        return real(jobs)

    painter.draw = drawing
    assert draw(tmp_path) == 1
    out, err = capsys.readouterr()
    assert err.count("com, seed") == 6
    assert "6 of 12 images are in" in out


def test_a_backend_that_is_gone_ends_the_run_with_what_is_drawn(painter, tmp_path, capsys):
    real = painter.draw

    def drawing(jobs):
        if len(painter.drew) >= 6:
            raise Unreachable("http://x: gone")
        return real(jobs)

    painter.draw = drawing
    assert draw(tmp_path) == 2
    assert "http://x: gone. What is drawn is kept; the same command goes on" in capsys.readouterr().err
    painter.draw, drawn = real, len(painter.drew)
    assert draw(tmp_path) == 0
    assert len(painter.drew) == 12 == len(set(painter.drew))
    assert drawn == 6


def test_two_runs_do_not_draw_into_one_folder(painter, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with run.locked(tmp_path / "run"):
        assert draw(tmp_path) == 2
    assert "another run draws into" in capsys.readouterr().err
    assert draw(tmp_path) == 0


def test_batches_have_one_arm_and_keep_pairs_near(tmp_path):
    _, jobs = plans.read(Path(planned(tmp_path)))
    groups = list(run.batches(jobs, 4))
    assert sorted(j.key for g in groups for j in g) == sorted(j.key for j in jobs)
    assert all(len({j.settings for j in g}) == 1 and len(g) <= 4 for g in groups)
    assert [(g[0].arm, len(g)) for g in groups] == [("plain", 4), ("com", 4), ("plain", 2), ("com", 2)]


@pytest.mark.parametrize("name", ["com", "gated"])
def test_the_embedded_model_draws_what_the_pipeline_draws(name, tmp_path):
    from lib_decouple.hosts.checkpoints import CHECKPOINT, open_pipeline
    from lib_decouple.hosts.diffusers import Drawing
    from lib_decouple.lab.evaluate.arms import tuned
    from lib_decouple.lab.evaluate.trials import TRIALS, Trial

    own = tuned(name, 2, 6)
    text = (
        PLAN.replace("limit = 3", "limit = 1")
        .replace('"com"', f'{{tuned = "{name}"}}')
        .replace("seeds = 2", "seeds = 1")
    )
    assert draw(tmp_path, "maps = true\n" + text + "[sampling]\nsteps = 6\n") == 0
    store = Store(tmp_path / "run")
    plain, ours = store.images()
    assert plans.Settings.from_dict(ours["settings"]) == own
    found = Drawing(
        open_pipeline(), [ours["prompt"]], [ours["entities"]], own, seeds=[ours["seed"]], steps=6,
        guidance_scale=plans.CFG, keep_maps=True, loss=TRIALS.get(name, Trial()).loss,
    ).picture()  # fmt: skip
    with Image.open(store.folder / ours["file"]) as image:
        assert (np.asarray(image) == np.asarray(found.images[0])).all()
    trace = found.traces[0]
    assert ours["passes"] == trace.passes > 0 == plain["passes"]
    assert ours["trace"]["iou"] == [round(look.before.mean_iou(), 4) for look in trace.steps]
    assert ours["trace"]["loss"] == [round(look.loss, 4) for look in trace.steps]
    assert ours["tokens"] == {ours["entities"][0]: [2], ours["entities"][1]: [5]}
    assert ours["checkpoint"] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()[:10]
    for row in (plain, ours):
        kept = np.load((store.folder / row["file"]).with_suffix(".maps.npz"))["maps"]
        assert kept.shape[0] == 2


def test_an_entity_that_is_not_in_its_prompt_is_told_before_anything_is_drawn(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("a cat and a dog | cat, zebra\n")
    assert draw(tmp_path, 'arms = ["com"]\n[[prompts]]\nfile = "own.txt"\n') == 2
    told = capsys.readouterr().err
    assert "'a cat and a dog' of own.txt" in told
    assert "zebra" in told
    assert Store(tmp_path / "run").images() == []


def test_a_kill_at_any_moment_loses_and_repeats_nothing(tmp_path):
    """SIGKILL in the middle, twice, with the real model; then it goes on to the end."""
    plan = planned(tmp_path, PLAN + "[sampling]\nsteps = 4\n")
    command = [sys.executable, "-m", "lib_decouple", "evaluate", "run", plan, "--out", str(tmp_path / "run")]
    where = {"cwd": Path(run.__file__).parents[3], "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    kept: dict[str, bytes] = {}
    for wanted in (2, 6):
        process = subprocess.Popen(command, **where)
        while process.poll() is None and len(pictures(tmp_path)) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = Store(tmp_path / "run").images()
        assert all((tmp_path / "run" / row["file"]).exists() for row in rows)
        own = {row["file"]: (tmp_path / "run" / row["file"]).read_bytes() for row in rows}
        assert kept.items() <= own.items()
        kept = own
    (tmp_path / "run/images/scrap").mkdir()
    (tmp_path / "run/images/scrap/1.png.part").write_bytes(b"half")
    assert subprocess.run(command, **where).returncode == 0
    store = Store(tmp_path / "run")
    rows = store.images()
    assert len({(r["prompt_id"], r["arm"], r["seed"]) for r in rows}) == len(rows) == 12
    assert set(pictures(tmp_path)) == {row["file"] for row in rows}
    assert all((store.folder / file).read_bytes() == data for file, data in kept.items())
    assert list(tmp_path.rglob("*.part")) == []
    for row in rows:
        Image.open(io.BytesIO((store.folder / row["file"]).read_bytes())).load()
