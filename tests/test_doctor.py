"""The examination of a machine, on tiny random pipelines."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional

from lib_decouple import doctor
from lib_decouple.__main__ import main
from lib_decouple.core.finite_differences import MISFIT, InFloat32, misfit
from lib_decouple.doctor import Report, examine_pipeline, sentences
from lib_decouple.hosts import base, family
from lib_decouple.profiles import UNKNOWN


@pytest.fixture
def half(sd1: Any) -> Any:
    """The tiny pipeline in float16."""
    return copy.deepcopy(sd1).to(torch.float16)


def test_a_sound_machine(sd1: Any, hooks_are_off: Any) -> None:
    with hooks_are_off(sd1.unet):
        report = examine_pipeline(sd1)
    assert report.whole
    assert report.left_out == []
    assert (report.dtype, report.scale, report.cosine) == ("float32", None, None)
    assert all(parameter.requires_grad for parameter in sd1.unet.parameters())
    assert misfit(report.slopes) < MISFIT
    assert set(report.seconds) == {"plain", "gradient", "guided", "late"}
    assert report.seconds["guided"] == report.seconds["plain"] + report.seconds["gradient"]
    assert set(report.memory) == {"kept", "recomputed"}
    told = " ".join(sentences(report))
    assert "The gradient is whole" in told
    assert "which fits" in told


def test_in_half_precision_it_is_held_against_float32(half: Any) -> None:
    report = examine_pipeline(half)
    assert report.left_out == []
    assert (report.dtype, report.scale) == ("float16", 4096)
    assert misfit(report.slopes) < MISFIT
    assert report.cosine is not None
    assert 0.995 < report.cosine < 1
    assert "which is good" in " ".join(sentences(report))


def test_what_is_computed_inside_is_float32s(half: Any) -> None:
    unet, made = half.unet, torch.Generator().manual_seed(0)
    x, context = (torch.randn(shape, generator=made).half() for shape in ((1, 4, 8, 8), (1, 9, 32)))
    with torch.no_grad():
        rounded = unet(x, torch.tensor(9), encoder_hidden_states=context).sample
        with InFloat32(x.device):
            found = unet(x, torch.tensor(9), encoder_hidden_states=context).sample
        exact = unet.float()(x.float(), torch.tensor(9), encoder_hidden_states=context.float()).sample
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    assert (rounded - exact).abs().max() > 1e-5


def test_a_cut_gradient_is_told_with_what_cuts_it(sd1: Any) -> None:
    class Sage:
        def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            parts = [attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)]
            split = [one.detach().unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in parts]
            return attn.to_out[0](functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))

    before = sd1.unet.attn_processors
    sd1.unet.set_attn_processor(Sage())
    try:
        report = examine_pipeline(sd1)
    finally:
        sd1.unet.set_attn_processor(before)
    assert report.whole is False
    assert "Sage" in report.cut
    assert any(one.startswith("Guidance does not work here: no gradient passes") for one in sentences(report))


def test_a_part_that_fails_leaves_the_others(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("in /home/somebody/models")

    monkeypatch.setattr(doctor, "slopes_of", broken)
    report = examine_pipeline(sd1)
    assert report.left_out == ["finite differences: RuntimeError"]
    assert report.memory
    assert "Not measured: finite differences: RuntimeError." in sentences(report)


def test_nothing_is_begun_late(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", -1.0)
    report = examine_pipeline(sd1)
    assert report.whole
    assert report.left_out[0] == "time: no time was left"
    assert len(report.left_out) == 5


def test_a_slope_that_does_not_fit_is_told() -> None:
    report = Report(whole=True, slopes=[[2.0, 2.0], [1.0, 0.7], [-1.0, -1.4]])
    # Off by 0.3 and 0.4 of 0.7 and 1.4: 0.5 / 1.565.
    assert misfit(report.slopes) == pytest.approx(0.3194, abs=1e-4)
    told = sentences(report)
    assert any(one.endswith("but for 32 %, which does NOT fit.") for one in told)
    assert told[-1] == "What to do: please report this: what guidance does here can't be trusted."


@pytest.mark.parametrize(("late", "told"), [(1.2, True), (1.9, False), (None, False)])
def test_a_late_gradient_is_recommended_where_it_was_measured_to_be_cheaper(late: float | None, told: bool) -> None:
    seconds = {"plain": 1.0, "gradient": 0.8, "guided": 1.8, **({} if late is None else {"late": late})}
    (sentence,) = [one for one in sentences(Report(whole=True, seconds=seconds)) if "A plain step takes" in one]
    assert ("set “Gradient” to late" in sentence) is told
    assert ("whose gradient is late" in sentence) is (late is not None)


def test_a_late_step_that_was_proved_too_took_at_most_that_long() -> None:
    seconds = {"plain": 1.0, "gradient": 0.8, "guided": 1.8, "late": 1.2}
    for proved in (True, False):
        told = " ".join(sentences(Report(whole=True, seconds=seconds, late_with_proof=proved)))
        assert ("whose gradient is late at most 1.20 s" in told) is proved
        assert ("whose gradient is late 1.20 s" in told) is not proved


@pytest.mark.parametrize("layers", ["auto", "early"])
def test_the_layers_of_the_models_profile_are_examined_and_told(
    sd1: Any, monkeypatch: pytest.MonkeyPatch, layers: str
) -> None:
    monkeypatch.setattr(family, "profile_of", lambda _: replace(UNKNOWN, layers=layers))
    made = mock.Mock(wraps=base.make_guide)
    monkeypatch.setattr(base, "make_guide", made)
    report = examine_pipeline(sd1)
    assert (made.call_args.args[0].layers, report.layers) == (layers, layers)
    assert ("of the layers that “auto” reads here, early" in " ".join(sentences(report))) is (layers == "early")


def test_what_is_sound_asks_for_nothing() -> None:
    report = Report(whole=True, slopes=[[2.0, 2.0], [1.0, 1.1], [-1.0, -0.9]], cosine=0.999)
    assert sentences(report)[-1] == "Nothing has to be set: the defaults work here."
    report.cosine = 0.99
    assert sentences(report)[-1].startswith("What to do: try float32")


def test_a_model_that_is_not_guided_is_told_with_the_reason() -> None:
    (told,) = sentences(Report(model="Flux (12 M)", stood_aside="this model can't be guided"))
    assert told.endswith("nothing was measured: this model can't be guided.")


def test_the_json_names_no_prompt_and_no_path(sd1: Any) -> None:
    report = examine_pipeline(sd1)
    text = report.as_json()
    assert json.loads(text) == json.loads(json.dumps(asdict(report)))
    for told in (doctor.PROMPT, "cat", str(Path.home()), str(Path(doctor.__file__).parent), "/"):
        assert told not in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "100"], "size: 100 is not allowed; a multiple of 64 pixels"),
        (["--device", "nowhere"], "device: 'nowhere' is not there"),
        (["--checkpoint", "nothing.safetensors"], "checkpoint: nothing.safetensors does not exist"),
    ],
)
def test_wrong_arguments(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert told in capsys.readouterr().err
