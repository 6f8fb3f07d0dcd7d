import math

import numpy as np
import pytest
from scipy import stats

from lib_decouple.lab.evaluate.statistics import (
    agreement,
    area,
    area_interval,
    area_within,
    brought_back,
    change,
    detectable,
    holm,
    mcnemar,
    mean,
    power,
    preference,
    share,
    smallest_effect,
)


def test_the_interval_is_over_prompts_not_images():
    # Ten prompts whose ten images are all alike know no more than ten images do.
    values, prompts = (
        [float(p < 5) for p in range(10) for _ in range(10)],
        [str(p) for p in range(10) for _ in range(10)],
    )
    alike, single = mean(values, prompts), mean(values[::10], prompts[::10])
    assert (alike.value, alike.images, alike.prompts) == (0.5, 100, 10)
    assert (alike.low, alike.high) == (single.low, single.high)
    apart = mean(values, [str(i) for i in range(100)])
    assert apart.high - apart.low < 0.6 * (alike.high - alike.low)


def test_no_event_is_no_certainty():
    none = mean([0.0] * 20, [str(i) for i in range(20)])
    assert none.low == 0
    assert none.high == pytest.approx(3.8415 / (20 + 3.8415), abs=1e-3)  # Wilson for 0 of 20: z² / (n + z²)
    assert math.isnan(mean([0.0, 1.0], ["a", "a"]).low)
    with pytest.raises(ValueError, match="values: empty"):
        mean([], [])


def test_a_paired_change_by_hand():
    prompts = list("abcdefg")
    found = change([1] * 7, [0] * 7, prompts)
    assert found.difference.value == -1
    assert found.p == pytest.approx(2 / 2**7)
    assert found.p_images == pytest.approx(2 / 2**7)
    assert change([0, 1], [0, 1], ["a", "b"]).p == 1
    assert change([0.2, 0.4], [0.3, 0.5], ["a", "b"]).p_images is None
    # Prompts that all change alike tell nothing of how others would: no interval rather than one of no width.
    assert found.difference.percent() == "-100.0 [no spread]"
    assert change([1] * 7, [0] * 7, ["a"] * 7).difference.percent() == "-100.0 [one prompt]"
    # All seven images of one prompt: image by image it looks sure, by prompts nothing is known.
    assert change([1] * 7, [0] * 7, ["a"] * 7).p == 1


def test_flips_are_exact_up_to_fourteen_prompts_and_see_small_p_beyond():
    assert change([1] * 14, [0] * 14, [str(i) for i in range(14)]).p == pytest.approx(2 / 2**14)
    assert change([1] * 40, [0] * 40, [str(i) for i in range(40)]).p <= 2 / 20_000


def test_holm_by_hand():
    pytest.importorskip("statsmodels")
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_preference_counts_ties_as_half():
    found = preference(["win"] * 6 + ["loss"] + ["both"] * 2 + ["neither"], [str(i) for i in range(10)])
    assert found.share.value == pytest.approx(0.75)
    assert found.p == found.p_choices == pytest.approx(2 * (1 + 7) / 128)
    assert found.share.low < 0.75 < found.share.high
    with pytest.raises(ValueError, match="'left' is not one of win, loss"):
        preference(["left"], ["a"])


def test_agreement_on_krippendorffs_own_example():
    pytest.importorskip("krippendorff")
    # Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", example B: 1 - 19 * 4 / (14 * 6).
    first, second = "0100000010", "1110010000"
    ratings = [(r, str(i), c) for r, row in (("x", first), ("y", second)) for i, c in enumerate(row)]
    assert agreement(ratings) == pytest.approx(0.095, abs=5e-4)
    assert math.isnan(agreement([("x", "1", "a"), ("x", "2", "b")]))


def test_the_sign_test_and_the_flips_of_prompts_part_where_choices_come_in_prompts():
    # Eight choices for an arm, all on two prompts: sure by choices, nothing by prompts.
    found = preference(["win"] * 8, ["a"] * 4 + ["b"] * 4)
    assert found.p_choices == pytest.approx(2 / 2**8)
    assert found.p == pytest.approx(2 / 2**2)
    assert preference(["both", "neither"], ["a", "b"]).p == 1


def test_the_paired_test_is_scipys_and_statsmodels_own():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(3)
    before, after = (rng.random(60) < 0.4).astype(float), (rng.random(60) < 0.2).astype(float)
    table = [[np.sum((before == b) & (after == a)) for a in (0, 1)] for b in (0, 1)]
    prompts = [str(i) for i in range(60)]
    found = change(list(before), list(after), prompts)
    assert found.p_images == pytest.approx(contingency.mcnemar(table, exact=True).pvalue)
    # With one image a prompt the flips are the same test, drawn instead of counted.
    assert found.p == pytest.approx(found.p_images, abs=0.02)


def test_the_bootstrap_agrees_with_a_plain_one_over_prompts():
    rng = np.random.default_rng(5)
    prompts = np.repeat(np.arange(30), 4)
    values = (rng.random(120) < np.repeat(rng.random(30), 4)).astype(float)
    found = mean(list(values), [str(p) for p in prompts])
    means = []
    for _ in range(4000):
        chosen = rng.integers(30, size=30)
        means.append(np.mean([values[prompts == p] for p in chosen]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.015)


def test_power_by_hand():
    # Six pairs: only six of six on one side reach 0.05 (2 / 2^6 = 0.031); five of five give 0.0625.
    assert power(5, 0.9, 0.1) == 0
    lost, gained = 0.9 * 0.9, 0.1 * 0.1
    assert power(6, 0.9, 0.1) == pytest.approx(lost**6 + gained**6)
    assert power(6, 0.0, 0.0) == 0


def test_power_and_the_smallest_effect_are_what_simulation_finds():
    from scipy.stats import binomtest

    rng, rounds, cache = np.random.default_rng(0), 20_000, {}

    def found(n, before, after, alpha):
        """Share of simulated runs that the exact test rejects."""
        lost, gained = before * (1 - after), after * (1 - before)
        counts = rng.multinomial(n, [lost, gained, 1 - lost - gained], size=rounds)[:, :2]
        for pair in {tuple(row) for row in counts.tolist()} - set(cache):
            cache[pair] = binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0
        return np.mean([cache[tuple(row)] < alpha for row in counts.tolist()])

    # 20 000 rounds: standard error at most 0.0035.
    assert power(200, 0.4, 0.25) == pytest.approx(found(200, 0.4, 0.25, 0.05), abs=0.012)
    for n, before, arms in ((112, 0.3, 1), (112, 0.3, 8), (300, 0.15, 3)):
        effect = smallest_effect(n, before, arms)
        assert found(n, before, before - effect, 0.05 / arms) == pytest.approx(0.8, abs=0.012)


def test_a_plan_is_told_what_it_can_show():
    said = detectable(14, 8, 8)
    effect = smallest_effect(112, 0.3, 8)
    assert said.startswith("112 pairs for each of 8 arms (14 prompts, 8 seeds each)")
    assert (
        f"a fall of {100 * effect:.1f} points or more shows with a chance of 80 % image by image (exact McNemar" in said
    )
    assert "if a prompt's seeds all fared alike, not even a fall to none" in said
    assert "p over prompts, by which the report says what holds, needs more" in said
    assert "Too few" not in said
    assert "Too few prompts: p over prompts cannot fall below 0.062, and 0.05 is asked for" in detectable(5, 100, 1)
    with pytest.raises(ValueError, match=r"before: 1\.5 is not allowed"):
        detectable(10, 1, 1, before=1.5)
    # Prompts that come as often as the lot has it: 500 pictures of 121 prompts.
    assert detectable(121, 500 / 121, 1).startswith("500 pairs for each of 1 arm (121 prompts, 4.13 seeds each)")


def test_the_smallest_effect_shrinks_with_n_and_grows_with_arms_and_alike_images():
    one = smallest_effect(200, 0.4)
    assert power(200, 0.4, 0.4 - one) == pytest.approx(0.8, abs=1e-6)
    assert smallest_effect(800, 0.4) < one < smallest_effect(200, 0.4, arms=8)
    assert smallest_effect(200, 0.4, per_prompt=4, likeness=0.5) > one
    assert smallest_effect(5, 0.1) is None
    with pytest.raises(ValueError, match="before: 0 is not allowed"):
        smallest_effect(100, 0)
    with pytest.raises(ValueError, match="n: 1 is not allowed; at least 2"):
        smallest_effect(1)


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


def test_an_area_s_interval_is_over_groups_and_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(3), 0
    for _ in range(60):
        groups = np.repeat(np.arange(60), 2)
        flags = rng.random(120) < 0.4
        values = rng.normal(size=120) + flags  # the area is then P(N(1, 2) > 0) = 0.760
        low, high = area_interval(flags, values, groups, 200)
        assert low < area(flags, values) < high
        held += low < 0.7602 < high
    assert held >= 50
    doubled = area_interval(np.repeat(flags, 2), np.repeat(values, 2), np.repeat(groups, 2), 200)
    assert doubled == pytest.approx((low, high))  # the same pictures seen twice tell no more
    assert all(math.isnan(end) for end in area_interval(np.ones(4, bool), np.arange(4.0), np.arange(4)))


def test_an_area_within_groups_does_not_count_what_tells_groups_apart():
    flags = np.array([True, False, True, False, True, True])
    values = np.array([9.0, 10.0, 1.0, 0.0, 2.0, 1.0])
    groups = np.array([0, 0, 1, 1, 2, 2])  # the first group is wrong, the second right, the third all whole
    own = area_within(flags, values, groups)
    assert own[0] == pytest.approx(1 / 2)
    assert own[1:] == [0.0, 1.0]
    flags, values = np.array([True, False, False, True, False]), np.array([1.5, 1.0, 2.0, 3.0, 4.0])
    assert area_within(flags, values, np.array([0, 0, 0, 1, 1]))[0] == pytest.approx((1 + 0) / 3)  # by pair
    assert all(map(math.isnan, area_within(np.ones(4, bool), np.arange(4.0), np.arange(4))))


def test_area_under_the_curve_by_hand():
    flags = np.array([1, 1, 0, 0, 0], float)
    # Pairs (missing, whole) with the missing one higher: (5: 1,2,3 -> 3), (2: 1 -> 1, tie with 2 -> ½).
    assert area(flags, np.array([5.0, 2.0, 1.0, 2.0, 3.0])) == pytest.approx((3 + 1.5) / 6)


def test_what_was_brought_back_by_hand_and_by_scipy():
    """One prompt has no interval; of many it is scipy's own bootstrap of the ratio, whole prompts resampled."""
    one = brought_back([2, 1, 0, 1], [0, 1, 0, 0], ["a"] * 4)
    assert (one.value, one.images, one.prompts, math.isnan(one.low)) == (0.75, 4, 1, True)
    assert brought_back([1, 0], [2, 0], ["a", "b"]).value == -1
    rng = np.random.default_rng(3)
    prompts = [f"p{k // 5}" for k in range(200)]
    before = rng.binomial(2, np.repeat(rng.uniform(0.1, 0.9, 40), 5))
    after = rng.binomial(before, 0.4)
    found = brought_back(before, after, prompts)
    by_prompt = (before.reshape(40, 5).sum(1), after.reshape(40, 5).sum(1))
    theirs = stats.bootstrap(
        by_prompt, lambda b, a: 1 - a.sum() / b.sum(), paired=True, vectorized=False, method="percentile",
        n_resamples=4000, rng=1,
    ).confidence_interval  # fmt: skip
    assert found.value == pytest.approx(1 - after.sum() / before.sum())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    # Where hardly a prompt lacks anything, resamples that lack nothing say nothing.
    rare = brought_back([0, 0, 1, 2], [0, 0, 0, 1], ["a", "b", "c", "d"])
    assert (rare.value, rare.low, rare.high) == pytest.approx((2 / 3, 0.5, 1))


@pytest.mark.parametrize(("after", "value"), [([0, 0, 0], 1), ([1, 2, 0], 0)])
def test_that_all_or_nothing_comes_back_is_no_certainty(after, value):
    found = brought_back([1, 2, 0], after, ["a", "b", "c"])
    assert found.value == value
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_what_was_brought_back_where_nothing_is_missing_is_refused():
    with pytest.raises(ValueError, match="before: nothing is missing"):
        brought_back([0, 0], [1, 0], ["a", "b"])
