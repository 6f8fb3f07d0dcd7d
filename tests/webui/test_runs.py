"""Kept runs, the live one and their routes, on traces made by hand."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
from fastapi.testclient import TestClient  # noqa: E402
from PIL import Image  # noqa: E402

from lib_decouple.core.presence import Presence  # noqa: E402
from lib_decouple.core.trace import ImageTrace, KeptMaps, StepRecord, Unmeasured, kept  # noqa: E402
from lib_decouple.hosts.seeds import ExtraPasses, SeedChoice  # noqa: E402
from lib_decouple.settings import Settings  # noqa: E402
from lib_decouple.webui import callers, heatmaps, rest, run_routes  # noqa: E402
from lib_decouple.webui.palette import colours  # noqa: E402
from lib_decouple.webui.report import Run  # noqa: E402
from lib_decouple.webui.runs import KeptRun, Live, Maps, RunImage, Runs, UnknownRun, of_job  # noqa: E402

NAMES = ("cat", "dog")
SECRET = "a secret of mine"
MINE = f"secret:{hashlib.sha256(SECRET.encode()).hexdigest()}"
LEFT = torch.tensor([[[0.5, 0.0], [0.5, 0.0]], [[0.25, 0.25], [0.25, 0.25]]])


def sampling(iteration=0, hires=False, images=2, left_alone="", maps=None):
    traces = [ImageTrace(()) for _ in range(images)]
    for k, trace in enumerate(traces[: images - bool(left_alone)]):
        trace.entities = NAMES
        trace.steps.append(StepRecord(0, 0.5 + k, Unmeasured(NAMES, LEFT)))
        trace.moments["unguided"] = kept(0, NAMES, LEFT * (k + 1) / 2)
    return SimpleNamespace(
        iteration=iteration, hires=hires, traces=traces, left_alone=[""] * (images - 1) + [left_alone],
        stood_aside="", exact_since="", no_drafts="", not_insisted="", drew=True, seconds=1.0, beside=ExtraPasses(),
        step=3, total=8,
        maps=maps or {},
        p=SimpleNamespace(batch_size=images),
        teller=SimpleNamespace(told=[Presence(0.5, {"cat": 0.9, "dog": 0.2}, None, NAMES)] + [None] * (images - 1)),
        choices=[SeedChoice(4, 5, {4: {"cat": 0.2}, 5: {"cat": float("nan")}})] + [None] * (images - 1),
    )  # fmt: skip


def job(*passes, **given):
    own = list(passes or [sampling(), sampling(1, left_alone="no dog")])
    run = Run(Settings(enabled=True, loss="iou"), own, **{"owner": MINE, **given})
    p = SimpleNamespace(batch_size=2, all_prompts=["a", "b", "c", "d"], all_seeds=[5, 6, 7, 8])
    return of_job(run, p, "img2img", {1: heatmaps.small(Image.new("RGB", (640, 320), (200, 0, 0)))})


@pytest.fixture
def runs():
    return Runs()


def client(**shown):
    app = fastapi.FastAPI()
    rest.add(app, rest.Host(lambda text: [], Path, runs_to_show=run_routes.RunsToShow(**shown)))
    return TestClient(app, headers={"X-Decouple-Caller": SECRET})


# ---------------------------------------------------------------- what is kept


def test_the_newest_runs_are_kept_and_told_first(runs):
    made = [job() for _ in range(4)]
    for one in made:
        runs.keep(one, 3)
    assert [one.id for one in runs.newest_first()] == [one.id for one in made[:0:-1]]
    assert runs.get("last", MINE) is made[-1]
    assert runs.get(made[1].id) is made[1]
    with pytest.raises(UnknownRun, match="is not kept"):
        runs.get(made[0].id)
    runs.keep(job(), 1)
    assert len(runs.newest_first()) == 1
    runs.keep(job(), 0)
    assert runs.newest_first() == []
    with pytest.raises(UnknownRun, match="no run of yours is kept"):
        runs.get("last", MINE)


def test_large_runs_push_out_older_ones_but_never_the_newest():
    def of_bytes(count):
        values = np.zeros((1, 1, count // 2), np.float16)
        return KeptRun(str(count), "", "", {}, [RunImage(0, "", 0, ("a",), [], [Maps(False, "last", 0, values)])])

    runs = Runs(most_bytes=1000)
    for count in (400, 402, 404):
        runs.keep(of_bytes(count), 10)
    assert [one.id for one in runs.newest_first()] == ["404", "402"]
    runs.keep(of_bytes(5000), 10)
    assert [one.id for one in runs.newest_first()] == ["5000"]


def test_several_threads_lose_nothing(runs):
    made = [[job(sampling(images=1)) for _ in range(20)] for _ in range(4)]
    threads = [threading.Thread(target=lambda own=own: [runs.keep(one, 100) for one in own]) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.id for one in runs.newest_first()} == {one.id for own in made for one in own}


def test_an_entity_that_prompt_editing_took_away_has_an_empty_map():
    one = sampling(images=1)
    one.traces[0].entities = ("cat", "dog", "fox")
    one.traces[0].moments["last"] = kept(3, ("fox", "dog"), LEFT)
    (image,) = job(one).images
    assert image.maps[1].values.tolist() == [np.zeros((2, 2)).tolist(), LEFT[1].tolist(), LEFT[0].tolist()]


# ---------------------------------------------------------------- routes


def test_a_run_s_trace(runs):
    web = client(runs=runs)
    assert web.get("/decouple/v1/runs").json() == {"runs": [], "hint": ""}
    assert web.get("/decouple/v1/trace/last").status_code == 404
    run = job(sampling(), sampling(hires=True), sampling(1, left_alone="no dog"))
    runs.keep(run, 5)
    (summary,) = web.get("/decouple/v1/runs").json()["runs"]
    about = {"id": run.id, "created": run.created, "tab": "img2img"}
    assert summary == {**about, "images": 4, "entities": ["cat", "dog"]}
    told = web.get("/decouple/v1/trace/last").json()
    assert told == web.get(f"/decouple/v1/trace/{run.id}").json()
    assert {key: told[key] for key in about} == about
    assert told["settings"]["loss"] == "iou"
    assert [(one["number"], one["prompt"], one["seed"]) for one in told["images"]] == [
        *((0, "a", 5), (1, "b", 6), (2, "c", 7), (3, "d", 8)),
    ]
    assert [[one["hires"] for one in image["passes"]] for image in told["images"]] == [[False, True]] * 2 + [
        [False]
    ] * 2
    assert told["images"][3]["passes"] == [
        {
            "hires": False,
            "total": 8,
            "stood_aside": "no dog",
            "exact_since": "",
            "presence": None,
            "choice": None,
            "steps": [],
        }
    ]
    assert told["images"][0]["passes"][0]["presence"] == {
        "sigma": 0.5, "scores": {"cat": 0.9, "dog": 0.2}, "chances": None, "weakest": "dog", "closest": ["cat", "dog"],
        "words": "attention weakest for dog",
    }  # fmt: skip
    assert told["images"][0]["passes"][0]["choice"] == {
        "asked": 4, "drawn": 5, "variation": False, "accepted": False, "runs": [],
        "drafts": [{"seed": 4, "scores": {"cat": 0.2}}, {"seed": 5, "scores": {"cat": None}}],
    }  # fmt: skip
    assert told["images"][1]["colours"] == colours(told["images"][1]["entities"])
    (step,) = told["images"][1]["passes"][0]["steps"]
    # Half of the dog's even attention is where all of the cat's is: IoU 0.5 / 1.5; the centres are a quarter apart.
    assert {key: value for key, value in step.items() if key != "before"} == {
        "step": 0, "guided": True, "loss": 1.5, "after": None, "update_norm": 0.0, "taken_back": False, "passes": 1,
    }  # fmt: skip
    assert step["before"]["iou"] == {"cat/dog": pytest.approx(1 / 3, abs=1e-4)}
    assert step["before"]["distance"] == {"cat/dog": pytest.approx(1 / 4, abs=1e-4)}
    assert step["before"]["cc"] == {"cat/dog": pytest.approx(1 / 4, abs=1e-4)}
    assert step["before"]["intensity"] == {"cat": 0.5, "dog": 0.25}


def test_the_table_has_a_row_for_each_figure(runs):
    runs.keep(job(sampling(), sampling(hires=True)), 5)
    answer = client(runs=runs).get("/decouple/v1/trace/last/csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == 2 * 2 * (1 + 4 + 2 * 2)
    found = [row for row in rows if row["measure"] == "intensity" and row["of"] == "dog"]
    assert [(row["image"], row["hires"], row["moment"], row["value"]) for row in found] == [
        (image, hires, "before", "0.25") for image in "01" for hires in "01"
    ]


def test_what_is_no_number_is_null(runs):
    broken = sampling(images=1)
    broken.traces[0].steps[0].loss = float("nan")
    runs.keep(job(broken), 5)
    answer = client(runs=runs).get("/decouple/v1/trace/last")
    assert answer.status_code == 200
    assert answer.json()["images"][0]["passes"][0]["steps"][0]["loss"] is None


def test_a_run_s_maps(runs):
    runs.keep(job(), 5)
    told = client(runs=runs).get("/decouple/v1/maps/last").json()
    assert [len(image["maps"]) for image in told["images"]] == [1, 1, 1, 0]
    (maps,) = told["images"][1]["maps"]
    about = {"hires": False, "moment": "unguided", "step": 0, "height": 2, "width": 2}
    assert maps == {**about, "values": LEFT.tolist()}


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("0/unguided.png", 200, ""), ("0/unguided.png?of=cat", 200, ""), ("0/unguided.png?of=overlap", 200, ""),
        ("0/last.png", 404, "no maps of the moment 'last'"), ("0/unguided.png?hires=true", 404, "hires"),
        ("4/unguided.png", 404, "image 4 is not in this run; it has 4"), ("0/unguided.png?of=bird", 404, "cat, dog"),
        ("3/unguided.png", 404, "no maps"), ("0/middle.png", 422, ""), ("x/unguided.png", 422, ""),
    ],
)  # fmt: skip
def test_a_moment_s_maps_as_a_picture(runs, path, status, words):
    runs.keep(job(), 5)
    answer = client(runs=runs).get(f"/decouple/v1/maps/last/{path}")
    assert answer.status_code == status
    if status == 200:
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).format == "PNG"
    else:
        assert words in answer.text


def test_the_picture_lies_under_its_maps(runs):
    runs.keep(job(), 5)
    web = client(runs=runs)
    over, alone = (
        Image.open(io.BytesIO(web.get(f"/decouple/v1/maps/last/{k}/unguided.png?of=cat").content)) for k in (1, 0)
    )
    assert over.size == (256, 128 + heatmaps.STRIP)
    assert alone.size == (256, 256 + heatmaps.STRIP)


# ---------------------------------------------------------------- live


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_watched_for_ten_seconds_after_a_question():
    clock = Clock()
    live = Live(clock)
    assert live.watched() is False
    live.ask()
    clock.now += 9.9
    assert live.watched() is True
    clock.now += 0.2
    assert live.watched() is False


def test_the_run_that_is_drawn():
    live = Live()
    web = client(live=live, interval_ms=lambda: 250)
    idle = {
        "running": False, "interval_ms": 250, "enabled": True, "id": None, "image": 0, "entities": [], "colours": [],
        "step": 0, "total": 0, "points": [], "maps": None,
    }  # fmt: skip
    assert web.get("/decouple/v1/live").json() == idle
    run = Run(Settings(enabled=True), kept=True, owner=MINE)
    live.begin(run)
    assert web.get("/decouple/v1/live").json() == {**idle, "running": True}
    run.passes = [sampling(2, maps={0: KeptMaps(3, NAMES, LEFT.half())})]
    told = web.get("/decouple/v1/live").json()
    assert told["points"] == [{"step": 0, "loss": 0.5, "iou": pytest.approx(1 / 3, abs=1e-4)}]
    assert told["maps"] == {"height": 2, "width": 2, "values": LEFT.tolist()}
    assert (told["id"], told["image"], told["step"], told["total"]) == (run.id, 4, 3, 8)
    assert told["colours"] == colours(told["entities"])
    run.kept = False
    assert web.get("/decouple/v1/live").json()["id"] is None
    other = Run(Settings(enabled=True))
    live.end(other)
    assert web.get("/decouple/v1/live").json()["running"] is True
    live.end(run)
    assert web.get("/decouple/v1/live").json() == idle


def test_a_run_that_died_is_let_go():
    live = Live()
    run = Run(Settings(enabled=True), [sampling()], owner=MINE)
    live.begin(run)
    del run
    gc.collect()
    assert live.ask(MINE)["running"] is False


def test_nobody_watches_where_the_panel_is_off():
    live = Live()
    run = Run(Settings(enabled=True), [sampling()], owner=MINE)
    live.begin(run)
    told = client(live=live, enabled=lambda: False).get("/decouple/v1/live").json()
    assert (told["enabled"], told["running"], told["points"]) == (False, False, [])
    assert live.watched() is False
    assert client(live=live, busy=lambda: False).get("/decouple/v1/live").json()["running"] is False


def test_the_run_that_is_drawn_is_told_to_whoever_draws_it_only():
    clock = Clock()
    live = Live(clock)
    run = Run(Settings(enabled=True), [sampling()], owner=MINE, task="task(abc)")
    live.begin(run)
    web = client(live=live)
    for headers, task in (({}, ""), ({"X-Decouple-Caller": "somebody else's secret"}, ""), ({}, "task(xyz)")):
        told = TestClient(web.app, headers=headers).get("/decouple/v1/live", params={"task": task}).json()
        assert (told["running"], told["entities"], told["points"], told["id"]) == (False, [], [], None)
        assert live.watched() is False
    assert TestClient(web.app).get("/decouple/v1/live?task=task(abc)").json()["entities"] == ["cat", "dog"]
    assert live.watched() is True
    assert web.get("/decouple/v1/live").json()["running"] is True
    of_nobody = Run(Settings(enabled=True), [sampling()])
    live.begin(of_nobody)
    assert TestClient(web.app).get("/decouple/v1/live?task=").json()["running"] is False


# ---------------------------------------------------------------- whose they are


def test_a_run_is_found_by_its_id_and_last_is_the_caller_s_own(runs):
    mine, theirs, nobodys = job(), job(owner="api:bob"), job(owner="")
    for one in (mine, theirs, nobodys):
        runs.keep(one, 5)
    web = client(runs=runs)
    stranger = TestClient(web.app)
    assert [one["id"] for one in web.get("/decouple/v1/runs").json()["runs"]] == [mine.id]
    assert web.get("/decouple/v1/trace/last").json()["id"] == mine.id
    listed = stranger.get("/decouple/v1/runs").json()
    assert listed["runs"] == []
    assert "Decouple run" in listed["hint"]
    for path in ("trace/last", "trace/last/csv", "maps/last", "maps/last/0/unguided.png", f"trace/{mine.id[:-1]}"):
        answer = stranger.get(f"/decouple/v1/{path}")
        assert answer.status_code == 404
        assert mine.id not in answer.text.replace(mine.id[:-1] + "'", "")
    for run in (mine, theirs, nobodys):  # whoever was given the id
        assert stranger.get(f"/decouple/v1/trace/{run.id}").json()["id"] == run.id
        assert stranger.get(f"/decouple/v1/maps/{run.id}/0/unguided.png").status_code == 200


def test_no_id_can_be_guessed():
    ids = {Run(Settings()).id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) >= 22 for one in ids)  # 128 bits in base 64


def test_a_short_secret_is_refused(runs):
    answer = client(runs=runs).get("/decouple/v1/runs", headers={"X-Decouple-Caller": "short"})
    assert answer.status_code == 422
    assert "X-Decouple-Caller: 5 characters are not allowed; a secret of at least 16" in answer.text


def test_half_characters_of_a_prompt_do_not_spoil_its_trace(runs):
    run = Run(Settings(enabled=True), [sampling(images=1)], owner=MINE)
    p = SimpleNamespace(batch_size=1, all_prompts=["a \ud800 cat"], all_seeds=[5])
    runs.keep(of_job(run, p, "txt2img", {}), 5)
    (image,) = client(runs=runs).get("/decouple/v1/trace/last").json()["images"]
    assert image["prompt"] == "a \\ud800 cat"


def test_these_routes_let_in_whom_the_others_do(runs):
    app = fastapi.FastAPI()
    shown = run_routes.RunsToShow(runs=runs)
    runs.keep(job(), 5)
    rest.add(app, rest.Host(lambda text: [], Path, credentials="ann:secret", runs_to_show=shown))
    web = TestClient(app)
    for path in ("runs", "trace/last", "trace/last/csv", "maps/last", "maps/last/0/unguided.png", "live"):
        assert web.get(f"/decouple/v1/{path}").status_code == 401
        known = {"X-Decouple-Key": callers.PAGE_KEY, "X-Decouple-Caller": SECRET}
        assert web.get(f"/decouple/v1/{path}", headers=known).status_code == 200
        assert web.get(f"/decouple/v1/{path}", headers={"X-Decouple-Caller": SECRET}).status_code == 401
