from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path

import pytest

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
from fastapi.testclient import TestClient  # noqa: E402

from lib_decouple import doctor, presets  # noqa: E402
from lib_decouple.presets import BUILT_IN  # noqa: E402
from lib_decouple.profiles import EMBEDDED  # noqa: E402
from lib_decouple.prompt.align import Piece  # noqa: E402
from lib_decouple.settings import Settings  # noqa: E402
from lib_decouple.webui import api, callers, check_machine, rest, schema  # noqa: E402


def tokenize(text):
    return [Piece(k, f"{word}</w>") for k, word in enumerate(text.replace(",", " ,").split(), start=1)]


def client(app=None, folder=Path, **host):
    app = app or fastapi.FastAPI()
    rest.add(app, rest.Host(tokenize, folder, **host))
    return TestClient(app)


def basic(user):
    return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


def test_tokens():
    answer = client().post("/decouple/v1/tokens", json={"prompt": "a cat, a traffic light"}).json()
    assert answer["words"][1] == {
        "text": "cat", "start": 2, "end": 5, "kind": "word", "selectable": True, "tokens": [2], "chunk": 0, "part": 0,
        "weight": 1.0, "occurrence": 1,
    }  # fmt: skip
    assert answer["suggested"] == [[1], [4, 5]]
    assert answer["tokens"] == 6


@pytest.mark.parametrize("prompt", ["", "a (red cat:1.2) AND [a|b] <lora:x:1> # no", "an elf with a hat, café, 猫"])
def test_tokens_answers_as_it_is_documented(prompt):
    """The route does not look itself, for the time that it takes."""
    host = {"model": lambda: "small", "profile": lambda: EMBEDDED["decouple-drawn"]}
    for given in ({}, {"entities": "cat, x"}):
        answer = client(**host).post("/decouple/v1/tokens", json={"prompt": prompt, **given}).json()
        fits = rest.Tokens(**answer)
        assert json.loads(getattr(fits, "model_dump_json", getattr(fits, "json", None))()) == answer


def test_a_request_that_nobody_waits_for_stops():
    read, asked = [], asyncio.Event()

    def slowly(text):
        read.append(text)
        loop.call_soon_threadsafe(asked.set)
        time.sleep(0.01)
        return []

    async def receive():
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await asked.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    app = fastapi.FastAPI()
    rest.add(app, rest.Host(slowly, Path))
    body = [json.dumps({"prompt": " AND ".join(["cat"] * 500)}).encode()]
    scope = {"type": "http", "method": "POST", "path": "/decouple/v1/tokens"}
    scope |= {"headers": [(b"content-type", b"application/json")], "query_string": b""}
    scope |= {"server": ("x", 80), "client": ("x", 1), "scheme": "http", "http_version": "1.1", "root_path": ""}
    loop = asyncio.new_event_loop()
    loop.run_until_complete(app(scope, receive, send))
    loop.close()
    assert 0 < len(read) < 500


def test_clicked_words_become_the_field_s_text():
    body = {"prompt": "a cat, a cat and a dog", "selected": [[4], [7]]}
    answer = client().post("/decouple/v1/tokens", json=body).json()
    assert answer["field"] == "cat@2, dog"
    assert [one["words"] for one in answer["entities"]] == [[4], [7]]
    again = client().post("/decouple/v1/tokens", json={"prompt": body["prompt"], "entities": answer["field"]}).json()
    assert again["entities"] == answer["entities"]


def test_a_wrong_index_is_refused():
    answer = client().post("/decouple/v1/tokens", json={"prompt": "a cat", "selected": [[7]]})
    assert answer.status_code == 422
    assert "selected: 7 is not allowed" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"prompt": "a" * 10_001}}, 422),
        ({"json": {"prompt": ["a"]}}, 422),
        ({"json": {}}, 422),
        ({"content": b"{"}, 422),
        ({"content": b" " * 200_000}, 413),
        ({"content": iter([b" " * 100_000] * 2)}, 413),
    ],
)
def test_bad_requests_are_refused(sent, status):
    answer = client().post("/decouple/v1/tokens", headers={"Content-Type": "application/json"}, **sent)
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("call", "path", "content", "words"),
    [
        ("POST", "tokens", b'{"prompt": "a \\ud800 cat"}', ""),
        ("POST", "tokens", b'{"prompt": "a cat", "entities": "\\"\\\\udfff\\""}', "lone surrogate"),
        ("POST", "tokens", b'{"prompt": NaN}', ""),
        ("POST", "tokens", b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
        ("PUT", "presets/x", b'{"settings": {"\\ud800": 1}}', "no such field"),
        ("PUT", "presets/x", b'{"settings": {"loss": "\\ud800"}}', "loss: '\\\\ud800'"),
        ("PUT", "presets/x", b'{"settings": {"size": 1' + b"0" * 400 + b"}}", "size: 1000"),
        ("PUT", "presets/x", b'{"settings": {"size": NaN}}', "size: nan"),
        ("PUT", "presets/x", b'{"settings": {"loss": ' + b"[" * 900 + b"]" * 900 + b"}}", "loss: [[["),
        ("PUT", "presets/x", b'{"settings": {}, "reason": "\\udfff"}', ""),
        ("POST", "presets/import", b'{"text": "{\\"a\\": ' + b"[" * 60_000 + b'"}', "nested too deeply"),
        ("POST", "presets/import", b'{"text": "x", "settings": {"\\ud800": 1}}', "no such field"),
    ],
)
def test_what_no_answer_can_hold_is_refused_in_words(call, path, content, words, tmp_path):
    web = client(folder=lambda: tmp_path)
    answer = web.request(call, f"/decouple/v1/{path}", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert words in answer.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prompt", ["[a:b:" + "9" * 400 + "]", "[" * 500, "(" * 500 + "cat", "[a|b:" * 300])
def test_prompts_that_no_host_can_draw_still_have_words(prompt):
    answer = client().post("/decouple/v1/tokens", json={"prompt": prompt})
    assert answer.status_code == 200, answer.text
    assert "".join(word["text"] for word in answer.json()["words"])


MINE = {"settings": {"loss": "cc", "entities": ["猫"]}, "reason": "for cats"}


@pytest.fixture
def web(tmp_path):
    return client(folder=lambda: tmp_path / "presets")


def test_presets_are_saved_listed_got_and_deleted(web, tmp_path):
    assert [one["built_in"] for one in web.get("/decouple/v1/presets").json()["presets"]] == [True] * len(BUILT_IN)
    saved = web.put("/decouple/v1/presets/Für Katzen", json=MINE)
    assert saved.status_code == 200, saved.text
    got = web.get("/decouple/v1/presets/für katzen").json()
    assert got == {**MINE, "name": "Für Katzen", "built_in": False, "text": got["text"]}
    assert presets.from_text(got["text"]) == presets.load("Für Katzen", tmp_path / "presets")
    listed = web.get("/decouple/v1/presets").json()
    assert listed["presets"][-1] == got
    assert listed["problems"] == []
    assert web.delete("/decouple/v1/presets/für katzen").json() == {"deleted": "für katzen"}
    assert list((tmp_path / "presets").iterdir()) == []


def test_nothing_is_overwritten_unasked(web):
    web.put("/decouple/v1/presets/Mine", json=MINE)
    changed = {**MINE, "settings": {"steps": 3}}
    answer = web.put("/decouple/v1/presets/mine", json=changed)
    assert (answer.status_code, answer.json()["detail"]) == (409, "name: there is a preset 'Mine' already")
    assert web.get("/decouple/v1/presets/Mine").json()["settings"] == MINE["settings"]
    assert web.put("/decouple/v1/presets/Mine", json={**changed, "overwrite": True}).status_code == 200
    assert web.get("/decouple/v1/presets/Mine").json()["settings"] == {"steps": 3}
    assert web.put("/decouple/v1/presets/Balanced", json={**changed, "overwrite": True}).status_code == 409
    assert web.delete("/decouple/v1/presets/Balanced").status_code == 409


@pytest.mark.parametrize(
    ("call", "path", "body", "status", "words"),
    [
        ("GET", "balnced", None, 404, "did you mean Balanced"),
        ("GET", "%2e%2e%2fx", None, 404, ""),
        ("DELETE", "nobody", None, 404, "nobody"),
        ("PUT", "x%00y", MINE, 422, "name"),
        ("PUT", "..%5Cx", MINE, 422, "name"),
        ("PUT", "%2Fetc%2Fpasswd", MINE, 404, ""),
        ("PUT", "nul", MINE, 422, "Windows"),
        ("PUT", "x", {**MINE, "settings": {"steps": 151}}, 422, "steps: 151"),
        ("PUT", "x", {**MINE, "settings": {"enabled": True}}, 422, "enabled"),
        ("PUT", "x", {**MINE, "settings": [1]}, 422, "settings"),
        ("PUT", "x", {**MINE, "reason": "x" * 501}, 422, "reason"),
        ("PUT", "x", {"reason": ""}, 422, "settings"),
        ("PUT", "x", {**MINE, "reason": "x" * 200_000}, 413, "larger"),
        ("POST", "import", {"text": "hello"}, 422, "DECOUPLE1"),
        ("POST", "import", {"text": "x" * 131_073}, 413, "larger"),
        ("POST", "import", {"text": presets.to_text(BUILT_IN[0]), "settings": {"steps": -2}}, 422, "steps: -2"),
    ],
)
def test_bad_preset_requests_are_told_and_change_nothing(web, tmp_path, call, path, body, status, words):
    answer = web.request(call, f"/decouple/v1/presets/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.text
    assert not list(tmp_path.iterdir()) or list(tmp_path.rglob("*")) == [tmp_path / "presets"]


def test_an_import_is_shown_before_it_is_saved(web, tmp_path):
    text = presets.to_text(presets.Preset("Mine", "", {"loss": "cc", "steps": 3}))
    asked = {"text": f"try\n> {text}", "settings": {"enabled": True, "steps": 9, "size": 0.3, "entities": ["cat"]}}
    shown = web.post("/decouple/v1/presets/import", json=asked).json()
    assert shown["preset"]["settings"] == {"loss": "cc", "steps": 3}
    assert shown["changes"] == {
        "loss": {"before": "auto", "after": "cc"}, "steps": {"before": 9, "after": 3},
        "size": {"before": 0.3, "after": 0.0},
    }  # fmt: skip
    assert (shown["taken"], shown["replaces"]) == ("", {})
    assert list(tmp_path.iterdir()) == []
    web.put("/decouple/v1/presets/mine", json=MINE)
    shown = web.post("/decouple/v1/presets/import", json=asked).json()
    assert shown["taken"] == "yours"
    assert shown["replaces"] == {
        "steps": {"before": -1, "after": 3}, "entities": {"before": ["猫"], "after": []},
    }  # fmt: skip
    shown = web.post("/decouple/v1/presets/import", json={"text": presets.to_text(BUILT_IN[0])}).json()
    assert shown["taken"] == "built in"


def test_a_folder_that_can_not_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    web = client(folder=lambda: tmp_path / "file")
    answer = web.put("/decouple/v1/presets/x", json=MINE)
    assert (answer.status_code, answer.json()["detail"]) == (507, "the presets' folder: File exists")
    assert web.get("/decouple/v1/presets").status_code == 200


@pytest.mark.parametrize(("model", "warnings"), [("", []), ("flux", ["This model (Flux) can't be guided."])])
def test_whose_tokens_they_are_and_what_is_wrong_with_the_model_is_told(model, warnings):
    app = fastapi.FastAPI()
    rest.add(app, rest.Host(tokenize, Path, model=lambda: model, warnings=lambda: warnings))
    answer = TestClient(app).post("/decouple/v1/tokens", json={"prompt": "a cat and a dog"})
    assert answer.status_code == 200
    assert (answer.json()["model"], answer.json()["warnings"]) == (model, warnings)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": ""}, ""),
        ({"prompt": "a cat and a dog"}, ""),
        ({"prompt": "beautiful, sharp"}, "no entity was found"),
        ({"prompt": "a cat"}, "only “cat” was found in the prompt, and com keeps"),
        ({"prompt": "a cat", "settings": {"loss": "intensity"}}, ""),
        ({"prompt": "a cat and a dog", "entities": "dog", "settings": {"loss": "kl + iou"}}, "only “dog”"),
        ({"prompt": "a cat and a dog", "settings": {"loss": "iuo"}}, "loss: 'iuo' is not one of"),
        ({"prompt": "a cat and a dog", "settings": {"steps": "14", "start": "5"}, "steps": 4}, "sampler makes 4"),
        ({"prompt": "a cat and a dog", "settings": {"steps": "14", "start": "5"}, "steps": 20}, ""),
        ({"prompt": "a cat and a dog", "settings": {"start": "5"}, "steps": 8}, "only the first 4 may be"),
        ({"prompt": "a cat and a dog", "settings": {"start": "5"}}, ""),  # a client that tells no number of steps
        ({"prompt": "a cat and a dog", "sampler": "LCM", "steps": 8}, "LCM"),
        ({"prompt": "a cat and a dog", "sampler": "Euler", "steps": 8}, ""),
        ({"prompt": "a cat and a dog", "settings": {"other": "x", "enabled": "True"}}, ""),
        ({"prompt": "a cat and a dog", "settings": {"stop": "presence"}}, "no curve was learned"),
        ({"prompt": "a cat and a dog", "settings": {"stop": "presence", "gradient": "none"}}, ""),
        ({"prompt": "a cat", "settings": {"gradient": "none"}}, ""),
    ],
)
def test_what_a_job_would_be_told_is_told_before_it_is_drawn(body, words):
    functions = {"LCM": "sample_lcm", "Euler": "sample_euler"}
    app = fastapi.FastAPI()
    web = rest.Host(tokenize, Path, sampler=lambda name: functions.get(name, ""), lacks_curve=lambda: True)
    rest.add(app, web)
    answer = TestClient(app).post("/decouple/v1/tokens", json=body).json()
    assert words in " ".join(answer["warnings"])
    assert bool(answer["warnings"]) == bool(words)


def test_a_profile_that_begins_later_begins_sooner_with_few_steps():
    app = fastapi.FastAPI()
    rest.add(app, rest.Host(tokenize, Path, profile=lambda: EMBEDDED["decouple-drawn"]))
    body = {"prompt": "a cat and a dog", "settings": {"steps": "-1", "start": "-1", "loss": "auto"}, "steps": 1}
    assert TestClient(app).post("/decouple/v1/tokens", json=body).json()["warnings"] == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://testserver", "Host": "testserver"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, 200),
        ({"Origin": "https://friend.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://other.testserver"}, 403),
    ],
)
def test_writes_from_other_sites_are_refused(headers, status, tmp_path):
    web = client(origins=["https://friend.example"], folder=lambda: tmp_path)
    put = web.put("/decouple/v1/presets/x", json=MINE, headers=headers)
    assert (put.status_code, web.delete("/decouple/v1/presets/x", headers=headers).status_code) == (status, status)
    assert list(tmp_path.iterdir()) == []
    assert web.post("/decouple/v1/tokens", json={"prompt": "a"}, headers=headers).status_code == status
    assert web.get("/decouple/v1/schema", headers=headers).status_code == 200


def test_api_users_and_the_page_are_let_in_and_nobody_else():
    web = client(credentials="ann:secret,bob:pässword")
    path = "/decouple/v1/schema"
    assert web.get(path).status_code == 401
    assert web.get(path).headers["WWW-Authenticate"] == "Basic"
    assert web.get(path, headers=basic("ann:wrong")).status_code == 401
    assert web.get(path, headers=basic("ann:pässword")).status_code == 401
    assert web.get(path, headers={"X-Decouple-Key": "guessed"}).status_code == 401
    assert web.get(path, headers=basic("ann:secret")).status_code == 200
    assert web.get(path, headers={"X-Decouple-Key": callers.PAGE_KEY}).status_code == 200


def with_login(app):
    """As gradio has it: a login, and a route whose dependency knows who is in."""
    app.auth = {"carl": "secret"}

    def user_of(request: fastapi.Request):
        return request.cookies.get("user")

    user_of.__annotations__["request"] = fastapi.Request
    app.add_api_route("/login_check", lambda: "", dependencies=[fastapi.Depends(user_of)])
    return app


WHO = {
    "nobody": {},
    "the page": {"X-Decouple-Key": callers.PAGE_KEY},
    "an API user": basic("ann:secret"),
    "a wrong password": basic("ann:carl"),
    "logged in": {"Cookie": "user=carl"},
}


@pytest.mark.parametrize(
    ("credentials", "login", "readers", "writers"),
    [
        ("", False, set(WHO), set(WHO)),
        ("ann:secret", False, {"the page", "an API user"}, {"an API user"}),
        ("", True, {"the page", "logged in"}, {"logged in"}),
        ("ann:secret", True, {"the page", "an API user", "logged in"}, {"an API user"}),
    ],
)
def test_who_may_read_and_write(credentials, login, readers, writers, tmp_path):
    app = with_login(fastapi.FastAPI()) if login else fastapi.FastAPI()
    web = client(app, credentials=credentials, folder=lambda: tmp_path, check=doctor.Report)
    reads = [
        ("GET", "schema", None), ("GET", "presets", None), ("GET", "presets/fast", None), ("GET", "runs", None),
        ("GET", "live", None), ("POST", "tokens", {"prompt": "a"}),
        ("POST", "presets/import", {"text": presets.to_text(BUILT_IN[0])}),
    ]  # fmt: skip
    for who, headers in WHO.items():
        for method, path, body in reads:
            answer = web.request(method, f"/decouple/v1/{path}", json=body, headers=headers)
            assert (answer.status_code == 200) == (who in readers), (who, path, answer.text)
            assert answer.status_code in (200, 401)
        for call in ("put", "delete"):
            given = {"json": MINE} if call == "put" else {}
            answer = getattr(web, call)("/decouple/v1/presets/x", headers=headers, **given)
            assert answer.status_code == (200 if who in writers else 401), (who, call, answer.text)
            assert ("WWW-Authenticate" in answer.headers) == (who not in writers and bool(credentials))
        answer = web.post("/decouple/v1/doctor", headers=headers)
        assert answer.status_code == (200 if who in writers else 401), (who, answer.text)


def test_what_the_check_finds_is_told_in_sentences_and_as_json():
    found = doctor.Report(model="a model", device="a device", dtype="float16", whole=True)
    answer = client(check=lambda: found).post("/decouple/v1/doctor").json()
    assert answer == {"sentences": doctor.sentences(found), "report": json.loads(found.as_json())}


def test_while_nothing_can_be_checked_the_answer_says_why():
    def check():
        raise check_machine.NotNow("No model is loaded yet.")

    answer = client(check=check).post("/decouple/v1/doctor")
    assert (answer.status_code, answer.json()) == (409, {"detail": "No model is loaded yet."})


def test_a_job_is_its_caller_s():
    app = with_login(fastapi.FastAPI())
    app.add_api_route("/sdapi/v1/txt2img", lambda: callers.of_job(object()), methods=["POST"])
    api.check_requests(app, caller=callers.Users(app, "ann:secret").caller)
    web = TestClient(app)

    def drawn(**headers):
        return web.post("/sdapi/v1/txt2img", json={}, headers=headers).json()

    secret = "0123456789abcdef"
    assert drawn() == ""
    assert drawn(**basic("ann:secret")) == "api:ann"
    assert drawn(**basic("ann:guessed")) == ""
    assert drawn(Authorization="Basic ???") == drawn(Authorization="Bearer x") == ""
    assert drawn(Cookie="user=carl") == "login:carl"
    mine = drawn(**{"X-Decouple-Caller": secret}, **basic("ann:secret"))
    assert mine.startswith("secret:")
    assert secret not in mine
    assert mine != drawn(**{"X-Decouple-Caller": secret + "g"})
    assert drawn(**{"X-Decouple-Caller": "short"})["detail"].startswith("X-Decouple-Caller: 5 characters")
    assert drawn() == ""  # nothing stays of the one before


def test_a_job_of_the_page_is_the_login_s():
    class Job:
        user = "carl"

    assert callers.of_job(Job()) == "login:carl"
    Job.user = None
    assert callers.of_job(Job()) == ""


def test_gradio_s_own_login_is_honoured():
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    with gradio.Blocks() as demo:
        gradio.HTML("")
    app, _, _ = demo.launch(auth=("ann", "secret"), prevent_thread_lock=True, quiet=True)
    demo.close()
    web = client(app)
    path = "/decouple/v1/schema"
    assert web.get(path).status_code == 401
    assert web.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
    assert web.get(path).status_code == 401
    assert web.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
    cookies = {name: value for name, value in web.cookies.items() if "unsecure" in name}
    assert web.get(path, cookies=cookies).status_code == 200


def test_the_routes_are_on_the_openapi_page():
    web = client()
    paths = web.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/decouple/v1/")} >= {
        "/decouple/v1/schema",
        "/decouple/v1/tokens",
        "/decouple/v1/presets",
        "/decouple/v1/presets/{name}",
        "/decouple/v1/presets/import",
    }
    for path, method in (("tokens", "post"), ("presets/{name}", "put"), ("presets/import", "post")):
        assert "requestBody" in paths[f"/decouple/v1/{path}"][method]


def test_schema_accepts_the_settings_and_refuses_what_they_refuse():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    found = client().get("/decouple/v1/schema").json()
    assert found == json.loads(json.dumps(schema.json_schema()))
    jsonschema.Draft202012Validator.check_schema(found)
    validator = jsonschema.Draft202012Validator(found)
    assert validator.is_valid(Settings().as_dict())
    assert validator.is_valid({"stop": True})
    properties = found["properties"]
    assert validator.is_valid({"preset": "balanced", "steps": 3})
    assert properties.pop("preset")["type"] == "string"
    assert properties.pop("compare")["type"] == "boolean"
    assert properties.pop("draw")["type"] == "string"
    assert {name: about["default"] for name, about in properties.items()} == Settings().as_dict()
    for bad in (
        {"steps": 151}, {"steps": "3"}, {"size": -1}, {"stop": 0}, {"rule": "other"}, {"enabled": 1},
        {"entities": "cat"}, {"entities": [" "]}, {"refine_steps": [1.5]}, {"refine_steps": [150]}, {"stps": 3},
        {"factor": 3},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(bad))):
            Settings.from_dict(bad)
        assert not validator.is_valid(bad), bad
