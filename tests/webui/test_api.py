from __future__ import annotations

import json
from dataclasses import fields

import pytest

from lib_decouple import presets
from lib_decouple.settings import Settings
from lib_decouple.webui.api import BESIDE, ORDER, arguments_from, problem_of, settings_from


def test_positional_order_is_append_only():
    assert ORDER[:17] == (
        "enabled", "loss", "steps", "entities", "rule", "size", "factor", "treatment", "combine", "refine_steps",
        "refine_threshold", "refine_rounds", "stop", "stop_below", "every", "hires", "one_at_a_time",
    )  # fmt: skip
    assert ORDER[17:22] == ("layers", "start", "recompute", "skip_missing", "compare")
    assert sorted(ORDER) == sorted([*(item.name for item in fields(Settings)), *BESIDE])


NAMED = {"enabled": True, "loss": "iou", "steps": 25, "entities": ["cat", "dog"]}


@pytest.mark.parametrize(
    "args",
    [
        [NAMED],
        [json.dumps(NAMED)],
        [NAMED, "com", 0, "what the host fills up with"],
        [True, "iou", 25, "cat, dog"],
        [True, "iou", 25.0, ["cat", "dog"]],
        [True, "iou", "25", "cat,dog", "auto", "0", 0, "raw", "mean", "", 0],
    ],
)
def test_all_forms_are_the_same_settings(args):
    assert settings_from(args) == Settings(enabled=True, loss="iou", steps=25, entities=("cat", "dog"))


def test_what_the_controls_send_is_the_defaults():
    from lib_decouple.webui.infotext import to_text

    defaults = Settings()
    beside = {"compare": False, "draw": "", "drafts_only": False}
    values = [getattr(defaults, name, beside.get(name)) for name in ORDER]
    assert settings_from([to_text(v) if isinstance(v, tuple) else v for v in values]) == defaults


def test_compare_is_an_argument_and_no_setting():
    assert arguments_from([{"compare": True, "loss": "iou"}]) == (Settings(loss="iou"), True, None, False)
    assert arguments_from([{"compare": True, "preset": "fast"}]).settings.enabled
    assert arguments_from([True]).compare is False
    defaults = Settings()
    beside = {"compare": True, "draw": "a/0/1", "drafts_only": False}
    values = [getattr(defaults, name, beside.get(name)) for name in ORDER]
    assert arguments_from(values) == (defaults, True, ("a", 0, 1), False)


def test_a_preset_turns_on_and_other_arguments_stand_over_it(tmp_path):
    fast = presets.load("fast").settings
    assert settings_from([{"preset": "FAST"}]) == Settings(enabled=True, **fast)
    changed = settings_from([{"steps": 9, "every": 1, "preset": "fast", "entities": ["cat"]}])
    assert changed == Settings(enabled=True, **{**fast, "steps": 9, "every": 1, "entities": ["cat"]})
    assert not settings_from([json.dumps({"preset": "fast", "enabled": False})]).enabled
    presets.save(presets.Preset("Mine", "", {"loss": "cc"}), tmp_path)
    assert settings_from([{"preset": "mine"}], tmp_path) == Settings(enabled=True, loss="cc")


def test_a_list_that_a_webui_filled_up_may_be_handed_on_to_another():
    controls = ["iou", 0, "", "constant"]
    filled = [{"loss": "kl"}, *controls, *[None] * (len(ORDER) - 1 - len(controls))]
    assert problem_of(request(filled)) == ""
    assert settings_from(filled) == Settings(loss="kl")
    assert "stps" in problem_of(request([{"stps": 3}, *filled[1:]]))


def test_no_arguments_are_the_defaults():
    assert settings_from([]) == Settings()


def nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


def filled(value):
    """Named arguments in a list that a WebUI has filled up, one of whose values is this."""
    return [{"loss": "kl"}, value, *[None] * (len(ORDER) - 2)]


def request(args):
    return {"prompt": "a", "alwayson_scripts": {"Attention decoupling": {"args": args}, "other": {"args": [1]}}}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([{"loss": "iuo"}], ("loss", "iuo", "iou, com, kl, cc, intensity, spread")),
        ([{"stps": 3}], ("stps", "did you mean steps", "preset, compare")),
        ([{"presets": "fast"}], ("presets: no such field (did you mean preset?)",)),
        ([{"preset": "fast", "Compare": True}], ("Compare: no such field (did you mean compare?)",)),
        ([{"\ud800": 1}], ("no such field",)),
        ([{"": 1}], ("'': no such field; allowed are enabled",)),
        ([{"steps ": 1}], ("'steps ': no such field (did you mean steps?)",)),
        ([{"ENTITIES": ["cat"]}], ("ENTITIES: no such field (did you mean entities?)",)),
        ([{"steps": True}], ("steps: True", "a whole number, -1 to 150 steps")),
        ([{"entities": [["cat"]]}], ("entities: [['cat']]", "a list of words or phrases")),
        ([[{"enabled": True}]], ("enabled: [{'enabled': True}]", "true or false")),
        (["null"], ("enabled: 'null'", "true or false")),
        ([True, None], ("loss: None", "a text")),
        ([{"draw": 5}], ("draw: 5", "RUN/IMAGE/SEED")),
        ([{"loss": "\ud800"}], ("loss: '\\ud800'", "half")),
        ([{"entities": ["cat", "d\udfffg"]}], ("entities", "\\udfff", "half")),
        ([nested(1_100)], ("args: nested too deeply",)),
        ([{"loss": nested(1_100)}], ("args: nested too deeply",)),
        ([{"enabled": True}, *[None] * (len(ORDER) - 2), nested(1_100)], ("args: nested too deeply",)),
        ([True, "com", nested(1_100)], ("args: nested too deeply",)),
        (filled(10**400), ("args: 1000", "64 bits")),
        (filled([{"x": -(2**63) - 1}]), ("args: [{'x': -9223372036854775809}]", "64 bits")),
        (filled("\ud800"), ("args: '\\ud800'", "half characters")),
        (filled({"\udfff": 1}), ("args: {'\\udfff': 1}", "half characters")),
        (filled(float("nan")), ("args: nan", "64 bits")),
        (['{"loss": ' + "[" * 100_000 + "]" * 100_000 + "}"], ("args: nested too deeply",)),
        ([{"size": 10**400}], ("size: 1000", "0 to 10000")),
        ([{"compare": "x" * 10_000}], ("compare: 'xxx", "…", "true or false")),
        ([{"steps": 151}], ("steps", "151", "-1 to 150 steps")),
        ([{"size": float("nan")}], ("size", "nan")),
        ([{"entities": "cat"}], ("entities", "cat", "a list")),
        ([{"refine_steps": [1.5]}], ("refine_steps", "1.5", "whole")),
        ([{"factor": 3}], ("factor", "3", "power of two")),
        (["{broken"], ("not JSON",)),
        ([{"preset": "balnced"}], ("balnced", "did you mean Balanced", "Paper exact")),
        ([{"preset": "../Mine"}], ("../Mine", "there are Auto, Balanced")),
        ([{"preset": ["fast"]}], ("preset: ['fast']", "a name")),
        ([{"preset": "fast", "steps": 151}], ("steps", "151", "-1 to 150 steps")),
        ([{"preset": "fast", "self": 1}], ("self: no such field",)),
        (['{"preset": 5}'], ("preset: 5",)),
        ([{"compare": "yes"}], ("compare: 'yes'", "true or false")),
        ([{"compare": 1, "preset": "fast"}], ("compare: 1", "true or false")),
        ([{}, 1], ("stand alone",)),
        ([True] * 99, ("99 values", f"at most {len(ORDER)}")),
        ("text", ("text",)),
    ],
)
def test_a_problem_names_field_value_and_what_is_allowed(args, words):
    problem = problem_of(request(args))
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"enabled": True}, ("enabled", 'beside "args"', '{"args": [{"enabled": true}]}')),
        ({"preset": "fast"}, ("preset", 'beside "args"')),
        ({"args": [{}], "compare": True}, ("compare", 'beside "args"')),
        ({"arg": [{}]}, ("arg: no such part", '"args"')),
        ({"args": [{}], "args ": []}, ("'args ': no such part", '"args"')),
        ({"args": False}, ("args: False", "a list")),
        ("", ("'' is not allowed", '{"args": [{"enabled": true}]}')),
        (None, ("None is not allowed", '{"args": [{"enabled": true}]}')),
        (True, ("True is not allowed", '{"args": [{"enabled": true}]}')),
        ([{"enabled": True}], ("[{'enabled': True}] is not allowed", '{"args": [{"enabled": true}]}')),
        ({"args": None}, ("args: None", "a list")),
        ({"args": {"enabled": True}}, ("args: {'enabled': True}", "a list")),
        (nested(1_100), ("nested too deeply",)),
        ({"args": nested(1_100)}, ("nested too deeply",)),
    ],
)
def test_a_part_that_is_no_list_of_arguments_is_told(part, words):
    problem = problem_of({"alwayson_scripts": {"attention decoupling": part}})
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"alwayson_scripts": None}, request([NAMED]), request([]), {"alwayson_scripts": {"other": None}}],
)
def test_good_requests_have_no_problem(body):
    assert problem_of(body) == ""


def test_compare_beside_a_script_that_draws_by_itself_is_refused():
    compared = {**request([{"compare": True}]), "script_name": "X/Y/Z plot"}
    assert "compare: beside the script 'X/Y/Z plot' it can't be done" in problem_of(compared)
    assert problem_of({**compared, "script_name": None}) == ""
    assert problem_of({**request([{}]), "script_name": "X/Y/Z plot"}) == ""


def test_a_request_may_name_a_preset_of_the_user(tmp_path):
    assert "no 'Mine'" in problem_of(request([{"preset": "Mine"}]), tmp_path)
    presets.save(presets.Preset("Mine", "", {"loss": "cc"}), tmp_path)
    assert problem_of(request([{"preset": "Mine"}]), tmp_path) == ""
    (tmp_path / "Mine.json").write_text("{")
    assert "not JSON" in problem_of(request([{"preset": "Mine"}]), tmp_path)


def test_bad_request_is_answered_before_the_host_draws():
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
    from starlette.testclient import TestClient

    from lib_decouple.webui.api import check_requests

    app = fastapi.FastAPI()
    drawn = []

    def draw(body: dict):
        drawn.append(body)
        return "drawn"

    app.add_api_route("/sdapi/v1/txt2img", draw, methods=["POST"])
    app.add_api_route("/sdapi/v1/options", draw, methods=["POST"])
    app.add_api_route("/sdapi/v1/options", lambda: {"x": 1}, methods=["GET"])
    check_requests(
        app,
        pasted=lambda text: "Decouple: version 2" if text == "bad" else "",
        options=lambda values: "decouple_keep_traces: 'x'" if values.get("decouple_keep_traces") == "x" else "",
    )
    client = TestClient(app)
    answer = client.post("/sdapi/v1/txt2img", json=request([{"steps": -2}]))
    assert answer.status_code == 422
    assert "steps: -2 is not allowed; -1 to 150 steps" in answer.json()["detail"]
    assert not drawn
    assert client.post("/sdapi/v1/txt2img", json=request([NAMED])).json() == "drawn"
    for sent in (b'{"alwayson_scripts": {"attention decoupling": {"args": [{"\\ud800": 1}]}}}', NESTED):
        answer = client.post("/sdapi/v1/txt2img", content=sent, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text
    assert client.post("/sdapi/v1/txt2img", json={"infotext": "bad"}).json()["detail"].endswith("version 2")
    assert client.post("/sdapi/v1/txt2img", json={"infotext": "good"}).json() == "drawn"
    bad = {"decouple_keep_traces": "x"}
    assert client.post("/sdapi/v1/txt2img", json={"override_settings": bad}).status_code == 422
    drawn.clear()
    answer = client.post("/sdapi/v1/options", json=bad)
    assert (answer.status_code, drawn) == (422, [])
    assert "decouple_keep_traces: 'x'" in answer.json()["detail"]
    assert client.post("/sdapi/v1/options", json={"decouple_keep_traces": 3}).json() == "drawn"
    assert client.get("/sdapi/v1/options").json() == {"x": 1}


NESTED = b'{"alwayson_scripts": {"attention decoupling": {"args": [' + b"[" * 500 + b"]" * 500 + b"]}}}"
