"""What a picture costs, by hand."""

from __future__ import annotations

import pytest

from lib_decouple.hosts.seeds import BegunRun, SeedChoice
from lib_decouple.lab.evaluate.backends.diffusers import drafted
from lib_decouple.lab.evaluate.flops import mean_times_plain, times_plain, was_accepted
from lib_decouple.settings import Settings

SCORES = {3: {"cat": 0.5, "dog": 0.2}, 4: {"cat": 0.6, "dog": 0.7}, 5: {"cat": 0.1, "dog": 0.2}}


def row(passes=0, trace=None, **settings):
    return {"settings": Settings(enabled=True, **settings).as_dict(), "trace": trace, "passes": passes}


@pytest.mark.parametrize(
    ("image", "at_20", "at_50"),
    [
        ({"settings": Settings().as_dict(), "trace": None, "passes": 0}, 1.0, 1.0),
        (row(10), 1 + 0.52 * 10 / 20, 1 + 0.52 * 10 / 50),
        (row(1, {"step": list(range(12))}, gradient="late"), 1 + (0.52 + 0.31 * 11) / 20, 1 + (0.52 + 0.31 * 11) / 50),
        (row(10, layers="early"), 1 + 0.42 * 10 / 20, 1 + 0.42 * 10 / 50),
        (row(10, layers="last"), 1 + 0.52 * 10 / 20, 1 + 0.52 * 10 / 50),
        (row(0, {"draft": {}}, look="choose", drafts=6, gradient="none"), 1 + 24 / 20, 1 + 24 / 50),
        (
            row(10, {"draft": {}, "drafts": 4, "draft_moves": 8}, look="choose"),
            1 + (0.52 * 18 + 12) / 20,
            1 + (0.52 * 18 + 12) / 50,
        ),
        (row(0, {"draft": {}, "drafts": 3, "given_up": 2}, look="insist"), 2 + 12 / 20, 2 + 12 / 50),
        (row(5, {"draft": {}, "drafts": 1, "given_up": 1}, look="insist"), 1.13 * 1.5 + 4 / 20, 1.052 * 1.5 + 4 / 50),
        (row(0, None, look="choose", gradient="none"), 1.0, 1.0),  # nothing to look for, so none was drafted
    ],
    ids=["plain", "guided", "late", "early", "last", "choose", "choose guided", "insist", "insist guided", "no entity"],
)
def test_a_picture_costs_what_its_passes_drafts_and_given_up_runs_do(image, at_20, at_50):
    assert times_plain(image, 20) == pytest.approx(at_20)
    assert times_plain(image, 50) == pytest.approx(at_50)


def test_what_is_not_known_is_not_made_up():
    unknown = row(0, {"draft": {}}, look="insist")  # an older run, which did not count its drafts
    assert times_plain(unknown, 20) is None
    assert times_plain(row(None), 20) is None
    assert mean_times_plain([row(10), unknown]) is None
    assert mean_times_plain([]) is None
    assert mean_times_plain([row(10), row(0)]) == pytest.approx({20: 1.13, 50: 1.052})


@pytest.mark.parametrize(
    ("runs", "drawn", "given_up"), [((), 3, 0), ((3,), 3, 0), ((3, 4), 4, 1), ((3, 4), 3, 2), ((5, 3, 4), 4, 2)]
)
def test_a_run_that_was_given_up_is_counted_and_so_is_the_surest_one_that_is_drawn_anew(runs, drawn, given_up):
    begun = tuple(BegunRun(seed, {"cat": 0.9}) for seed in runs)
    found = drafted(SeedChoice(3, drawn, SCORES, accepted=True, runs=begun, moves=6))
    assert found == {"draft": SCORES[drawn], "drafts": 3, "draft_moves": 6, "accepted": True, "given_up": given_up}
    assert drafted(None) == drafted(SeedChoice(3, None, SCORES)) == {}


def test_only_of_what_was_insisted_on_it_is_told_whether_a_draft_was_accepted():
    assert was_accepted(row(0, {"accepted": False}, look="insist")) is False
    assert was_accepted(row(0, {"accepted": False}, look="choose")) is None
    assert was_accepted(row(0, {}, look="insist")) is None
