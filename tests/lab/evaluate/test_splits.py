"""The embedded model's own prompts and seeds."""

import pytest

from lib_decouple.lab.evaluate.prompts.splits import cases


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


def test_the_same_prompts_from_other_seeds() -> None:
    own, other = cases("report", 2, 20), cases("report", 2, 20, 7)
    assert [case.entities for case in own] == [case.entities for case in other]
    assert [case.seed for case in other] == list(range(7, 27))
    assert cases("report", 2, 20, own[0].seed) == own
    with pytest.raises(ValueError, match="first-seed: -1 is not allowed"):
        cases("report", 2, 20, -1)
