"""``study drafts``: areas and picks by hand, and a run of the embedded model."""

from __future__ import annotations

import json
import math

import pytest

from lib_decouple.__main__ import main
from lib_decouple.lab.study.drafts import jobs_of, row_of
from lib_decouple.settings import Settings

KEY = ("guided", "all", "lead")


def images(*told: tuple[str, int, float]) -> list[dict]:
    return [{"prompt": prompt, "missing": missing, "scores": {KEY: score}} for prompt, missing, score in told]


def test_only_pictures_of_one_prompt_are_held_against_each_other() -> None:
    """Of the first prompt the whole one scores above one and level with the other that lacks something: 1.5 of 2; of
    the second below: 0 of 1. Its higher score than all of the first's says nothing."""
    found = row_of(KEY, images(("a", 0, 0.5), ("a", 1, 0.5), ("a", 2, 0.1), ("b", 1, 0.9), ("b", 0, 0.8)))
    assert (found["within"], found["pairs"]) == (pytest.approx(1.5 / 3), 3)
    assert (found["pictures"], found["entities"]) == (1, 1)  # of equals the first is drawn
    assert [found[name] for name in ("drafts", "layers", "score")] == list(KEY)


def test_where_all_of_a_prompt_fare_alike_nothing_is_told() -> None:
    found = row_of(KEY, images(("a", 0, 0.5), ("a", 0, 0.1), ("b", 2, 0.2)))
    assert (found["within"], found["pictures"], found["entities"]) == (None, 1, 2)


def test_each_prompt_has_seeds_of_its_own_and_too_many_prompts_are_refused() -> None:
    jobs = jobs_of("tune", 3, 5, 4, Settings())
    assert len({job.prompt.text for job in jobs}) == 5
    assert len({job.seed for job in jobs}) == 20
    assert jobs == jobs_of("tune", 3, 5, 4, Settings())
    with pytest.raises(ValueError, match="prompts: 100000 is not allowed"):
        jobs_of("tune", 3, 100_000, 4, Settings())


def test_guided_and_unguided_drafts_of_the_same_seeds_are_told_apart(tmp_path, capsys) -> None:
    main(["study", "drafts", "--prompts", "2", "--seeds", "2", "--count", "2", "--out", str(tmp_path), "--jobs", "1"])
    report = json.loads((tmp_path / "drafts.json").read_text())
    assert (report["arm"], report["seeds"], len(report["rows"])) == ("com", 2, 2 * 2 * 7)
    for row in report["rows"]:
        assert row["within"] is None or 0 <= row["within"] <= 1
        assert 0 <= row["pictures"] <= row["entities"] <= 4
    text = (tmp_path / "drafts.md").read_text()
    assert text in capsys.readouterr().out
    assert "2 prompts, 2 seeds each, guided by com" in text
    assert not math.isnan(report["rows"][0]["entities"])
