from __future__ import annotations

import base64
import json

import pytest

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
from fastapi.testclient import TestClient  # noqa: E402

from lib_decouple.prompt.align import Piece  # noqa: E402
from lib_decouple.settings import Settings  # noqa: E402
from lib_decouple.webui import rest, schema  # noqa: E402


def tokenize(text):
    return [Piece(k, f"{word}</w>") for k, word in enumerate(text.replace(",", " ,").split(), start=1)]


def client(app=None, **host):
    app = app or fastapi.FastAPI()
    rest.add(app, rest.Host(tokenize, lambda text: [text], **host))
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


def test_without_a_model_it_says_so():
    def none(text):
        raise rest.Unavailable("no model is loaded yet")

    app = fastapi.FastAPI()
    rest.add(app, rest.Host(none, lambda text: [text]))
    answer = TestClient(app).post("/decouple/v1/tokens", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["detail"]) == (503, "no model is loaded yet")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://testserver", "Host": "testserver"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, 200),
        ({"Origin": "https://friend.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://other.testserver"}, 403),
    ],
)
def test_writes_from_other_sites_are_refused(headers, status):
    web = client(origins=["https://friend.example"])
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
    assert web.get(path, headers={"X-Decouple-Key": rest.PAGE_KEY}).status_code == 200


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
    }
    assert "requestBody" in paths["/decouple/v1/tokens"]["post"]


def test_schema_accepts_the_settings_and_refuses_what_they_refuse():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    found = client().get("/decouple/v1/schema").json()
    assert found == json.loads(json.dumps(schema.json_schema()))
    jsonschema.Draft202012Validator.check_schema(found)
    validator = jsonschema.Draft202012Validator(found)
    assert validator.is_valid(Settings().as_dict())
    properties = found["properties"]
    assert validator.is_valid({"preset": "balanced", "steps": 3})
    assert properties.pop("preset")["type"] == "string"
    assert {name: about["default"] for name, about in properties.items()} == Settings().as_dict()
    for bad in (
        {"steps": 151}, {"steps": "3"}, {"size": 0}, {"rule": "other"}, {"enabled": 1}, {"entities": "cat"},
        {"entities": [" "]}, {"refine_steps": [1.5]}, {"refine_steps": [150]}, {"stps": 3}, {"factor": 3},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(bad))):
            Settings.from_dict(bad)
        assert not validator.is_valid(bad), bad
