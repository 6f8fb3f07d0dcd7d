"""The doctor inside a job of a WebUI, on the stand-in of A1111; real ones: tests/hosts."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")

from lib_decouple import doctor
from lib_decouple.core.finite_differences import MISFIT, misfit
from lib_decouple.core.gradient import LossGradient
from lib_decouple.core.late import LatePass
from lib_decouple.hosts.base import Looking
from lib_decouple.webui import check_machine

from . import host as stand_in
from .test_a1111 import a1111, noise, shared, unet, untouched  # noqa: F401


def examined(a1111, shared, steps=20):  # noqa: F811
    """A report, the latents that were drawn meanwhile, and the job."""
    ended = []
    examiner = check_machine.Examiner(doctor.Report(), lambda: ended.append(True))
    job = stand_in.Job(shared, [doctor.PROMPT], steps=steps)
    examiner.sampling = a1111.SamplingPass(job, doctor.SETTINGS, Looking(examine=examiner.examine))
    examiner.sampling.attach()
    latents = job.sample(noise())
    return examiner, latents, job, ended


def test_a_job_is_examined_once_and_drawn_as_without(a1111, shared):  # noqa: F811
    examiner, latents, job, ended = examined(a1111, shared)
    report = examiner.report
    assert (ended, examiner.done, examiner.why_not()) == ([True], True, "")
    assert report.whole
    assert report.left_out == []
    assert misfit(report.slopes) < MISFIT
    assert set(report.seconds) == {"plain", "guided", "late", "gradient"}
    assert report.seconds["guided"] == report.seconds["plain"] + report.seconds["gradient"]
    assert torch.equal(latents, stand_in.Job(shared, [doctor.PROMPT], steps=20).sample(noise()))
    assert untouched(job)


@pytest.mark.parametrize("why", ["memory", "fault"])
def test_a_late_gradient_that_is_not_to_be_had_is_left_out(a1111, shared, monkeypatch, why):  # noqa: F811
    def broken(*_):
        raise RuntimeError("in /home/somebody/models")

    if why == "memory":
        monkeypatch.setattr(LossGradient, "late_fits", lambda *_: False)
    else:
        monkeypatch.setattr(LatePass, "take", broken)
    examiner, latents, *_ = examined(a1111, shared)
    assert set(examiner.report.seconds) == {"plain", "guided", "gradient"}
    (told,) = examiner.report.left_out
    assert told.startswith("a gradient one step late: ")
    assert "/" not in told
    assert ("free memory" in told) is (why == "memory")
    assert torch.equal(latents, stand_in.Job(shared, [doctor.PROMPT], steps=20).sample(noise()))


def test_only_a_corner_of_the_picture_is_decoded(monkeypatch):
    scripts = types.ModuleType("modules.scripts")
    scripts.Script, scripts.ScriptRunner = object, SimpleNamespace
    package = types.ModuleType("modules")
    package.scripts = scripts
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.scripts", scripts)
    latents = torch.randn(1, 4, 32, 32)
    drawn = SimpleNamespace(samples=latents)
    (script,) = check_machine._runner(
        check_machine.Examiner(doctor.Report(), lambda: None), doctor.SETTINGS
    ).alwayson_scripts
    script.post_sample(None, drawn)
    assert drawn.samples.shape == (*latents.shape[:2], 8, 8)
    assert torch.equal(drawn.samples, latents[:, :, :8, :8])


def test_a_job_too_short_to_be_examined_is_told(a1111, shared):  # noqa: F811
    examiner, *_ = examined(a1111, shared, steps=2)
    assert examiner.why_not() == "the job was ended before anything could be examined"


def test_a_model_that_cannot_be_guided_is_told_with_the_reason(a1111, shared):  # noqa: F811
    shared.sd_model.model.diffusion_model = torch.nn.Linear(1, 1)
    examiner = check_machine.Examiner(doctor.Report(), lambda: None)
    job = stand_in.Job(shared, [doctor.PROMPT])
    examiner.sampling = a1111.SamplingPass(job, doctor.SETTINGS, Looking(examine=examiner.examine))
    examiner.sampling.attach(noise())
    assert examiner.why_not().startswith("this model can't be guided")


@pytest.mark.parametrize(
    ("model", "free", "told"),
    [
        (None, True, "is not loaded yet"),
        (SimpleNamespace(), False, "is drawing or loading a model"),
    ],
)
def test_it_refuses_without_a_model_and_while_a_job_runs(monkeypatch, model, free, told):
    released = []
    lock = SimpleNamespace(acquire=lambda blocking: free, release=lambda: released.append(True))
    package = types.ModuleType("modules")
    package.call_queue = SimpleNamespace(queue_lock=lock)
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setattr(check_machine, "loaded_model", lambda: model)
    with pytest.raises(check_machine.NotNow, match=told):
        check_machine.check()
    assert released == []


def test_flags_are_names_alone():
    given = [
        "--api",
        "--api-auth=ann:secret",
        "--data-dir",
        "/home/ann/--secret",
        "--ckpt=/x",
        "-h",
        "--",
        "--xformers",
    ]
    assert check_machine.flags(given) == ["--api", "--api-auth", "--ckpt", "--data-dir", "--xformers"]
