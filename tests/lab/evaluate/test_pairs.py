"""A judged run picture by picture."""

import csv
import json

import pytest

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate import pairs
from lib_decouple.lab.evaluate.judges.base import COLOUR, EXTRA
from lib_decouple.lab.evaluate.pairs import as_csv, as_markdown, summarise

from .runs import make_run


def record(arm, seed, missing, extra, count=2, **more):
    own = {"arm": arm, "count": count, "prompt": "", "seed": seed, "missing": missing, "extra": extra, "passes": 3}
    return {**own, **more}


def test_pairs_are_by_seed_and_entities_are_counted():
    records = [record("plain", s, ["cat"] if s < 4 else [], int(s == 5)) for s in range(8)]
    records += [record("iou", s, ["cat"] if s == 0 else [], int(s == 6)) for s in reversed(range(8))]
    plain, ours = summarise(records)
    assert (plain["missing"], ours["missing"]) == (0.5, 0.125)
    assert ours["removed"] == pytest.approx(0.75)
    assert ours["entities_missing"] == pytest.approx(1 / 16)
    assert ours["missing_p"] == pytest.approx(2 / 8)
    assert (plain["right"], ours["right"]) == (3 / 8, 6 / 8)
    assert "missing_p" not in plain
    text = as_markdown([plain, ours])
    head = (
        "| entities | arm | N | missing % | p | entities brought back % | extra % | p | exactly right % | p | passes |"
    )
    assert text.startswith(f"{head}\n|---|")
    assert "| 2 | iou | 8 | 12.5 [2.2, 47.1] | 0.2 | 75 |" in text
    assert as_csv([plain, ours]).splitlines()[2].startswith("2,iou,8,0.125")


def test_cost_stands_beside_gain_and_what_no_draft_was_accepted_for_is_counted():
    own = {"flops_20": 1.5, "flops_50": 1.2}
    records = [record("plain", s, [], 0, flops_20=1.0, flops_50=1.0, accepted=None) for s in range(4)]
    records += [record("insist", s, [], 0, **own, accepted=s > 0) for s in range(4)]
    records += [record("choose", s, [], 0, flops_20=None, flops_50=None, accepted=None) for s in range(4)]
    plain, insist, choose = summarise(records)
    assert [(row.get("flops_20"), row.get("not_accepted")) for row in (plain, insist, choose)] == [
        (1.0, None), (1.5, 1), (None, None),
    ]  # fmt: skip
    head, _, *lines = as_markdown([plain, insist, choose]).splitlines()
    assert head.endswith("| passes | FLOPs x plain of 20 steps | FLOPs x plain of 50 steps | no draft accepted |")
    assert [line.split("|")[-4:-1] for line in lines] == [
        [" 1.00 ", " 1.00 ", "  "], [" 1.50 ", " 1.20 ", " 1 "], ["  ", "  ", "  "],
    ]  # fmt: skip


def test_the_same_seed_of_another_prompt_is_another_pair():
    records = [record("plain", 1, [], 0, prompt="a"), record("plain", 1, ["cat"], 0, prompt="b")]
    records += [record("iou", 1, ["cat"], 0, prompt="a"), record("iou", 1, ["cat"], 0, prompt="b")]
    plain, ours = summarise(records)
    assert (plain["n"], ours["n"], ours["missing"], ours["removed"]) == (2, 2, 1.0, -1.0)


def test_what_is_brought_back_has_an_interval_over_prompts():
    records = [record("plain", s, ["cat"], 0, prompt=name) for name in "abcd" for s in range(4)]
    records += [record("iou", s, ["cat"] * (name == "a"), 0, prompt=name) for name in "abcd" for s in range(4)]
    plain, ours = summarise(records)
    # Four prompts, of which one keeps lacking: by prompts far less is known than by its sixteen pictures.
    assert ours["removed"] == 0.75
    assert ours["removed_low"] <= 0.25
    assert ours["removed_high"] == 1
    assert f"| 75 [{100 * ours['removed_low']:.0f}, 100] |" in as_markdown([plain, ours])


def test_a_wrong_colour_counts_of_things_that_are_there():
    told = [record("plain", s, [], 0, set="object-object", wrong={"car": s < 3, "bow": False}) for s in range(4)]
    told += [record("plain", s, ["dog"], 0, set="animal-animal") for s in range(2)]
    (animals, objects) = summarise(told, by="set")
    assert (animals["set"], animals["missing"], animals["right"], "colour" in animals) == ("animal-animal", 1, 0, False)
    assert (objects["colour"], objects["missing"], objects["right"]) == (3 / 8, 0, 0.25)
    lines = as_markdown([animals, objects]).splitlines()
    assert lines[0].startswith(
        "| set | arm | N | missing % | p | entities brought back % | extra % | p | wrong colour of things there % |"
    )
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "| object-object | plain | 4 | 0.0 [0.0, 49.0] |  |  | 0.0 [0.0, 49.0] |  | 37.5 [13.7, 69.4] |" in lines[3]


def test_colours_are_compared_thing_by_thing_where_both_arms_show_it():
    # Plain lacks the car in half of the images, and has it in its colour where it is there.
    plain = [record("plain", s, ["car"] * (s < 4), 0, wrong={} if s < 4 else {"car": False}) for s in range(8)]
    ours = [record("com", s, [], 0, wrong={"car": s < 5}) for s in range(8)]
    base, row = summarise([*plain, *ours])
    assert (base["colour"], row["colour"]) == (0, 5 / 8)
    assert row["colour_p"] == 1  # of the four in both only one changed
    worse = [record("com", s, [], 0, wrong={"car": s > 1}) for s in range(8)]
    assert summarise([*plain, *worse])[1]["colour_p"] == pytest.approx(2 / 2**4)


def test_the_command_takes_any_run_that_a_judge_has_scored(tmp_path, capsys):
    store = make_run(tmp_path / "run", seeds=4)
    run = str(store.folder)
    assert main(["evaluate", "pairs", run]) == 2
    assert "no judge here says what is missing" in capsys.readouterr().err
    store.put_note("judge:drawn", {"source": "", "threshold": 0.5})
    for row in store.images():
        lost = row["arm"] == "plain" or row["seed"] == 3
        first, second = row["entities"]
        store.put_scores(
            "drawn", {row["id"]: {first: float(not lost), second: 1.0, EXTRA: 2.0, f"{COLOUR}{second}": 1.0}}
        )
    assert main(["evaluate", "pairs", run, "--out", str(tmp_path / "out")]) == 0
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert [(row["arm"], row["n"], row["missing"]) for row in rows] == [
        ("plain", "8", "1.0"), ("zebracom", "8", "0.25"), ("quaggaiou", "8", "0.25"),
    ]  # fmt: skip
    assert float(rows[1]["missing_p"]) == pytest.approx(2 / 2**6)
    assert [rows[1][name] for name in ("extra", "right", "colour", "passes")] == ["1.0", "0.0", "0.0", "8.0"]
    assert float(rows[1]["flops_20"]) == pytest.approx(1 + 0.52 * 8 / 20)
    report = json.loads((tmp_path / "out/results.json").read_text())
    assert report["settings"]["2 zebracom"] == {"loss": "zebracom"}
    assert (tmp_path / "out/results.png").stat().st_size > 1000
    assert main(["evaluate", "pairs", run, "--against", "zebracom"]) == 0
    assert pairs.records(store)[0]["missing"] == ["cat"]
    for given, words in (
        (["--against", "com"], "against: 'com' is not one of plain"),
        (["--judge", "x"], "judge: 'x'"),
    ):
        assert main(["evaluate", "pairs", run, *given]) == 2
        assert words in capsys.readouterr().err
