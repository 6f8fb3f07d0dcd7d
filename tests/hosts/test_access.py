"""Who may do what, in real WebUIs with both kinds of users and with none; see conftest.py. Each is started for this."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from tests.hosts.conftest import CALLER, Host  # noqa: E402

ROUTES = "/decouple/v1"
API_AUTH, LOGIN = ("--api-auth", "ann:secret,bob:hidden"), ("--gradio-auth", "carl:pass")
MODES: dict[str, tuple[str, ...]] = {"none": (), "api": API_AUTH, "login": LOGIN, "both": (*API_AUTH, *LOGIN)}
READERS = {
    "none": {"nobody", "page", "ann", "bob", "carl"}, "api": {"page", "ann", "bob"}, "login": {"page", "carl"},
    "both": {"page", "ann", "bob", "carl"},
}  # fmt: skip
WRITERS = {**READERS, "api": {"ann", "bob"}, "login": {"carl"}, "both": {"ann", "bob"}}
DRAWING = {
    "prompt": "a cat and a dog", "steps": 2, "width": 64, "height": 64, "sampler_name": "Euler", "seed": 3,
    "alwayson_scripts": {"attention decoupling": {"args": [{"enabled": True, "entities": ["cat", "dog"]}]}},
}  # fmt: skip


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


class Access:
    """A WebUI in one of the modes, and those who ask it."""

    def __init__(self, webui: Host, mode: str) -> None:
        self.mode, self.url = mode, webui.url
        self.carl = self.client()
        if "--gradio-auth" in MODES[mode]:
            assert self.client().get("/config").status_code == 401
            assert self.carl.post("/login", data={"username": "carl", "password": "pass"}).status_code == 200
        key = re.search(r"data-key=.{1,3}?([\w-]{32})", self.carl.get("/config").text)
        assert key, "the page holds a key"
        self.clients = {
            "nobody": self.client(), "page": self.client({"X-Decouple-Key": key[1]}),
            "ann": self.client(basic("ann:secret")), "bob": self.client(basic("bob:hidden")), "carl": self.carl,
        }  # fmt: skip

    def client(self, headers: dict[str, str] | None = None) -> Any:
        return httpx.Client(base_url=self.url, headers=headers, timeout=300)

    def draw(self, who: str, **headers: str) -> str:
        """The id of the run that somebody draws."""
        answer = self.clients[who].post("/sdapi/v1/txt2img", json=DRAWING, headers=headers)
        assert answer.status_code == 200, answer.text
        assert "Decouple run" not in answer.json()["info"].partition('"infotexts"')[2]
        return answer.json()["info"].partition('"Decouple run": "')[2].partition('"')[0]


@pytest.fixture(scope="module", params=[f"{host}-{mode}" for host in ("a1111", "forge") for mode in MODES])
def access(request: pytest.FixtureRequest) -> Iterator[Access]:
    host, _, mode = request.param.partition("-")
    headers = {**CALLER, **basic("ann:secret")} if "--api-auth" in MODES[mode] else CALLER
    with request.getfixturevalue(f"start_{host}")(*MODES[mode], headers=headers) as webui:
        yield Access(webui, mode)


def test_who_may_read_and_who_may_write(access):
    for who, client in access.clients.items():
        for path in ("schema", "presets", "runs", "live"):
            status = client.get(f"{ROUTES}/{path}").status_code
            assert status == (200 if who in READERS[access.mode] else 401), (who, path)
        status = client.put(f"{ROUTES}/presets/Mine", json={"settings": {"loss": "cc"}}).status_code
        assert status == (200 if who in WRITERS[access.mode] else 401), who
        status = client.delete(f"{ROUTES}/presets/Mine").status_code
        assert status == (200 if who in WRITERS[access.mode] else 401), who


def test_a_run_is_for_those_who_know_its_id_and_last_is_one_s_own(access):
    clients, secret = access.clients, {"X-Decouple-Caller": "a secret of somebody"}
    drawer = {"none": "nobody", "api": "ann", "login": "carl", "both": "ann"}[access.mode]
    reader = {"none": "page", "api": "page", "login": "page", "both": "carl"}[access.mode]
    run = access.draw(drawer, **(secret if access.mode == "none" else {}))
    assert len(run) >= 22
    own = secret if access.mode == "none" else {}
    assert clients[drawer].get(f"{ROUTES}/trace/last", headers=own).json()["id"] == run
    assert run in [one["id"] for one in clients[drawer].get(f"{ROUTES}/runs", headers=own).json()["runs"]]
    for who, client in clients.items():
        if who == drawer and not own:
            continue
        for path in ("trace/last", "maps/last", "trace/last/csv", "runs", "live"):
            answer = client.get(f"{ROUTES}/{path}")
            assert answer.status_code == (
                401 if who not in READERS[access.mode] else 200 if path in ("runs", "live") else 404
            )
            assert run not in answer.text
    assert clients[reader].get(f"{ROUTES}/trace/{run}").json()["images"][0]["prompt"] == DRAWING["prompt"]
    if access.mode != "none":
        assert clients["nobody"].get(f"{ROUTES}/trace/{run}").status_code == 401


def test_another_s_secret_finds_nothing(access):
    who = {"none": "nobody", "api": "bob", "login": "nobody", "both": "bob"}[access.mode]
    run = access.draw(who, **{"X-Decouple-Caller": "my very own secret"})
    reader = access.clients["page"]
    assert reader.get(f"{ROUTES}/trace/last", headers={"X-Decouple-Caller": "my very own secret"}).json()["id"] == run
    for other in ("my very own secre", "somebody else's secret"):
        assert reader.get(f"{ROUTES}/trace/last", headers={"X-Decouple-Caller": other}).status_code == 404
    assert reader.get(f"{ROUTES}/trace/last", headers={"X-Decouple-Caller": "short"}).status_code == 422
