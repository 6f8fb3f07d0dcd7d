import json

import numpy as np
import pytest

from lib_decouple.lab.evaluate.files import reopened, whole_folder, write_whole
from lib_decouple.lab.evaluate.prompts.splits import cases
from lib_decouple.lab.evaluate.statistics import area, mcnemar, share
from lib_decouple.lab.study.missing import arms_from, as_csv, as_markdown, check_plan, summarise
from lib_decouple.settings import Settings


def test_wilson_interval_by_hand():
    # z = 1.96, 8 of 10: centre (0.8 + z²/20) / (1 + z²/10), half width from the same formula.
    z = 1.959963985
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z * (0.8 * 0.2 / 10 + z * z / 400) ** 0.5 / (1 + z * z / 10)
    low, high = share([True] * 8 + [False] * 2).interval
    assert low == pytest.approx(centre - half, abs=1e-9)
    assert high == pytest.approx(centre + half, abs=1e-9)


def test_mcnemar_is_the_binomial_of_the_discordant_pairs():
    # 6 pairs change one way, 1 the other: p = 2 * (C(7,0) + C(7,1)) / 2^7.
    before = [True] * 6 + [False] + [True] * 20
    after = [False] * 6 + [True] + [True] * 20
    assert mcnemar(before, after) == pytest.approx(2 * (1 + 7) / 128)
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError, match="before: 1 results, but after: 2"):
        mcnemar([True], [True, False])


def test_area_under_the_curve_by_hand():
    flags = np.array([1, 1, 0, 0, 0], float)
    # Pairs (missing, whole) with the missing one higher: (5: 1,2,3 -> 3), (2: 1 -> 1, tie with 2 -> ½).
    assert area(flags, np.array([5.0, 2.0, 1.0, 2.0, 3.0])) == pytest.approx((3 + 1.5) / 6)


def record(arm, seed, missing, extra, count=2):
    return {"arm": arm, "count": count, "seed": seed, "missing": missing, "extra": extra, "passes": 3}


def test_summary_pairs_by_seed_and_counts_entities():
    records = [record("plain", s, ["cat"] if s < 4 else [], int(s == 5)) for s in range(8)]
    records += [record("iou", s, ["cat"] if s == 0 else [], int(s == 6)) for s in reversed(range(8))]
    plain, ours = summarise(records)
    assert (plain["missing"], ours["missing"]) == (0.5, 0.125)
    assert ours["removed"] == pytest.approx(0.75)
    assert ours["entities_missing"] == pytest.approx(1 / 16)
    assert ours["missing_p"] == pytest.approx(2 / 8)
    assert (plain["right"], ours["right"]) == (3 / 8, 6 / 8)
    assert "| 2 | iou | 8 | 12.5" in as_markdown([plain, ours])
    assert as_csv([plain, ours]).splitlines()[2].startswith("2,iou,8,0.125")


def test_splits_share_no_prompt_and_no_seed():
    for count in (2, 3):
        tune, report, unseen = (cases(split, count, 300) for split in ("tune", "report", "unseen"))
        sets = [{frozenset(case.entities) for case in split} for split in (tune, report, unseen)]
        seeds = [{case.seed for case in split} for split in (tune, report, unseen)]
        for apart in (sets, seeds):
            assert sum(len(one) for one in apart) == len(set.union(*apart))
        assert report == cases("report", count, 300) == cases("report", count, 400)[:300]
    with pytest.raises(ValueError, match="split: 'all' is not one of tune, report, unseen"):
        cases("all", 2, 1)


def test_log_drops_a_line_cut_by_an_interrupt(tmp_path):
    path = tmp_path / "images.jsonl"
    path.write_text(json.dumps(record("plain", 1, [], 0)) + "\n" + '{"arm": "pl')
    assert [r["seed"] for r in reopened(path)] == [1]
    with path.open("a") as log:
        log.write(json.dumps(record("plain", 2, [], 0)) + "\n")
    assert [r["seed"] for r in reopened(path)] == [1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("iou", "set: 'iou' is not ARM:FIELD=VALUE"),
        ("iuo:size=1", "set: 'iuo:size=1'"),
        ("iou:size", "set: 'size' is not FIELD=VALUE with a JSON value"),
        ("iou:layers=all", "set: 'layers=all' is not FIELD=VALUE with a JSON value"),
        ("iou:siz=1", "siz: no such field"),
    ],
)
def test_a_wrong_arm_of_ones_own_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        arms_from("plain", [text], 2)
    assert arms_from("plain", ['iou:size=0.5;layers="all"'], 2)['iou:size=0.5;layers="all"'].layers == "all"


def test_a_folder_refuses_an_arm_with_other_settings(tmp_path):
    path = tmp_path / "plan.json"
    check_plan(path, {"split": "report", "arms": {"iou": Settings(loss="iou").as_dict()}})
    check_plan(path, {"split": "report", "arms": {"com": Settings(loss="com").as_dict()}})
    with pytest.raises(ValueError, match="arms: 'iou' had other settings"):
        check_plan(path, {"split": "report", "arms": {"iou": Settings(loss="iou", size=0.3).as_dict()}})
    with pytest.raises(ValueError, match=r"split: .* holds 'report', not 'tune'"):
        check_plan(path, {"split": "tune", "arms": {}})
    with pytest.raises(ValueError, match=r"first-seed: .* holds None, not 7"):
        check_plan(path, {"split": "report", "first_seed": 7, "arms": {}})


def test_the_same_prompts_from_other_seeds() -> None:
    own, other = cases("report", 2, 20), cases("report", 2, 20, 7)
    assert [case.entities for case in own] == [case.entities for case in other]
    assert [case.seed for case in other] == list(range(7, 27))
    assert cases("report", 2, 20, own[0].seed) == own
    with pytest.raises(ValueError, match="first-seed: -1 is not allowed"):
        cases("report", 2, 20, -1)


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "out"

    def interrupted():
        with whole_folder(target) as folder:
            (folder / "half.png").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(FileExistsError, match="--overwrite"), whole_folder(target):
        pass
    with whole_folder(target, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_text_is_replaced_in_one_move(tmp_path):
    write_whole(tmp_path / "x" / "a.json", "1")
    write_whole(tmp_path / "x" / "a.json", "2")
    assert [(p.name, p.read_text()) for p in (tmp_path / "x").iterdir()] == [("a.json", "2")]
