"""The report: its figures against hand-computed ones, its two files, and its look in a real browser."""

from __future__ import annotations

import json
import math
import random
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("jinja2", reason="jinja2 is not installed")
pytest.importorskip("statsmodels", reason="statsmodels is not installed")
pytest.importorskip("krippendorff", reason="krippendorff is not installed")
pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")

from markdown_it import MarkdownIt

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate.heat import maps_of, overlay
from lib_decouple.lab.evaluate.rate import arms_of
from lib_decouple.lab.evaluate.report import THUMB, Table, accepted_none, commands, fenced, literal
from lib_decouple.lab.evaluate.results import (
    JudgeNote,
    calibration,
    costs,
    figures,
    in_turn,
    judge_notes,
    moves,
    people,
    telling,
)
from tests.browser import chromium

from .runs import ARMS, make_run


@pytest.fixture
def store(tmp_path):
    """Plain misses the dog in every first prompt's image and the ball in one of three; zebracom heals the dogs and
    loses a frog; quaggaiou changes nothing."""
    own = make_run(tmp_path / "run")
    scores = {}
    for row in own.images():
        cat = row["entities"][0] == "cat"
        missing = {
            "plain": {"dog"} if cat else ({"ball"} if row["seed"] == 0 else set()),
            "zebracom": set() if cat else ({"frog"} if row["seed"] == 1 else set()),
        }
        gone = missing.get(row["arm"], missing["plain"])
        scores[row["id"]] = {e: float(e not in gone) for e in row["entities"]} | {"": float(not gone)}
    own.put_scores("drawn", scores)
    own.put_note("judge:drawn", {"source": "", "threshold": 0.5})
    return own


def figure_of(store, judge, name):
    return next(f for f in figures(store, "plain") if (f.judge, f.name) == (judge, name))


def test_rates_and_changes_by_hand(store):
    lines = {line.arm: line for line in figure_of(store, "drawn", "missing something").lines}
    assert list(lines) == list(ARMS)
    assert lines["plain"].estimate.value == pytest.approx(4 / 6)
    assert (lines["plain"].estimate.images, lines["plain"].estimate.prompts) == (6, 2)
    assert lines["zebracom"].estimate.value == pytest.approx(1 / 6)
    assert lines["zebracom"].change.difference.value == pytest.approx(-3 / 6)
    assert lines["zebracom"].change.p_images == pytest.approx(2 * 6 / 2**5)  # 4 healed, 1 lost
    assert lines["quaggaiou"].change.difference.value == 0
    assert lines["zebracom"].p_images == pytest.approx(2 * 2 * 6 / 2**5)  # two arms
    assert lines["plain"].p is lines["plain"].p_images is None
    assert lines["quaggaiou"].p == 1
    right = {line.arm: line.estimate.value for line in figure_of(store, "drawn", "exactly right").lines}
    assert right["plain"] == pytest.approx(2 / 6)


def test_costs_stand_beside_and_are_not_made_up(store):
    found = costs(store.images(), "plain")
    assert found[2, "plain"] == type(found[2, "plain"])(0.0, 1.0, 1.0, {20: 1.0, 50: 1.0})
    guided = found[2, "zebracom"]
    assert (guided.passes, guided.seconds, guided.times) == (8.0, 2.0, 2.0)
    assert guided.flops == pytest.approx({20: 1 + 0.52 * 8 / 20, 50: 1 + 0.52 * 8 / 50})
    rows = [{**row, "passes": None, "seconds": None} for row in store.images()]
    assert costs(rows, "plain")[2, "zebracom"] == type(found[2, "plain"])(None, None, None)


def test_of_an_arm_that_insists_it_is_told_how_many_had_no_draft_accepted(store):
    rows = [
        {**row, "settings": {"look": "insist"}, "trace": {"draft": {}, "drafts": 4, "accepted": row["seed"] == 0}}
        for row in store.images()
        if row["arm"] == "zebracom"
    ]
    told = accepted_none([*rows, *(row for row in store.images() if row["arm"] == "plain")])
    assert told == ["zebracom: 4 of 6 images were drawn though none of their drafts was accepted."]
    assert accepted_none(store.images()) == []


def test_the_worst_prompts_come_first_and_moves_are_counted(store):
    prompts, harmed, helped = moves(store, judge_notes(store)["drawn"], "plain")
    # In frogs zebracom heals one and loses one: no change; in cats it heals all.
    assert [p.prompt for p in prompts] == ["a frog and a ball", "a cat and a dog"]
    assert prompts[0].change == pytest.approx(0)
    assert prompts[1].after == {"zebracom": 0.0, "quaggaiou": 1.0}
    assert prompts[1].change == pytest.approx(-0.5)
    assert [(m.after["arm"], m.after["seed"], m.missing_after) for m in harmed] == [("zebracom", 1, ("frog",))]
    assert len(helped) == 4
    assert {m.missing_before for m in helped} == {("dog",), ("ball",)}


def test_the_pictures_beside_the_markdown_are_the_cases(store, tmp_path):
    assert main(["evaluate", "report", str(store.folder), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    _, harmed, helped = moves(store, judge_notes(store)["drawn"], "plain")
    for name, cases in (("harmed", harmed), ("helped", in_turn(helped, 8))):
        assert f"![{name}]({name}.webp)" in text
        with Image.open(tmp_path / f"{name}.webp") as opened:
            image = np.asarray(opened.convert("RGB")).astype(int)
        step = 2 * THUMB + 2 + 12
        assert image.shape[:2] == (THUMB + 36, len(cases) * step - 12)
        for place, moved in enumerate(cases):
            for side, row in enumerate((moved.before, moved.after)):
                with Image.open(store.folder / row["file"]) as drawn:
                    wanted = np.asarray(drawn.convert("RGB"))[16, 16]
                x = place * step + side * (THUMB + 2) + 16
                assert np.abs(image[14 + 16, x] - wanted).max() < 12
    # Where nothing is harmed any more, no old picture stays.
    store.put_scores("drawn", {row["id"]: dict.fromkeys(row["entities"], 1.0) for row in store.images()})
    assert main(["evaluate", "report", str(store.folder), "--out", str(tmp_path)]) == 0
    assert list(tmp_path.glob("*.webp")) == []
    assert ".webp" not in (tmp_path / "report.md").read_text()


def test_shown_cases_take_turns_between_arms(store):
    _, _, helped = moves(store, judge_notes(store)["drawn"], "plain")
    twice = [*helped, *[type(h)(h.before, {**h.after, "arm": "other"}, h.missing_before, ()) for h in helped]]
    assert [m.after["arm"] for m in in_turn(twice, 3)] == ["zebracom", "other", "zebracom"]
    assert len(in_turn(twice, 100)) == 8
    # An arm's worst is taken and stands first, though drawn last.
    worst = type(helped[0])(helped[0].before, {**helped[0].after, "arm": "other"}, ("cat", "dog"), ())
    assert in_turn([*twice, worst], 2) == [worst, twice[0]]


def test_a_judges_model_stands_beside_its_figures_and_random_weights_are_no_result(store, tmp_path):
    scores = {row["id"]: {e: 0.25 for e in row["entities"]} | {"": 0.5} for row in store.images()}
    for name, note in {
        "clip:some/hub-model": {"source": "some/hub-model", "threshold": None},
        "vqa:/models/secret-place/blip": {"source": "/models/secret-place/blip", "threshold": 0.5},
        "vqa:/models/rand": {"source": "/models/rand", "threshold": 0.5, "trained": False},
    }.items():
        store.put_scores(name, scores)
        store.put_note(f"judge:{name}", note)
    store.put_scores("unnoted", scores)
    notes = judge_notes(store)
    assert [notes[n].label for n in sorted(notes)] == [
        "clip (some/hub-model)",
        "drawn",
        "unnoted (model not recorded)",
        "vqa (rand): RANDOM WEIGHTS, NOT A RESULT",
        "vqa (blip)",
    ]
    assert telling(notes) == ["drawn", "vqa:/models/secret-place/blip"]
    assert {f.name for f in figures(store, "plain") if f.judge.startswith("clip")} == {
        "least-served entity",
        "whole prompt",
    }
    page, text = written(store, tmp_path)
    assert "clip (some/hub-model): least-served entity" in text
    assert "RANDOM WEIGHTS, NOT A RESULT" in page
    assert not [line for line in text.splitlines() if line.startswith("- ") and "RANDOM" in line]
    assert "secret-place" not in page + text
    assert "--judges clip:some/hub-model,drawn,unnoted,vqa:FOLDER/rand,vqa:FOLDER/blip" in text


def test_a_file_of_this_machine_is_named_without_its_folder(store):
    store.put_note(
        "commands",
        ["evaluate run /home/me/plan.toml --out 'C:\\\\runs\\\\mine' --workers 2", "evaluate run docs/a.toml"],
    )
    store.put_note("imports", ["evaluate import RUN '/tmp/of theirs.csv'"])
    lines = commands(store, "plain", ()).splitlines()
    assert lines[:3] == [
        "evaluate run plan.toml --out mine --workers 2",
        "evaluate run docs/a.toml",
        "evaluate import RUN 'of theirs.csv'",
    ]


def written(store, folder, *options):
    assert main(["evaluate", "report", str(store.folder), "--out", str(folder / "out"), *options]) == 0
    return [(folder / "out" / f"report.{end}").read_text(encoding="utf-8") for end in ("html", "md")]


def test_the_page_is_one_file_that_asks_for_no_other(store, tmp_path):
    (store.folder / "calibration.json").write_text(
        json.dumps({"drawn": {n: calibrated(0.9) for n in ("precision", "recall")}})
    )
    page, text = written(store, tmp_path)
    assert len(page) < 2_000_000
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "<script" not in page
    assert "url(" not in page.replace("url(#", "")
    for said in ("<svg", "Harmed, 1 of 1", "Helped, 4 of 4", "of what it calls missing, 90.0 [80.0, 95.0] % is"):
        assert said in page
    assert page.count("<img ") == 2 * (1 + 4)
    assert "| 2 | zebracom | 6 | 2 | 16.7 [0.0, 33.3] | -50.0 [-100.0, 0.0] | 1 | 0.75 |" in text
    assert "plain showed all and the arm did not in 1 pairs of pictures" in text
    assert "the arm showed all and plain did not in 4." in text
    assert "quaggaiou" in text
    assert "Nobody has rated" in text
    assert "Better after correction: none. Worse after correction: none. No change that holds: 2 of 2." in text
    assert "python -m lib_decouple evaluate report RUN --against plain" in text
    # The same run gives the same file.
    assert written(store, tmp_path)[0] == page


def calibrated(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.05, "images": 9, "prompts": 9}


def test_calibration_that_says_more_is_read_too(tmp_path):
    path = tmp_path / "calibration.json"
    assert calibration(path) == {}
    own = {"precision": calibrated(0.5), "recall": calibrated(0.6), "threshold": 0.2, "chosen": True, "auc": 0.7}
    path.write_text(json.dumps({"clip:x": own}))
    found = calibration(path)["clip:x"]
    assert found["recall"].value == 0.6
    assert (found["threshold"], found["chosen"], found["auc"]) == (0.2, True, 0.7)


def test_a_judges_error_says_on_what_and_at_which_border(store, tmp_path):
    own = {n: calibrated(0.5) for n in ("precision", "recall")}
    store.put_scores("clip:hub/m", {row["id"]: {e: 0.2 for e in row["entities"]} for row in store.images()})
    store.put_note("judge:clip:hub/m", {"source": "hub/m", "threshold": None})
    known = {
        "drawn": own | {"threshold": 0.5, "chosen": False, "auc": math.nan, "images": "drawn scenes", "n": 40},
        "clip:hub/m": own | {"threshold": 0.21, "chosen": True, "auc": 0.7, "images": "/some/where/photos", "n": 9},
    }
    (store.folder / "calibration.json").write_text(json.dumps(known))
    page, text = written(store, tmp_path)
    assert "of what it calls missing, below 0.21 (the best border on others), 50.0 [40.0, 55.0] % is" in text
    assert "| clip (hub/m) | 9 of the labelled images of photos | 50.0 [40.0, 55.0] |" in text
    assert "| drawn | 40 of drawn scenes |" in text
    assert "/some/where" not in page + text


def test_text_of_users_is_escaped(store, tmp_path):
    row = store.images()[0]
    store.put_image({k: row[k] for k in ("prompt_id", "arm", "seed", "file", "entities", "count")} | {"prompt": "<b>x"})
    page, _ = written(store, tmp_path)
    assert "&lt;b&gt;x" in page
    assert "<b>x" not in page


@given(st.text(alphabet="a1 \n\\`*_{}[]<>()#+-.!|~&;:/@$\"'=^é😀", max_size=30))
@example("![x](http://a/b) [x](y) [x][y] [x]: y")
@example("<script>alert(1)</script> <b>x</b> &lt; &#60; https://a.b www.a.b a@b.c")
@example("a | b \\| c `x` ``y`` ~~z~~ **k** _i_ __j__ $m$ *")
@example("end \\")
def test_markdown_shows_a_text_as_it_stands(text):
    """Judged by markdown-it-py, which follows CommonMark's own tests."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    wanted = escape(" ".join(f"x {text} x".split()), quote=False).replace('"', "&quot;")
    assert reader.render(literal(f"x {text} x")) == f"<p>{wanted}</p>\n"
    shown = reader.render(Table(["head", "other"], [[f"x {text} x", "second"]]).markdown())
    assert f"<td>{wanted}</td>\n<td>second</td>" in shown


@pytest.mark.parametrize("text", ["a\n```\n<b>\n````\nb", "", "`", "~~~\n```toml"])
def test_a_block_of_code_holds_whatever_it_holds(text):
    reader = MarkdownIt("commonmark")
    (block,) = reader.parse(fenced(text, "toml"))
    assert (block.type, block.content, block.info) == ("fence", text + "\n" if text else "\n", "toml")


def test_a_run_s_own_words_are_no_markdown(store, tmp_path):
    row = store.images()[0]
    kept = {k: row[k] for k in ("prompt_id", "arm", "seed", "file", "entities", "count")}
    store.put_image(kept | {"prompt": "[click](javascript:x) <img src=x> `c`"})
    _, text = written(store, tmp_path)
    assert r"[click\](javascript:x) \<img src=x> \`c\`" in text
    assert "[click](" not in text


def test_people_by_hand(store):
    """Three raters; on each of zebracom's six pairs two prefer it and one says both; ticks tell what was seen."""
    rows = {(r["prompt_id"], r["seed"], r["arm"]): r for r in store.images()}
    assert people(store, "plain") is None
    for (prompt, seed, arm), row in rows.items():
        if arm == "zebracom":
            base = rows[prompt, seed, "plain"]
            for rater in ("ann", "bob", "cleo"):
                choice = "both" if rater == "cleo" else "zebracom"
                ticks = {"plain": row["entities"][:1], "zebracom": list(row["entities"])}
                store.put_rating((base["id"], row["id"]), rater, choice, ticks)
    base, other = rows["a cat and a dog", 0, "plain"], rows["a cat and a dog", 0, "quaggaiou"]
    store.put_rating((base["id"], other["id"]), "ann", "plain", {})
    found = people(store, "plain")
    assert (found.raters, found.ratings) == (3, 19)
    zebra, quagga = found.rows
    assert (zebra.arm, zebra.base, zebra.raters) == ("zebracom", "plain", 3)
    own = zebra.preference
    assert (own.wins, own.losses, own.both, own.neither) == (12, 0, 6, 0)
    assert own.share.value == pytest.approx((12 + 3) / 18)
    assert own.p == pytest.approx(0.5)  # two prompts: 2 / 2^2
    assert zebra.p == pytest.approx(1.0)  # two comparisons
    assert own.p_choices == pytest.approx(2 / 2**12)
    assert (zebra.before.value, zebra.after.value, zebra.change.difference.value) == (1.0, 0.0, -1.0)
    # Krippendorff (2011), nominal: 6 pairs of two values against one give 6 * 4 / 2 differing, of 12 and 6 in all.
    assert zebra.agreement == pytest.approx(1 - (18 - 1) * 12 / (2 * 12 * 6))
    assert quagga.before is None
    assert quagga.preference.losses == 1
    assert math.isnan(quagga.agreement)
    # Raters saw a thing missing in all of plain's six, four of which the detector calls.
    precision, recall = found.judges["drawn"]
    assert recall.value == pytest.approx(4 / 6)
    assert precision.value == pytest.approx(
        12 / 15
    )  # plain's 4 by three raters; zebracom's lost frog was ticked by all


def test_raters_who_flip_coins_do_not_agree(tmp_path):
    """Each arm has pairs of its own, so arms' names as choices would look like agreement (about 0.27 here)."""
    store, rng = make_run(tmp_path / "run", seeds=15, arms=("plain", "a", "b", "c", "d")), random.Random(2)
    rows = {(r["prompt_id"], r["seed"], r["arm"]): r["id"] for r in store.images()}
    for (prompt, seed, arm), image in rows.items():
        if arm != "plain":
            for rater in ("ann", "bob"):
                store.put_rating((rows[prompt, seed, "plain"], image), rater, rng.choice(("plain", arm)), {})
    assert abs(people(store, "plain").agreement) < 0.18  # two standard errors of 120 pairs


def test_the_plans_first_arm_is_what_others_are_compared_with(store, tmp_path):
    assert store.base_arm() == "plain"
    store.put_note("plan", {"arms": [{"name": "quaggaiou"}, {"name": "plain"}]})
    assert arms_of(store, None)[0] == store.base_arm() == "quaggaiou"
    assert "evaluate report RUN --against quaggaiou" in written(store, tmp_path)[1]
    assert "evaluate report RUN --against plain" in written(store, tmp_path, "--against", "plain")[1]


def test_images_that_guidance_left_alone_are_told_by_arm(store, tmp_path):
    for row in store.images()[1:3]:
        own = {k: row[k] for k in ("prompt_id", "prompt", "arm", "seed", "file", "entities", "count")}
        store.put_image(own | {"stood_aside": "out of memory"})
    told = "| guidance stood aside | zebracom: 1 images; quaggaiou: 1 images |"
    assert told in written(store, tmp_path)[1]


def test_people_stand_in_both_files(store, tmp_path):
    rows = {(r["prompt_id"], r["seed"], r["arm"]): r for r in store.images()}
    for seed in range(3):
        pair = rows["a cat and a dog", seed, "plain"]["id"], rows["a cat and a dog", seed, "zebracom"]["id"]
        store.put_rating(pair, "ann", "zebracom", {"plain": ["cat"], "zebracom": ["cat", "dog"]})
    page, text = written(store, tmp_path)
    assert "| zebracom | plain | 100.0 [one prompt] | 3 | 0 | 0 | 0 | 1 | 1 | – |" in text
    assert "3 blind choices of 1 raters" in page
    assert "ann" not in re.sub(r"[a-z]*(plann|channel|cann)[a-z]*", "", text)  # raters are not named


def test_what_cannot_be_reported_is_told_by_name(store, tmp_path, capsys):
    empty = make_run(tmp_path / "empty")
    for options, said in (
        ((empty.folder,), "run: no image is judged yet"),
        ((store.folder, "--against", "com"), "against: 'com' is not one of plain, zebracom, quaggaiou"),
        ((store.folder, "--by", "clip"), "by: 'clip' is not one of drawn"),
        ((store.folder, "--worst", "-1"), "worst: -1 is not allowed; 0 or more"),
        ((tmp_path / "nothing",), "run: no evaluate.sqlite"),
    ):
        assert main(["evaluate", "report", *map(str, options)]) == 2
        assert said in capsys.readouterr().err
    (store.folder / store.images()[0]["file"]).write_bytes(b"no picture")
    assert main(["evaluate", "report", str(store.folder)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (store.folder / "report.html").exists()


def test_stored_maps_are_shown(store, tmp_path):
    row = store.images()[0]
    maps = np.arange(2 * 4 * 4, dtype=np.float16).reshape(2, 4, 4)
    np.savez_compressed((store.folder / row["file"]).with_suffix(".maps.npz"), maps=maps)
    found = maps_of(store, store.images())
    assert list(found) == [row["id"]]
    assert np.array_equal(found[row["id"]], maps.astype(np.float32))
    page, _ = written(store, tmp_path)
    assert page.count("<img ") == 2 * (1 + 4) + 2
    assert "cat 15.00" in page


def test_heat_lies_where_the_map_is_high():
    attention = np.zeros((8, 8), np.float32)
    attention[1:3, 1:3] = 0.4
    found = np.asarray(overlay(Image.new("RGB", (64, 64), (10, 90, 200)), attention), float)
    grey = np.asarray(Image.new("RGB", (1, 1), (10, 90, 200)).convert("L"), float)[0, 0]
    assert np.abs(found[40:, 40:] - grey).max() <= 1
    assert np.ptp(found[12, 12]) > 60  # coloured


def test_the_embedded_model_is_drawn_again_for_its_maps(tmp_path):
    from lib_decouple.hosts.checkpoints import open_pipeline
    from lib_decouple.hosts.diffusers import Drawing
    from lib_decouple.lab.evaluate.heat import _digest
    from lib_decouple.lab.evaluate.store import Store
    from lib_decouple.settings import Settings

    own, pipe = Store(tmp_path / "run", create=True), open_pipeline(None)
    for arm, settings in {"plain": Settings(), "com": Settings(enabled=True, loss="com", steps=1)}.items():
        drawn = Drawing(
            pipe, ["a cat and a dog"], [["cat", "dog"]], settings, seeds=[3], steps=4, guidance_scale=3.0
        ).picture()
        drawn.images[0].save(own.folder / f"{arm}.png")
        own.put_image(
            {
                "prompt_id": "1", "prompt": "a cat and a dog", "entities": ["cat", "dog"], "count": 2, "arm": arm,
                "seed": 3, "file": f"{arm}.png", "settings": settings.as_dict(), "checkpoint": _digest()[:10],
                "sampling": {"steps": 4, "cfg": 3.0, "negative": ""},
            }
        )  # fmt: skip
    rows = own.images()
    found = maps_of(own, rows)
    assert {maps.shape for maps in found.values()} == {(2, 16, 16)}
    assert set(found) == {row["id"] for row in rows}
    assert all(0 < maps.max() <= 1 for maps in found.values())
    # Another picture there: no maps rather than another picture's.
    Image.new("RGB", (96, 96), "red").save(own.folder / "plain.png")
    assert list(maps_of(own, rows)) == [rows[1]["id"]]
    assert maps_of(own, [{**row, "checkpoint": "0" * 10} for row in rows]) == {}


def test_a_judge_without_a_note_makes_no_missing_rate():
    assert JudgeNote("drawn").threshold is None
    assert telling({"drawn": JudgeNote("drawn", known=False)}) == []


# In a browser.


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_and_reads(store, tmp_path, width, theme):
    written(store, tmp_path)
    with chromium() as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(Path(tmp_path / "out" / "report.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        back, text, drawn = browser.execute_script(
            "const of = (e, name) => getComputedStyle(e)[name].match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b);"
            "return [of(document.body, 'backgroundColor'), of(document.body, 'color'),"
            " of(document.querySelector('svg text'), 'fill') || of(document.querySelector('svg text'), 'color')]"
        )
        assert (back > 600) == (theme == "light")
        assert abs(back - text) > 400
        assert abs(back - drawn) > 400
        assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
        assert browser.get_log("browser") == []
