"""Losses and measures: hand-computed values, identities, ranges, gradients, parsing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_decouple.core import losses
from lib_decouple.core.losses import LOSSES, OVERLAP_LOSSES, Term, WeightedLoss

# Every loss in every form, with the closed range that its docstring claims (E = number of entities, N = pairs).
# For pool "sum" the range is multiplied by the number of pooled values, so it is checked for mean and max.
FORMS: list[tuple[str, dict[str, object]]] = [
    *[("iou", {"form": f, "normalise": n}) for f in ("half", "union", "product") for n in (True, False)],
    *[("com", {"form": f}) for f in ("bounded", "negative")],
    *[("kl", {"form": f}) for f in ("exp", "negative", "js")],
    *[("cc", {"normalise": n}) for n in (True, False)],
    *[("intensity", {"peak": p}) for p in ("max", "mean")],
    ("spread", {}),
]
FORM_IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in FORMS]
all_forms = pytest.mark.parametrize(("name", "options"), FORMS, ids=FORM_IDS)
FORMULAE = {
    "iou": losses.iou,
    "com": losses.com,
    "kl": losses.kl,
    "cc": losses.cc,
    "intensity": losses.intensity_loss,
    "spread": losses.spread_loss,
}
SCALE_FREE = [form for form in FORMS if form[0] in ("com", "kl", "spread") or form[1].get("normalise")]


def claimed_range(name: str, options: dict[str, object], entities: int) -> tuple[float, float]:
    """The range that the docstring of this form claims, for maps in [0, 1]."""
    return {
        "iou": (0.0, 1.0 if options.get("form") == "union" else 0.5),
        "com": (0.0, 1.0) if options.get("form") == "bounded" else (-math.sqrt(2), 0.0),
        "kl": (-math.inf, 0.0) if options.get("form") == "negative" else (0.0, 1.0),
        "cc": (0.0, 1 - 1 / entities),
        "intensity": (0.0, 1.0),
        "spread": (0.0, 0.5),
    }[name]


def as_maps(*entities: list[list[float]]) -> Tensor:
    """Maps of one image, ``[1, entities, h, w]`` in float64."""
    return torch.tensor([entities], dtype=torch.float64)


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    """Positive float64 maps, far from ties between entities."""
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.05


# Two entities on two pixels: A = (3, 1), B = (1, 1); normalised (3/4, 1/4) and (1/2, 1/2).
A, B = [[0.3, 0.1]], [[0.1, 0.1]]


class TestByHand:
    @pytest.mark.parametrize(
        ("form", "normalise", "expected"),
        [
            ("half", False, 0.2 / 0.6),
            ("union", False, 0.2 / 0.4),
            ("product", False, 0.04 / 0.12),
            ("half", True, 0.75 / 2),
            ("union", True, 0.75 / 1.25),
            ("product", True, 0.5 / (0.625 + 0.5)),
        ],
    )
    def test_iou(self, form: str, normalise: bool, expected: float) -> None:
        assert LOSSES["iou"](as_maps(A, B), form=form, normalise=normalise).item() == pytest.approx(expected, rel=1e-6)

    def test_iou_defaults_are_half_of_normalised_maps(self) -> None:
        assert LOSSES["iou"](as_maps(A, B)).item() == pytest.approx(0.375, rel=1e-6)

    def test_com(self) -> None:
        # Pixel centres at x = 1/4 and 3/4 of the longer side: centres 3/8 and 1/2, both at y = 1/4.
        assert losses.centre_of_mass(as_maps(A, B))[0].tolist() == [
            pytest.approx([0.25, 0.375]),
            pytest.approx([0.25, 0.5]),
        ]
        assert LOSSES["com"](as_maps(A, B)).item() == pytest.approx(1 - 0.125 / math.sqrt(2), rel=1e-6)
        assert LOSSES["com"](as_maps(A, B), form="negative").item() == pytest.approx(-0.125, rel=1e-5)

    def test_com_diagonal(self) -> None:
        # Opposite corners of 2 x 2: (1/4, 1/4) and (3/4, 3/4).
        maps = as_maps([[1, 0], [0, 0]], [[0, 0], [0, 1]])
        assert LOSSES["com"](maps, form="negative").item() == pytest.approx(-math.sqrt(0.5), rel=1e-6)

    def test_kl(self) -> None:
        # D(A|B) = 3/4 ln 3/2 + 1/4 ln 1/2; D(B|A) = 1/2 ln 2/3 + 1/2 ln 2; their mean is 1/8 ln 3.
        symmetric = math.log(3) / 8
        assert LOSSES["kl"](as_maps(A, B), form="negative").item() == pytest.approx(-symmetric, rel=1e-5)
        assert LOSSES["kl"](as_maps(A, B)).item() == pytest.approx(math.exp(-symmetric), rel=1e-6)

    def test_kl_jensen_shannon(self) -> None:
        m = (0.625, 0.375)
        halves = [0.75 * math.log(0.75 / m[0]), 0.25 * math.log(0.25 / m[1])]
        halves += [0.5 * math.log(0.5 / m[0]), 0.5 * math.log(0.5 / m[1])]
        expected = 1 - 0.5 * sum(halves) / math.log(2)
        assert LOSSES["kl"](as_maps(A, B), form="js").item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize(("normalise", "expected"), [(False, 1 - 0.4 / 0.6), (True, 1 - 1.25 / 2)])
    def test_cc(self, normalise: bool, expected: float) -> None:
        assert LOSSES["cc"](as_maps(A, B), normalise=normalise).item() == pytest.approx(expected, rel=1e-6)

    def test_cc_of_three(self) -> None:
        # Strongest shares: 2/3 and 1/2 of three maps that sum to 1 each.
        maps = as_maps([[2, 1]], [[1, 1]], [[1, 2]])
        assert LOSSES["cc"](maps).item() == pytest.approx(1 - (2 / 3 + 2 / 3) / 3, rel=1e-6)

    @pytest.mark.parametrize(
        ("peak", "pool", "expected"),
        [
            ("max", "max", 0.9),
            ("max", "mean", 0.8),
            ("max", "sum", 1.6),
            ("mean", "max", 0.9),
            ("mean", "mean", 0.85),
            ("mean", "sum", 1.7),
        ],
    )
    def test_intensity(self, peak: str, pool: str, expected: float) -> None:
        assert LOSSES["intensity"](as_maps(A, B), peak=peak, pool=pool).item() == pytest.approx(expected, rel=1e-6)

    def test_intensity_default_is_attend_and_excites(self) -> None:
        assert LOSSES["intensity"](as_maps(A, B)).item() == pytest.approx(1 - 0.1, rel=1e-6)

    def test_spread(self) -> None:
        # Two pixels half a side apart: p (1 - p) / 4 each.
        each = (0.75 * 0.25 / 4, 0.5 * 0.5 / 4)
        assert losses.spread(as_maps(A, B))[0].tolist() == pytest.approx(each, rel=1e-6)
        assert LOSSES["spread"](as_maps(A, B)).item() == pytest.approx(sum(each) / 2, rel=1e-6)
        assert LOSSES["spread"](as_maps(A, B), pool="sum").item() == pytest.approx(sum(each), rel=1e-6)
        assert LOSSES["spread"](as_maps(A, B), pool="max").item() == pytest.approx(max(each), rel=1e-6)

    @pytest.mark.parametrize(
        ("name", "options"),
        [("iou", {}), ("com", {}), ("com", {"form": "negative"}), ("kl", {}), ("kl", {"form": "js"})],
    )
    def test_pools_over_the_three_pairs(self, name: str, options: dict[str, object]) -> None:
        maps = random_maps(1, 3, 4, 5)
        pairs = [LOSSES[name](maps[:, [i, j]], **options).item() for i, j in ((0, 1), (0, 2), (1, 2))]
        assert LOSSES[name](maps, **options).item() == pytest.approx(sum(pairs) / 3, rel=1e-5)
        assert LOSSES[name](maps, pool="sum", **options).item() == pytest.approx(sum(pairs), rel=1e-5)
        assert LOSSES[name](maps, pool="max", **options).item() == pytest.approx(max(pairs), rel=1e-5)

    def test_extremes(self) -> None:
        apart = as_maps([[1, 0]], [[0, 1]])
        same = as_maps(A, A)
        for normalise in (True, False):
            for form, full in (("half", 0.5), ("union", 1.0), ("product", 0.5)):
                assert LOSSES["iou"](apart, form=form, normalise=normalise).item() == pytest.approx(0, abs=1e-6)
                assert LOSSES["iou"](same, form=form, normalise=normalise).item() == pytest.approx(full, rel=1e-6)
            assert LOSSES["cc"](apart, normalise=normalise).item() == pytest.approx(0, abs=1e-6)
            assert LOSSES["cc"](same, normalise=normalise).item() == pytest.approx(0.5, rel=1e-6)
        assert LOSSES["kl"](apart).item() == pytest.approx(0, abs=1e-6)
        assert LOSSES["kl"](same).item() == 1
        assert LOSSES["kl"](apart, form="js").item() == pytest.approx(0, abs=1e-5)
        assert LOSSES["com"](same).item() == 1
        assert LOSSES["spread"](apart).item() == pytest.approx(0, abs=1e-6)


class TestIndependentImplementations:
    def test_centre_of_mass_is_scipys(self) -> None:
        from scipy import ndimage

        maps = random_maps(2, 3, 5, 7)
        ours = losses.centre_of_mass(maps)
        for b in range(2):
            for e in range(3):
                theirs = ndimage.center_of_mass(maps[b, e].numpy())
                assert ours[b, e].tolist() == pytest.approx([(c + 0.5) / 7 for c in theirs], rel=1e-6)

    def test_kl_is_scipys(self) -> None:
        from scipy.stats import entropy

        maps = random_maps(1, 2, 5, 7)
        a, b = (maps[0, i].flatten().numpy() for i in (0, 1))
        assert losses.pair_kl(maps).item() == pytest.approx((entropy(a, b) + entropy(b, a)) / 2, rel=1e-5)

    def test_js_is_scipys(self) -> None:
        from scipy.spatial.distance import jensenshannon

        maps = random_maps(1, 2, 5, 7)
        a, b = (maps[0, i].flatten().numpy() for i in (0, 1))
        assert losses.pair_js(maps).item() == pytest.approx(jensenshannon(a, b, base=2) ** 2, rel=1e-5)

    def test_spread_is_the_sum_of_numpys_variances(self) -> None:
        import numpy as np

        maps = random_maps(1, 1, 5, 7)
        weights = maps[0, 0].numpy()
        y, x = np.mgrid[:5, :7] / 7
        total = sum(np.average((c - np.average(c, weights=weights)) ** 2, weights=weights) for c in (y, x))
        assert losses.spread(maps).item() == pytest.approx(total, rel=1e-6)


class TestGradients:
    @all_forms
    @pytest.mark.parametrize("entities", [1, 2, 3])
    def test_gradcheck_in_float64(self, name: str, options: dict[str, object], entities: int) -> None:
        maps = random_maps(2, entities, 3, 4, seed=entities).requires_grad_()
        assert torch.autograd.gradcheck(lambda m: FORMULAE[name](m, **options), (maps,))

    @pytest.mark.parametrize("pool", ["sum", "max"])
    @pytest.mark.parametrize("name", ["iou", "com", "kl", "intensity", "spread"])
    def test_gradcheck_of_pools(self, name: str, pool: str) -> None:
        maps = random_maps(2, 3, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda m: FORMULAE[name](m, pool=pool), (maps,))

    @pytest.mark.parametrize("name", OVERLAP_LOSSES)
    def test_descent_moves_overlap_down(self, name: str) -> None:
        maps = random_maps(1, 2, 6, 6).requires_grad_()
        before = FORMULAE[name](maps)
        (gradient,) = torch.autograd.grad(before.sum(), maps)
        after = FORMULAE[name]((maps - 1e-3 * gradient / gradient.norm()).detach())
        assert after.item() < before.item()


class TestSymmetries:
    @all_forms
    def test_order_of_entities(self, name: str, options: dict[str, object]) -> None:
        maps = random_maps(2, 4, 5, 7)
        shuffled = maps[:, [2, 0, 3, 1]]
        torch.testing.assert_close(LOSSES[name](shuffled, **options), LOSSES[name](maps, **options))

    @all_forms
    @pytest.mark.parametrize("move", ["mirror", "flip", "transpose", "turn"])
    def test_mirrored_and_turned_maps(self, name: str, options: dict[str, object], move: str) -> None:
        maps = random_maps(2, 3, 5, 7)
        moved = {
            "mirror": lambda m: m.flip(-1),
            "flip": lambda m: m.flip(-2),
            "transpose": lambda m: m.transpose(-1, -2),
            "turn": lambda m: m.rot90(1, (-2, -1)),
        }[move](maps)
        torch.testing.assert_close(LOSSES[name](moved, **options), LOSSES[name](maps, **options))

    @pytest.mark.parametrize(("name", "options"), SCALE_FREE, ids=lambda v: str(v))
    def test_normalised_forms_ignore_each_maps_scale(self, name: str, options: dict[str, object]) -> None:
        maps = random_maps(1, 3, 5, 7)
        scales = torch.tensor([0.1, 1.0, 40.0], dtype=torch.float64)[:, None, None]
        torch.testing.assert_close(
            LOSSES[name](maps * scales, **options), LOSSES[name](maps, **options), rtol=1e-5, atol=1e-6
        )

    def test_raw_iou_does_fall_when_an_entity_is_dimmed(self) -> None:
        maps = random_maps(1, 2, 5, 7)
        dimmed = maps * torch.tensor([0.05, 1.0], dtype=torch.float64)[:, None, None]
        assert LOSSES["iou"](dimmed, normalise=False) < LOSSES["iou"](maps, normalise=False)

    @pytest.mark.parametrize("normalise", [True, False])
    @pytest.mark.parametrize("seed", range(5))
    def test_cc_is_half_iou_for_two_entities(self, normalise: bool, seed: int) -> None:
        maps = random_maps(3, 2, 6, 5, seed=seed) ** 4
        cc, iou = losses.cc(maps, normalise), losses.iou(maps, "half", normalise)
        torch.testing.assert_close(cc, iou, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(losses.compactness(maps, normalise), 1 - iou, rtol=1e-6, atol=1e-7)

    @all_forms
    def test_images_of_a_batch_do_not_touch_each_other(self, name: str, options: dict[str, object]) -> None:
        maps = random_maps(3, 3, 5, 7).requires_grad_()
        together = LOSSES[name](maps, **options)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], LOSSES[name](maps[i : i + 1], **options))
        (gradient,) = torch.autograd.grad(together[1], maps)
        assert gradient[1].abs().max() > 0
        assert gradient[[0, 2]].abs().max() == 0


@st.composite
def plausible_maps(draw: st.DrawFn) -> Tensor:
    """Maps in [0, 1] of any small size, dense, sparse, one-hot or zero."""
    entities, h, w = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    value = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-5, 1))
    count = entities * h * w
    values = draw(st.lists(value, min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float64).reshape(1, entities, h, w)


class TestRanges:
    @all_forms
    @given(maps=plausible_maps())
    def test_claimed_range_and_finite(self, name: str, options: dict[str, object], maps: Tensor) -> None:
        low, high = claimed_range(name, options, maps.shape[1])
        maps = maps.float().requires_grad_()
        for pool in [{}] if name == "cc" else [{"pool": "mean"}, {"pool": "max"}]:
            loss = LOSSES[name](maps, **options, **pool)
            (gradient,) = torch.autograd.grad(loss.sum(), maps)
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()
            assert low - 1e-5 <= loss.item() <= high + 1e-5

    @given(maps=plausible_maps())
    def test_one_entity_has_no_overlap(self, maps: Tensor) -> None:
        for name in OVERLAP_LOSSES:
            assert LOSSES[name](maps[:, :1]).item() == 0

    @given(maps=plausible_maps())
    def test_normalised_sums_to_one(self, maps: Tensor) -> None:
        torch.testing.assert_close(losses.normalised(maps).sum((-2, -1)), torch.ones(1, maps.shape[1]).double())


def degenerate() -> dict[str, Tensor]:
    """The inputs that must not break any loss, ``[2, entities, h, w]``."""
    one_hot = torch.zeros(2, 3, 7, 5)
    one_hot[:, 0, 0, 0] = one_hot[:, 1, 6, 4] = one_hot[:, 2, 3, 1] = 1
    half_zero = random_maps(2, 3, 7, 5).float()
    half_zero[:, 1] = 0
    return {
        "zero": torch.zeros(2, 3, 7, 5),
        "one-is-zero": half_zero,
        "identical": random_maps(2, 1, 7, 5).float().expand(2, 3, 7, 5),
        "uniform": torch.full((2, 3, 7, 5), 0.01),
        "one-hot": one_hot,
        "same-one-hot": one_hot[:, :1].expand(2, 3, 7, 5),
        "one-entity": random_maps(2, 1, 7, 5).float(),
        "ten-entities": random_maps(2, 10, 7, 5).float(),
        "one-pixel": random_maps(2, 3, 1, 1).float(),
        "faint": random_maps(2, 3, 7, 5).float() * 1e-4,
    }


@all_forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", list(degenerate()))
def test_degenerate_input(name: str, options: dict[str, object], dtype: torch.dtype, kind: str) -> None:
    maps = degenerate()[kind].to(dtype).clone().requires_grad_()
    loss = LOSSES[name](maps, **options)
    assert loss.shape == (2,)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert gradient.shape == maps.shape
    assert torch.isfinite(gradient).all()
    low, high = claimed_range(name, options, maps.shape[1])
    assert (low - 1e-5 <= loss).all()
    assert (loss <= high + 1e-5).all()


@all_forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(name: str, options: dict[str, object], dtype: torch.dtype) -> None:
    maps = random_maps(2, 3, 7, 5).to(dtype)
    torch.testing.assert_close(LOSSES[name](maps, **options), LOSSES[name](maps.float(), **options), rtol=0, atol=0)


@all_forms
def test_nan_in_a_map_is_not_hidden(name: str, options: dict[str, object]) -> None:
    maps = random_maps(2, 3, 4, 5)
    maps[1, 1, 2, 2] = math.nan
    loss = LOSSES[name](maps, **options)
    assert torch.isfinite(loss[0])
    assert torch.isnan(loss[1])


class TestErrors:
    @pytest.mark.parametrize("name", LOSSES)
    def test_wrong_shape_or_dtype_says_what_came(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"\(3, 4, 5\).*batch, entities, h, w"):
            LOSSES[name](torch.rand(3, 4, 5))
        with pytest.raises(ValueError, match=r"int64"):
            LOSSES[name](torch.ones(1, 2, 3, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"no entity or no pixel"):
            LOSSES[name](torch.rand(1, 0, 3, 3))

    @pytest.mark.parametrize(
        ("name", "option"), [("iou", "form"), ("iou", "pool"), ("com", "form"), ("kl", "form"), ("intensity", "peak")]
    )
    def test_unknown_choice_lists_the_choices(self, name: str, option: str) -> None:
        with pytest.raises(ValueError, match=f"{option}: 'nonsense' is not one of .*,"):
            LOSSES[name](torch.rand(1, 2, 3, 3), **{option: "nonsense"})


# ---------------------------------------------------------------- sums


OPTION_CHOICES: dict[str, dict[str, list[object]]] = {
    "iou": {"form": ["half", "union", "product"], "normalise": [True, False], "pool": ["mean", "sum", "max"]},
    "com": {"form": ["bounded", "negative"], "pool": ["mean", "sum", "max"]},
    "kl": {"form": ["exp", "negative", "js"], "pool": ["mean", "sum", "max"]},
    "cc": {"normalise": [True, False]},
    "intensity": {"peak": ["max", "mean"], "pool": ["mean", "sum", "max"]},
    "spread": {"pool": ["mean", "sum", "max"]},
}


@st.composite
def terms(draw: st.DrawFn) -> Term:
    """Any term that can be written."""
    name = draw(st.sampled_from(sorted(OPTION_CHOICES)))
    weight = draw(st.one_of(st.just(1.0), st.floats(1e-12, 1e12)))
    keys = draw(st.lists(st.sampled_from(sorted(OPTION_CHOICES[name])), unique=True))
    return Term(name, weight, tuple((key, draw(st.sampled_from(OPTION_CHOICES[name][key]))) for key in keys))


class TestWeightedLoss:
    def test_sum_of_weighted_terms_with_options(self) -> None:
        maps = random_maps(2, 3, 5, 7)
        loss = WeightedLoss.parse("iou(form=union, normalise=false) + 0.5*intensity(pool=mean) + 2*kl(form=js)")
        by_hand = (
            LOSSES["iou"](maps, form="union", normalise=False)
            + 0.5 * LOSSES["intensity"](maps, pool="mean")
            + 2 * LOSSES["kl"](maps, form="js")
        )
        found = loss(maps)
        assert found.shape == (2,)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, by_hand)

    @pytest.mark.parametrize("name", LOSSES)
    def test_a_single_name_is_that_loss(self, name: str) -> None:
        maps = random_maps(2, 3, 5, 7)
        torch.testing.assert_close(WeightedLoss.parse(f"  {name.upper()} ")(maps), LOSSES[name](maps), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("iou", "iou"),
            (" IoU+.5 * intensity", "iou + 0.5*intensity"),
            ("1*com", "com"),
            ("1e+3*cc", "1000*cc"),
            ("2E-3*kl(Form=JS)", "0.002*kl(form=js)"),
            ("iou( normalise = False , pool=max )", "iou(normalise=false, pool=max)"),
            ("spread()", "spread"),
            ("iou+iou", "iou + iou"),
        ],
    )
    def test_canonical_text(self, text: str, canonical: str) -> None:
        assert str(WeightedLoss.parse(text)) == canonical

    @given(st.lists(terms(), min_size=1, max_size=4).map(lambda t: WeightedLoss(tuple(t))))
    def test_text_round_trip(self, loss: WeightedLoss) -> None:
        assert WeightedLoss.parse(str(loss)) == loss

    @given(st.text(alphabet="iou+*.5 (=)cmklzform,halfe-", max_size=20))
    def test_any_text_is_read_or_refused_with_the_losses_named(self, text: str) -> None:
        try:
            loss = WeightedLoss.parse(text)
        except ValueError as error:
            assert str(error).startswith("loss: ")  # noqa: PT017  one of two fine outcomes
        else:
            assert WeightedLoss.parse(str(loss)) == loss

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("", ["empty", *LOSSES]),
            ("   ", ["empty", *LOSSES]),
            ("iuo", ["'iuo'", *LOSSES]),
            ("iou + dice", ["'dice'", *LOSSES]),
            ("iou +", ["cannot read", *LOSSES]),
            ("iou - com", ["'iou - com'", *LOSSES]),
            ("-1*iou", ["'-1*iou'"]),
            ("0*iou", ["weight 0", "'iou'", "above 0"]),
            ("1e999*iou", ["weight 1e999", "'iou'", "finite"]),
            ("iou(shape=half)", ["'iou'", "'shape'", "form, normalise, pool"]),
            ("cc(pool=max)", ["'cc'", "'pool'", "normalise"]),
            ("kl(form=jsd)", ["kl", "form", "'jsd'", "exp, negative, js"]),
            ("iou(normalise=maybe)", ["normalise", "'maybe'", "true, false"]),
            ("iou(form)", ["form", "half, union, product"]),
        ],
    )
    def test_errors_name_what_is_wrong_and_what_is_allowed(self, text: str, parts: list[str]) -> None:
        with pytest.raises(ValueError, match=r"^loss: ") as caught:
            WeightedLoss.parse(text)
        for part in parts:
            assert part in str(caught.value)
