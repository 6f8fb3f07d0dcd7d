import math

import numpy as np
import pytest

from lib_decouple.evaluate.statistics import agreement, change, holm, mean, power, preference, smallest_effect


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
    # All seven images of one prompt: image by image it looks sure, by prompts nothing is known.
    assert change([1] * 7, [0] * 7, ["a"] * 7).p == 1


def test_holm_by_hand():
    pytest.importorskip("statsmodels")
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_preference_counts_ties_as_half():
    found = preference(["win"] * 6 + ["loss"] + ["both"] * 2 + ["neither"], [str(i) for i in range(10)])
    assert found.share.value == pytest.approx(0.75)
    assert found.p == pytest.approx(2 * (1 + 7) / 128)
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


def test_power_is_what_simulation_finds():
    from lib_decouple.study.stats import mcnemar

    rng = np.random.default_rng(0)
    hits = [mcnemar(list(rng.random(200) < 0.4), list(rng.random(200) < 0.25)) < 0.05 for _ in range(600)]
    # The exact test is a little stricter than the formula.
    assert power(200, 0.4, 0.25) == pytest.approx(np.mean(hits), abs=0.08)


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
