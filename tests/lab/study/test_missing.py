"""`study missing` is a plan that is ready made: drawn, judged and reported by `evaluate`."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed")

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate import fleet
from lib_decouple.lab.evaluate import plan as plans
from lib_decouple.lab.evaluate.arms import ARMS
from lib_decouple.lab.evaluate.backends import About, Drawn, Unreachable
from lib_decouple.lab.evaluate.backends.base import as_png
from lib_decouple.lab.evaluate.prompts.splits import cases
from lib_decouple.lab.evaluate.store import Store
from lib_decouple.lab.evaluate.trials import TRIALS
from lib_decouple.lab.model import scenes
from lib_decouple.lab.study.missing import arms_from


class Painter:
    """Paints the named things; without its first where ``lost`` says so."""

    batch = 4

    def __init__(self):
        self.drew = []

    def about(self):
        return About("toy", "1", "0123456789", "toy.safetensors")

    def tokens(self, prompt):
        return {name: [k] for k, name in enumerate(prompt.entities)}

    def seconds_a_step(self):
        return 0.1

    def lost(self, job):
        return job.seed % 2 == 0 if job.arm == "plain" else job.seed % 4 == 0

    def draw(self, jobs):
        self.drew += [job.key for job in jobs]
        return [
            Drawn(
                as_png(self.paint(job)), job.prompt.entities, self.tokens(job.prompt), 0.5,
                8 if job.settings.enabled else 0, None, "", self.about(),
            )
            for job in jobs
        ]  # fmt: skip

    def paint(self, job):
        rng = np.random.default_rng(job.seed)
        things = [(name, None) for name in job.prompt.entities][int(self.lost(job)) :]
        return Image.fromarray(scenes.render(scenes.place(things, rng), rng))


@pytest.fixture
def painter(monkeypatch):
    own = Painter()
    monkeypatch.setattr(fleet.BackendOpener, "open", lambda self, name: own)
    return own


def study(out, *more):
    return main(["study", "missing", "--counts", "2", "--arms", "plain,com", "--jobs", "1", "--out", str(out), *more])


def test_the_table_tells_what_was_painted_and_goes_on_where_it_was(painter, tmp_path, capsys):
    out = tmp_path / "run"
    assert study(out, "--n", "8") == 0
    assert len(painter.drew) == len(set(painter.drew)) == 16
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    # A judge may err; the one that ships saw every one of these.
    assert [(row["arm"], row["n"], float(row["missing"]), float(row["right"])) for row in rows] == [
        ("plain", "8", 0.5, 0.5), ("com", "8", 0.25, 0.75),
    ]  # fmt: skip
    assert float(rows[1]["missing_p"]) == pytest.approx(2 * 0.5**2)
    assert float(rows[1]["removed"]) == 0.5
    report = json.loads((out / "results.json").read_text())
    assert (report["split"], report["n"], report["first_seed"]) == ("report", 8, None)
    assert report["settings"]["2 com"]["loss"] == "com"
    assert "| 2 | com | 8 | 25.0 [" in capsys.readouterr().out
    assert study(out, "--n", "12") == 0
    assert len(painter.drew) == len(set(painter.drew)) == 24
    wanted = [("a " + " and a ".join(case.entities), case.seed) for case in cases("report", 2, 12)]
    store = Store(out)
    for arm in ("plain", "com"):
        drawn = [(row["prompt"], row["seed"]) for row in store.images() if row["arm"] == arm]
        assert sorted(drawn) == sorted(wanted)
    # Fewer again: what was drawn is kept, the table is of what was asked for.
    assert study(out, "--n", "4", "--set", "com:size=0.3;steps=9") == 0
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["arm"], row["n"]) for row in rows] == [("plain", "4"), ("com", "4"), ("com:size=0.3;steps=9", "4")]
    assert len(Store(out).images("aside")) == 16
    own = json.loads((out / "results.json").read_text())["settings"]
    assert own["2 com:size=0.3;steps=9"] == {**own["2 com"], "size": 0.3, "steps": 9}


def test_its_folder_is_a_run_whose_plan_can_be_run(painter, tmp_path):
    out = tmp_path / "run"
    assert study(out, "--n", "3", "--first-seed", "40", "--set", "plain:enabled=true") == 0
    assert len(painter.drew) == 9
    assert main(["evaluate", "run", str(out / "plan.toml"), "--out", str(out)]) == 0
    assert len(painter.drew) == 9
    plan, jobs = plans.read(out / "plan.toml")
    assert {job.seed for job in jobs} == {40, 41, 42}
    assert {job.arm: job.settings.enabled for job in jobs} == {"plain": False, "com": True, "plain:enabled=true": True}
    assert (plan.sampling.steps, plan.backend.workers) == (20, 1)


def test_a_study_that_is_stopped_leaves_its_plan_and_goes_on(painter, tmp_path, capsys):
    out, real = tmp_path / "run", painter.draw

    def gone(jobs):
        if painter.drew:
            raise Unreachable("no more")
        return real(jobs)

    painter.draw = gone
    assert study(out, "--n", "3", "--batch", "1") == 2
    assert "no more. What is drawn is kept; the same command goes on" in capsys.readouterr().err
    assert len(painter.drew) == len(Store(out).images()) == 1
    assert len(plans.read(out / "plan.toml")[1]) == 6
    painter.draw = real
    assert study(out, "--n", "3", "--batch", "1") == 0
    assert len(painter.drew) == len(set(painter.drew)) == 6


def test_other_settings_under_the_same_name_are_refused_until_told(painter, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert study(out, "--n", "2") == 0
    before = (out / "plan.toml").read_text()
    monkeypatch.setitem(ARMS[2], "com", plans.Settings.from_dict({**ARMS[2]["com"].as_dict(), "size": 0.123}))
    assert study(out, "--n", "2", "--split", "report") == 2
    assert "2 images of" in (told := capsys.readouterr().err)
    assert "--redo" in told
    assert (out / "plan.toml").read_text() == before
    assert study(out, "--n", "2", "--redo") == 0
    assert len(painter.drew) == 6
    (out / "images.jsonl").write_text("")
    assert study(out) == 2
    assert "holds a run of an earlier version" in capsys.readouterr().err


def test_a_trial_reaches_the_model_by_its_name(tmp_path):
    (tmp_path / "plan.toml").write_text(
        'arms = ["plain", {tuned = "gated"}, {name = "other", tuned = "intensity+com"}]\n'
        '[[prompts]]\nsplit = "tune"\nentities = 3\nlimit = 2\n'
    )
    plan, jobs = plans.read(tmp_path / "plan.toml")
    assert {job.arm: job.way for job in jobs} == {"plain": "", "gated": "gated", "other": ""}
    recipes = {job.arm: job.recipe(plan.sampling, plan.backend, "0") for job in jobs[:3]}
    assert len(set(recipes.values())) == 3
    assert jobs[1].settings == jobs[2].settings
    assert "gated" in TRIALS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--set", "iou"], "set: 'iou' is not ARM:FIELD=VALUE"),
        (["--set", "iuo:size=1"], "set: 'iuo:size=1'"),
        (["--set", "iou:size"], "set: 'size' is not FIELD=VALUE with a JSON value"),
        (["--set", "iou:layers=all"], "set: 'layers=all' is not FIELD=VALUE with a JSON value"),
        (["--set", "iou:siz=1"], "siz: no such field"),
        (["--set", "iou:size=null"], "set: null is not allowed"),
        (["--arms", "plain,iuo"], "arms: 'iuo' is not one of plain, iou"),
        (["--counts", "two"], "counts: 'two' is not allowed"),
        (["--counts", "4"], "count: 4 is not allowed; 1 to 3 entities"),
        (["--counts", "1"], "'com' is not one of plain, choose"),
        (["--first-seed", "-1"], "first-seed: -1 is not allowed"),
        (["--jobs", "-1"], "jobs: -1 is not allowed"),
        (["--n", "0"], "n: 0 is not allowed; 1 or more"),
        (["--steps", "0"], "steps: 0 is not allowed; 1 to 1000"),
        (["--steps", "1001"], "sampling.steps: 1001 is not allowed"),
        (["--steps", "600"], "steps: 360 is not allowed"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(given, words, tmp_path, capsys, painter):
    assert study(tmp_path / "run", *given) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_arms_are_a_plans():
    assert arms_from("plain, iou", ['iou:size=0.5;layers="all"']) == [
        {"name": "plain"},
        {"name": "iou", "tuned": "iou"},
        {"name": 'iou:size=0.5;layers="all"', "tuned": "iou", "settings": {"size": 0.5, "layers": "all"}},
    ]
