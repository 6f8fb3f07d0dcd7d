"""Jobs, hook by hook, around a stand-in of the host; the real ones are in tests/hosts."""

from __future__ import annotations

import copy
import importlib
import json
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("fastapi", reason="fastapi is not installed")

import lib_decouple
from lib_decouple.embedded import place
from lib_decouple.hosts.family import profile_of
from lib_decouple.hosts.seeds import ExtraPasses
from lib_decouple.profiles import EMBEDDED, Profile
from lib_decouple.settings import FIXED, Settings
from lib_decouple.webui import api, infotext, report


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The host's modules; ``opts`` are the options that a test has set."""
    opts = SimpleNamespace(data={}, save_images_add_number=True)
    state = SimpleNamespace(job_count=-1, time_start=1.0, interrupted=False, skipped=False)
    package = types.ModuleType("modules")
    parts = {
        "shared": {"opts": opts, "state": state, "cmd_opts": SimpleNamespace()},
        "errors": {"report": lambda *args, **given: None},
        "progress": {"current_task": None},
        "paths_internal": {"data_path": str(tmp_path)},
    }
    for name, content in parts.items():
        module = types.ModuleType(f"modules.{name}")
        vars(module).update(content)
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.delitem(sys.modules, "lib_decouple.webui.jobs", raising=False)
    yield SimpleNamespace(opts=opts, state=state, jobs=importlib.import_module("lib_decouple.webui.jobs").Jobs())
    sys.modules.pop("lib_decouple.webui.jobs", None)


def job(images=1):
    """A job of batches of one, as the host has it before ``process``."""
    comments = []
    return SimpleNamespace(
        n_iter=images, batch_size=1, iteration=0, steps=20,
        all_prompts=["a cat and a dog"] * images, all_seeds=[3] * images,
        all_negative_prompts=[""] * images, all_subseeds=[0] * images, extra_generation_params={}, comments=comments,
        comment=comments.append, scripts=SimpleNamespace(selectable_scripts=[]), script_args=[0],
    )  # fmt: skip


def test_a_job_that_does_not_ask_for_us_is_left_alone(host):
    p = job()
    host.jobs.begin(p, "txt2img", [{"enabled": False}])
    assert p.attention_decoupling is None
    assert (p.extra_generation_params, p.comments, p.n_iter) == ({}, [], 1)


def test_a_bad_argument_is_told_and_nothing_is_doubled(host):
    p = job()
    host.jobs.begin(p, "txt2img", [{"compare": True, "loss": "iuo"}])
    assert "loss" in p.attention_decoupling.problem
    assert p.n_iter == 1
    assert host.jobs.comparing is None


def test_a_comparison_turns_guidance_on_for_its_job(host):
    p = job(2)
    host.jobs.begin(p, "txt2img", [{"compare": True}])
    assert p.n_iter == 4
    assert p.attention_decoupling.settings.enabled
    assert callable(p.extra_generation_params["Decouple"])


def test_pictures_of_a_pair_have_names_of_their_own_where_the_host_numbers_none(host):
    p = job()
    host.jobs.begin(p, "txt2img", [{"compare": True}])

    def saved(batch, number, of=p):
        p.iteration, host.opts.save_images_add_number = batch, number
        params = SimpleNamespace(p=of, filename="out/3-a cat.x.png")
        host.jobs.saving(params)
        return params.filename

    assert saved(0, False) == "out/3-a cat.x-plain.png"
    assert (
        saved(1, False)
        == saved(0, True)
        == saved(0, False, of=job())
        == saved(0, False, of=None)
        == "out/3-a cat.x.png"
    )


def test_a_comparison_that_died_is_let_go_with_the_next_job(host):
    host.jobs.begin(job(), "txt2img", [{"compare": True}])
    assert host.jobs.comparing is not None
    host.state.time_start = 2.0
    host.jobs.begin(job(), "txt2img", [{}])
    assert host.jobs.comparing is None


def test_compare_left_out_is_told_beside_what_guidance_did(host):
    p = job()
    p.scripts.selectable_scripts, p.script_args = [SimpleNamespace(title=lambda: "X/Y/Z plot")], [1]
    host.jobs.begin(p, "txt2img", [{"enabled": True, "compare": True}])
    assert p.n_iter == 1
    assert "X/Y/Z plot" in p.attention_decoupling.lines()[0]
    assert p.comments == p.attention_decoupling.lines()[:1]


def unet(context):
    """A denoiser with one cross-attention that reads a context of so many channels, or has the embedded model's."""
    block = torch.nn.Module()
    block.attn2 = torch.nn.Module()
    block.attn2.to_k = torch.nn.Linear(128 if context == "embedded" else context, 96, bias=False)
    if context == "embedded":
        block.attn2.to_k.weight.data = next(iter(embedded_keys().values()))
    return block


def embedded_keys():
    weights = load_file(place.CHECKPOINT)
    return {name: weight for name, weight in weights.items() if name.endswith("attn2.to_k.weight")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", range(len(embedded_keys())))
def test_the_embedded_model_is_known_by_its_weights_in_any_precision(dtype, number):
    block = unet("embedded")
    block.attn2.to_k.weight.data = list(embedded_keys().values())[number].to(dtype)
    assert profile_of(block).name() == "decouple-drawn (measured)"


@pytest.mark.parametrize("how", ["trained on", "shuffled", "of another seed", "not there yet"])
def test_a_model_of_the_embedded_one_s_widths_is_not_taken_for_it(how):
    block = unet("embedded")
    weight = block.attn2.to_k.weight.data.float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(weight.shape, generator=generator) * weight.std()
    made = {
        "trained on": weight + 0.05 * noise, "shuffled": weight.flip(0), "of another seed": noise,
        "not there yet": weight.to("meta"),
    }  # fmt: skip
    block.attn2.to_k.weight = torch.nn.Parameter(made[how])
    assert profile_of(block).name() == "models not known here (not measured)"


@pytest.fixture
def profile(monkeypatch):
    """A profile with every field its own, in the embedded one's place, so that tuning anew changes no test."""
    made = Profile(
        "decouple-drawn", "Made up.", measured=True, loss="intensity + 0.3*com", size=1.5, window=(0.25, 0.7),
        stop_below=0.81,
    )  # fmt: skip
    monkeypatch.setitem(EMBEDDED, "decouple-drawn", made)
    return made


@pytest.mark.parametrize("wrapped", ["model", "forge_objects"])
@pytest.mark.parametrize(
    ("context", "steps", "told", "wanted"),
    [
        ("embedded", 20, "decouple-drawn (measured)",
         {"loss": "intensity + 0.3*com", "size": 1.5, "start": 5, "steps": 14, "stop": "on", "stop_below": 0.81}),
        ("embedded", 4, "decouple-drawn (measured)",
         {"loss": "intensity + 0.3*com", "size": 1.5, "start": 1, "steps": 3, "stop": "on", "stop_below": 0.81}),
        ("embedded", 1, "decouple-drawn (measured)",
         {"loss": "intensity + 0.3*com", "size": 1.5, "start": 0, "steps": 1, "stop": "on", "stop_below": 0.81}),
        (768, 20, "Stable Diffusion 1.x (not measured)", {"layers": "early"}),
        (1024, 20, "Stable Diffusion 2.x (not measured)", {"layers": "early"}),
        (2048, 30, "Stable Diffusion XL (not measured)", {"layers": "early"}),
        (128, 20, "models not known here (not measured)", {}),
        (7, 20, "models not known here (not measured)", {}),
    ],
)  # fmt: skip
def test_what_is_left_open_is_the_loaded_model_s_and_stands_closed_in_the_infotext(
    host, profile, wrapped, context, steps, told, wanted
):
    p = job()
    p.steps = steps
    model = SimpleNamespace(diffusion_model=unet(context))
    if wrapped == "forge_objects":
        p.sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=SimpleNamespace(model=model)))
    else:
        p.sd_model = SimpleNamespace(model=model)
    host.jobs.begin(p, "txt2img", [{"enabled": True}])
    run = p.attention_decoupling
    assert run.settings == Settings(enabled=True, **{**FIXED, **wanted})
    assert told in run.profile_told
    written = {key: value for key, value in p.extra_generation_params.items() if not callable(value)}
    assert (written["Decouple preset"], written["Decouple profile"]) == ("Auto", told)
    assert infotext.read(written) == run.settings  # whatever the profile says one day


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ({}, "early"),
        ({"size": 0.3, "steps": 10, "rule": "attend-excite", "gradient": "late", "look": "choose"}, "early"),
        ({"loss": "intensity"}, "auto"),
        ({"loss": "com"}, "auto"),  # as every infotext and preset from before has it
        ({"stop": "presence"}, "auto"),  # its curve is learned from all of the level
        *(({"layers": one}, one) for one in ("all", "last", "early")),
    ],
)
def test_layers_are_the_profiles_only_where_they_are_left_open_with_the_loss(host, given, layers):
    p = job()
    p.sd_model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet(2048)))
    host.jobs.begin(p, "txt2img", [{"enabled": True, **given}])
    run = p.attention_decoupling
    assert run.settings.layers == layers
    filled = run.profile_told.partition(" fills ")[2].partition(".")[0].split(", ")
    assert ("layers" in filled) is (given.get("layers", "auto") != layers)
    written = {key: value for key, value in p.extra_generation_params.items() if not callable(value)}
    assert written.get("Decouple layers", "auto") == layers
    again = job()
    again.sd_model = p.sd_model
    host.jobs.begin(again, "txt2img", [infotext.read(written).as_dict()])
    assert again.attention_decoupling.settings == run.settings


def test_an_infotext_from_before_layers_were_a_profiles_draws_what_it_drew(host):
    p = job()
    p.sd_model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet(2048)))
    before = infotext.read({"Decouple": "1", "Decouple preset": "Auto", "Decouple profile": "Stable Diffusion XL"})
    host.jobs.begin(p, "txt2img", [before.as_dict()])
    assert p.attention_decoupling.settings == Settings(enabled=True).fixed()


def test_what_was_chosen_stands_over_the_profile(host, profile):
    p = job()
    p.sd_model = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet("embedded")))
    host.jobs.begin(p, "txt2img", [{"enabled": True, "loss": "kl", "steps": 3}])
    settings = p.attention_decoupling.settings
    assert settings == Settings(enabled=True, loss="kl", steps=3, start=0, rule="relative", size=1.5, stop="off")
    host.jobs.begin(p, "txt2img", [{"enabled": True, "rule": "attend-excite", "stop": True, "stop_below": 0.5}])
    settings = p.attention_decoupling.settings
    assert (settings.size, settings.stop, settings.stop_below) == (20.0, "on", 0.5)
    host.jobs.begin(p, "txt2img", [{"preset": "Balanced"}])
    assert p.attention_decoupling.profile == ""
    assert "Decouple profile" not in p.extra_generation_params


def test_no_trace_stays_when_none_are_to_be_kept(host):
    cleared = []
    host.jobs.runs.clear = lambda: cleared.append(True)
    host.jobs.begin(job(), "txt2img", [{"enabled": True}])
    assert not cleared
    host.opts.data["decouple_keep_traces"] = 0
    host.jobs.begin(job(), "txt2img", [{"enabled": True}])
    assert cleared


def test_a_positional_list_of_before_goes_on_to_compare(host):
    assert api.ORDER[21:25] == ("compare", "look", "drafts", "gradient")  # new ones are appended
    p = job()
    values = [
        True,
        "com",
        0,
        "",
        "relative",
        0.15,
        0,
        "raw",
        "mean",
        "",
        0.0,
        20,
        False,
        0.0,
        1,
        False,
        False,
        "auto",
        0,
    ]
    host.jobs.begin(p, "txt2img", [*values, False, False, True])
    assert p.n_iter == 2


def test_an_option_that_is_not_allowed_is_told_and_the_default_holds(host):
    host.opts.data.update(decouple_keep_traces="x", decouple_map_files="zzz", decouple_live_panel=3)
    p = job()
    host.jobs.begin(p, "txt2img", [{"enabled": True}])
    run = p.attention_decoupling
    assert (run.kept, run.problem) == (True, "")
    for told in ("decouple_keep_traces: 'x'", "decouple_map_files: 'zzz'", "decouple_live_panel: 3"):
        assert any(told in note for note in run.notes), told
        assert any(told in comment for comment in p.comments), told
    assert "Decouple" in p.extra_generation_params


def test_info_holds_what_the_infotext_does_and_nothing_empty(host):
    p = job()
    host.jobs.begin(p, "txt2img", [{"enabled": True, "steps": 3}])
    processed = SimpleNamespace(extra_generation_params=p.extra_generation_params, images=[])
    p.attention_decoupling.problem = "no model"
    host.jobs.end(p, "txt2img", processed)
    told = processed.extra_generation_params
    assert (told["Decouple steps"], told["Decouple stood aside"]) == ("3", "no model")
    assert told["Decouple version"] == lib_decouple.__version__
    assert "" not in told.values()
    assert "Decouple found" not in told
    assert told["Decouple run"] == p.attention_decoupling.id
    left = p.extra_generation_params
    of_image = {"p": p, "index": 0, "all_prompts": p.all_prompts, "use_main_prompt": False}
    assert left["Decouple run"](**of_image) is None  # it is in no picture
    assert left["Decouple stood aside"](**of_image) == "no model"  # the host may still ask for an image's
    assert json.loads(json.dumps(left)) == told  # as a script tells that draws copies of a job


@pytest.mark.parametrize("over", [True, False])
def test_a_copy_within_a_job_takes_nothing_from_it(host, over):
    """A script's copies come one after another; ADetailer's while the job that shares its entries is drawn."""
    p = job()
    host.jobs.begin(p, "txt2img", [{"enabled": True}])
    p.attention_decoupling.over = over
    inner = copy.copy(p)
    host.jobs.begin(inner, "txt2img", [{"enabled": True}])
    inner.attention_decoupling.problem = "no model"
    host.jobs.end(inner, "txt2img", SimpleNamespace(extra_generation_params={}, images=[]))
    left = p.extra_generation_params
    assert json.loads(json.dumps(left))["Decouple stood aside"] == "no model"
    assert ("Decouple found" in left) is not over
    assert host.jobs.status_of(json.dumps({"extra_generation_params": left}))[0] == ["Stood aside: no model"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("decouple_keep_traces", 3, ""), ("decouple_keep_traces", 3.0, ""), ("decouple_keep_traces", None, ""),
        ("decouple_keep_traces", "3", "0 to 100"), ("decouple_keep_traces", True, "0 to 100"),
        ("decouple_keep_traces", 101, "0 to 100"), ("decouple_keep_traces", 1.5, "0 to 100"),
        ("decouple_keep_traces", float("nan"), "0 to 100"), ("decouple_keep_traces", float("inf"), "0 to 100"),
        ("decouple_look_after", "true", "true or false"), ("decouple_map_files", ["off"], "off, gallery, files"),
        ("decouple_live_panel", 1, "true or false"), ("decouple_preset_folder", "/tmp", "not by the API"),
        ("decouple_preset_folder", "", ""), ("sd_vae", 3, ""),
    ],
)  # fmt: skip
def test_a_client_of_the_api_is_told_which_option_is_not_allowed(host, name, value, words):
    from lib_decouple.webui import options

    told = options.refused({name: value})
    assert words in told
    assert (name in told) == bool(words)
    host.opts.data[name] = value
    assert options.refused({name: value}) == "" or value != value  # clients send back what they were given
    assert words == "" or "not by the API" in words or any(words in one for one in options.problems())


def sampled(host, p, **given):
    """One batch of a job, past our hooks on its sampling."""
    host.jobs.begin(p, "img2img", [{"enabled": True, **given}])
    of_image = {"p": p, "index": 0, "all_prompts": p.all_prompts, "use_main_prompt": False}
    told = p.extra_generation_params["Decouple stood aside"]
    before = told(**of_image)
    host.jobs.after_batch(p, 0)
    return before, told(**of_image)


def test_a_picture_that_was_drawn_past_the_sampler_says_so(host):
    p = job()
    assert sampled(host, p) == (None, report.NOT_REACHED)
    assert p.attention_decoupling.lines() == [f"Stood aside: {report.NOT_REACHED}"]
    p = job()
    p.scripts.selectable_scripts = [SimpleNamespace(title=lambda: "img2img alternative test")]
    p.script_args = [1]
    assert "img2img alternative test" in sampled(host, p)[1]


def test_a_job_of_the_hires_pass_alone_says_which_setting_guides_it(host):
    p = job()
    p.is_hr_pass = True
    host.jobs.begin(p, "txt2img", [{"enabled": True}])
    host.jobs.before_sampling(p, None)
    host.jobs.after_batch(p, 0)
    assert "Hires pass too" in p.attention_decoupling.lines()[0]


def test_plain_batches_of_a_comparison_have_no_reason(host):
    p = job()
    host.jobs.begin(p, "txt2img", [{"compare": True}])
    run = p.attention_decoupling
    for batch in range(2):
        host.jobs.after_batch(p, batch)
    assert [run.result("Decouple stood aside", batch, 0) for batch in range(2)] == [None, report.NOT_REACHED]


@pytest.mark.parametrize(
    ("moved", "reason", "label"),
    [
        (0.1, "", "decoupled"), (0.1, "at step 3 of 6: out of memory", "decoupled, then stood aside"),
        (0.0, "", "left alone"),
        (None, "", "not decoupled: stood aside"), (None, "a reason", "not decoupled: stood aside"),
    ],
)  # fmt: skip
def test_only_a_picture_that_was_guided_is_called_decoupled(host, monkeypatch, moved, reason, label):
    from lib_decouple.core.trace import ImageTrace, Measures, StepRecord

    told = []
    monkeypatch.setattr("lib_decouple.webui.compare.add_pictures", lambda *args: told.append(args[2](1)) or "")
    p = job()
    host.jobs.begin(p, "txt2img", [{"compare": True}])
    run = p.attention_decoupling
    if moved is not None or reason:
        steps = [StepRecord(0, 0.0, Measures({}, {}, {}, {}, {}, {}), update_norm=moved)] if moved is not None else []
        run.passes.append(
            SimpleNamespace(iteration=1, hires=False, traces=[ImageTrace((), steps)], left_alone=[""],
                            stood_aside=reason, exact_since="", seconds=0.0, beside=ExtraPasses(), step=6, total=6,
                            teller=SimpleNamespace(told=[None]),
                            choices=[None], no_drafts="", drew=True)
        )  # fmt: skip
    host.jobs.after_batch(p, 1)
    host.jobs._put_side_by_side(run, run.comparison, None)
    assert told == [label]


def ended(host, **given):
    """A job that stood aside, and what the host tells its page."""
    p = job()
    host.jobs.begin(p, "txt2img", [{"enabled": True, **given}])
    p.attention_decoupling.problem = "no model"
    processed = SimpleNamespace(extra_generation_params=p.extra_generation_params, images=[])
    host.jobs.end(p, "txt2img", processed)
    return json.dumps({"extra_generation_params": processed.extra_generation_params}, default=lambda o: None)


def test_each_page_is_told_of_its_own_job(host):
    first = ended(host)
    host.state.time_start = 2.0
    ended(host, loss="iou")
    host.jobs.told[next(reversed(host.jobs.told))].lines[:] = ["of another"]
    assert host.jobs.status_of(first) == (["Stood aside: no model"], "")
    for unknown in ("", "{", "[]", "{}", '{"extra_generation_params": {"Decouple run": "guessed"}}', None):
        assert host.jobs.status_of(unknown) == ([], "")


def test_a_job_of_many_runs_tells_of_the_last(host):
    first = ended(host)
    ended(host)
    host.jobs.told[next(reversed(host.jobs.told))].lines[:] = ["the last cell"]
    assert host.jobs.status_of(first) == (["the last cell"], "")


def test_only_the_last_ones_are_remembered(host):
    from lib_decouple.webui import jobs

    for _ in range(jobs.MOST_TOLD + 3):
        ended(host)
    assert len(host.jobs.told) == jobs.MOST_TOLD


def test_a_comparison_that_is_left_out_is_told_to_its_page(host):
    p = job()
    p.scripts.selectable_scripts, p.script_args = [SimpleNamespace(title=lambda: "X/Y/Z plot")], [1]
    host.jobs.begin(p, "txt2img", [{"compare": True}])
    assert p.attention_decoupling is None
    made = p.extra_generation_params["Decouple run"]
    assert made() is None  # in no infotext
    lines, kept = host.jobs.status_of(json.dumps({"extra_generation_params": p.extra_generation_params}))
    assert lines[0].startswith("Compare is left out")
    assert kept == ""


def test_a_page_s_run_is_known_by_its_task_and_an_api_s_is_not(host):
    sys.modules["modules.progress"].current_task = "task(abc)"
    p = job()
    host.jobs.begin(p, "txt2img", [{"enabled": True}])
    assert p.attention_decoupling.task == "task(abc)"
    p = job()
    p.is_api = True
    host.jobs.begin(p, "txt2img", [{"enabled": True}])
    assert p.attention_decoupling.task == ""
