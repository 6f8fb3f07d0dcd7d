"""The blind comparison: its order and store, over real HTTP, and in a real browser where there is one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate.rate import Deck, arms_of, bind, checked_token, clean_name, make_app, make_server
from tests.browser import chromium, until

from .runs import ARMS, PROMPTS, make_run

TOKEN = "only-for-the-invited"


@contextmanager
def served(deck, **how):
    """The page's address, its server running in a thread."""
    with bind("127.0.0.1", 0) as listening:
        server = make_server(make_app(deck, **how))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def store(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def deck(store):
    return Deck(store, ARMS)


def call(url, body=None, headers=None, follow=True):
    """Status, headers and bytes of one request; a body is posted as JSON."""
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    opener = urllib.request.build_opener(*([] if follow else [Stay]))
    try:
        with opener.open(request, timeout=20) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def of_browser(name):
    """A browser's own cookie."""
    return {"Cookie": f"decouple_rater={hashlib.sha256(name.encode()).hexdigest()}"}


def post(url, browser=None, **body):
    """As a rater's own browser does."""
    status, _, data = call(url, body, of_browser(browser or body["rater"]))
    assert status == 200, data
    return json.loads(data)


def rate_all(url, rater, choice="left", ticks=None):
    """Answer everything; every state that was seen."""
    state = post(f"{url}/state", rater=rater)
    seen = [state]
    while state["pair"]:
        state = post(
            f"{url}/answer",
            rater=rater,
            pair=state["pair"]["key"],
            choice=choice,
            ticks=ticks or {"left": [], "right": []},
        )
        seen.append(state)
    return seen


def test_every_pair_is_shown_once_against_the_first_arm(deck, store):
    rows = {row["id"]: row for row in store.images()}
    pairs = [tuple(rows[i]["arm"] for i in pair.ids) for pair in deck.pairs]
    assert Counter(pairs) == {("plain", "zebracom"): 6, ("plain", "quaggaiou"): 6}
    assert all(len({(rows[i]["prompt"], rows[i]["seed"]) for i in pair.ids}) == 1 for pair in deck.pairs)
    assert sorted(one.pair.ids for one in deck.order("ann")) == sorted(pair.ids for pair in deck.pairs)


def test_order_and_sides_differ_between_raters_and_come_again_after_a_restart(deck, store):
    def told(own, rater):
        return [(one.key, one.pair.ids, one.sides[0]["arm"], one.keys) for one in own.order(rater)]

    assert told(deck, "ann") == told(Deck(store, ARMS), "ann")
    assert told(deck, "ann") != told(deck, "bob")
    assert told(deck, "ann") != told(Deck(store, ARMS, seed=1), "ann")
    sides = Counter(one.sides[0]["arm"] == "plain" for i in range(100) for one in deck.order(f"rater {i}"))
    assert 500 < sides[True] < 700  # of 1200: 600 expected, 17 standard deviation
    first = Counter(deck.order(f"rater {i}")[0].pair.ids for i in range(100))
    assert len(first) > 8


def test_no_picture_comes_again_before_every_case_was_seen(deck):
    for rater in ("ann", "bob", "cleo"):
        cases = [(one.sides[0]["prompt"], one.sides[0]["seed"]) for one in deck.order(rater)]
        assert len(set(cases[:6])) == len(set(cases[6:])) == 6


def test_a_limit_takes_the_same_pairs_for_all_evenly_over_prompts(store):
    deck = Deck(store, ARMS, n=4)
    assert {one.pair.ids for one in deck.order("ann")} == {one.pair.ids for one in deck.order("bob")}
    assert Counter((p.images[1]["prompt"], p.images[1]["arm"]) for p in deck.pairs) == {
        (prompt, arm): 1 for prompt, _ in PROMPTS for arm in ARMS[1:]
    }


def test_answers_go_under_the_arms_names(deck, store):
    first, second = deck.order("ann")[:2]
    deck.answer("ann", first.key, "left", {"left": [first.sides[0]["entities"][1]], "right": []})
    deck.answer("ann", second.key, "neither", None)
    one, two = store.ratings()
    assert one["pair"] == sorted(first.pair.ids)
    assert one["choice"] == first.sides[0]["arm"]
    assert one["ticks"] == {first.sides[0]["arm"]: [first.sides[0]["entities"][1]], first.sides[1]["arm"]: []}
    assert (two["choice"], two["ticks"]) == ("neither", {})


def test_undo_takes_back_the_last_and_nothing_of_others(deck, store):
    for rater, number in (("ann", 2), ("bob", 1)):
        for one in deck.order(rater)[:number]:
            deck.answer(rater, one.key, "both", None)
    assert deck.undo("ann")
    assert deck.state("ann")["pair"]["key"] == deck.order("ann")[1].key
    assert deck.state("ann")["done"] == deck.state("bob")["done"] == 1
    assert deck.undo("ann")
    assert not deck.undo("ann")
    assert [row["rater"] for row in store.ratings()] == ["bob"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rater": "ann", "pair": "0" * 32, "choice": "left"}, "pair: no such pair"),
        ({"rater": "ann", "choice": "plain"}, "choice: 'plain' is not one of left, right, both, neither"),
        ({"rater": "ann", "choice": "left", "ticks": {"left": []}}, "ticks: left and right are needed"),
        ({"rater": "ann", "choice": "left", "ticks": {"left": ["cow"], "right": []}}, "ticks: left must be a list"),
        ({"rater": " ", "choice": "left"}, "rater: a name of 1 to 40 printable characters"),
        ({"rater": "a" * 41, "choice": "left"}, "rater: a name"),
        ({"rater": "\ud800", "choice": "left"}, "rater: a name"),
        ({"rater": 3, "choice": "left"}, "rater: a name"),
        ([], "body: an object is needed"),
        ({"rater": "x" * 30_000}, "body: 20000 bytes at most"),
    ],
)
def test_a_bad_answer_is_refused_by_name_and_stores_nothing(deck, store, body, said):
    if isinstance(body, dict) and body.get("choice"):
        body = {
            "pair": deck.order("ann")[0].key,
            "ticks": {"left": [], "right": []},
            **body,
        }
    with served(deck) as url:
        status, _, data = call(f"{url}/answer", body)
    assert status == 400
    assert said in json.loads(data)["error"]
    assert store.ratings() == []


def test_two_raters_at_once_over_http(deck, store):
    with served(deck) as url:
        raters = [threading.Thread(target=rate_all, args=(url, name, "left")) for name in ("ann", "bob")]
        for rater in raters:
            rater.start()
        for rater in raters:
            rater.join()
        assert post(f"{url}/state", rater="ann") == {"done": 12, "total": 12, "pair": None}
        undone = post(f"{url}/undo", rater="ann")
        assert undone["done"] == 11
        assert undone["pair"]["key"] == deck.order("ann")[-1].key
    left = {("ann", one.pair.ids): one.sides[0]["arm"] for one in deck.order("ann")[:-1]}
    left |= {("bob", one.pair.ids): one.sides[0]["arm"] for one in deck.order("bob")}
    assert {(r["rater"], tuple(r["pair"])): r["choice"] for r in store.ratings()} == {
        (rater, tuple(sorted(ids))): arm for (rater, ids), arm in left.items()
    }


def test_nobody_takes_back_or_answers_for_another(deck, store):
    with served(deck) as url:
        rate_all(url, "ann")
        for headers in ({}, of_browser("bob"), {"Cookie": "decouple_rater=short"}):
            for action in ("undo", "state", "answer"):
                body = {"rater": "ann", "pair": deck.order("ann")[0].key, "choice": "both", "ticks": None}
                status, _, data = call(f"{url}/{action}", body, headers)
                assert status == 400
                assert "'ann' rates in another browser" in json.loads(data)["error"]
        assert [row["choice"] for row in store.ratings()].count("both") == 0
        assert post(f"{url}/undo", rater="ann")["done"] == 11
        _, headers, _ = call(f"{url}/state", {"rater": "carl"})
        made = headers["Set-Cookie"]
        assert "HttpOnly" in made
        assert "SameSite=strict" in made
        status, _, _ = call(f"{url}/state", {"rater": "carl"}, {"Cookie": made.partition(";")[0]})
        assert status == 200
    with served(Deck(store, ARMS)) as url:  # a restart knows them still
        assert call(f"{url}/undo", {"rater": "ann"}, of_browser("bob"))[0] == 400
        assert post(f"{url}/undo", rater="ann")["done"] == 10


def test_a_name_from_before_names_were_owned_is_freed_by_whoever_runs_the_page(deck, store):
    deck.answer("old", deck.order("old")[0].key, "both", None)
    with pytest.raises(ValueError, match="'old' rates in another browser"):
        deck.claim("old", "a secret of somebody")
    deck.release("old")
    deck.claim("old", "a secret of somebody")
    with pytest.raises(ValueError, match="'old' rates in another browser"):
        deck.claim("old", "a secret of another")


@pytest.mark.parametrize("header", [{"Origin": "http://["}, {"Host": "["}, {"Host": "[::1"}])
def test_headers_that_are_no_addresses_are_refused(deck, header):
    with served(deck) as url:
        status, _, _ = call(f"{url}/state", {"rater": "ann"}, header)
    assert status in (400, 403)


def test_nothing_that_the_page_gets_tells_an_arm(deck, store):
    """Every response of a whole session: no arm, file, folder, settings or checkpoint; ids never come again."""
    secrets = [
        *ARMS,
        "drawnhere",
        "parameters",
        "UserComment",
        "Decouple loss",
        str(store.folder),
        "0123456789ab",
        "toy",
    ]
    got: list[bytes] = []

    def kept(url, body=None):
        status, headers, data = call(url, body, of_browser("ann"))
        assert status in (200, 400, 404)
        got.append(url.removeprefix(base).encode() + str(headers).encode() + data)
        return data, headers

    with served(deck) as base:
        for path in ("/", "/page.js", "/page.css", "/config", "/picture/unknown"):
            kept(base + path)
        kept(f"{base}/answer", {"rater": "ann", "pair": "x", "choice": "left"})
        keys, state = [], json.loads(kept(f"{base}/state", {"rater": "ann"})[0])
        for turn in range(12):
            shown = deck.order("ann")[turn]
            pair = state["pair"]
            for side, row in zip(("left", "right"), shown.sides):
                keys.append(pair[side])
                data, headers = kept(f"{base}/picture/{pair[side]}")
                assert headers["Cache-Control"] == "no-store"
                assert not {"Last-Modified", "ETag", "Content-Disposition", "Server"} & set(headers)
                with Image.open(io.BytesIO(data)) as bare, Image.open(store.folder / row["file"]) as true:
                    assert not bare.info
                    assert not dict(bare.getexif())
                    assert bare.tobytes() == true.convert("RGB").tobytes()
            answer = {"rater": "ann", "pair": pair["key"], "choice": "right", "ticks": {"left": [], "right": []}}
            state = json.loads(kept(f"{base}/answer", answer)[0])
    assert len(set(keys)) == len(keys) == 24
    for data in got:
        for secret in secrets:
            assert secret.lower().encode() not in data.lower(), data[:300]


def test_an_unreadable_picture_is_told_without_its_name(deck, store):
    shown = deck.order("ann")[0]
    (store.folder / shown.sides[0]["file"]).unlink()
    with served(deck) as url:
        status, _, data = call(f"{url}/picture/{shown.keys[0]}")
    assert (status, data) == (500, b"this picture cannot be read\n")


def test_what_the_page_loads_is_its_own():
    from lib_decouple.lab.evaluate.rate import PAGE

    for path in PAGE.iterdir():
        assert "//" not in path.read_text(encoding="utf-8").replace("// the pair", ""), path.name
    deck_policy = make_app.__globals__["POLICY"]
    assert "default-src 'none'" in deck_policy
    assert "unsafe" not in deck_policy
    assert "http" not in deck_policy


def test_a_host_beyond_loopback_needs_a_token(monkeypatch):
    monkeypatch.delenv("DECOUPLE_RATE_TOKEN", raising=False)
    assert checked_token("127.0.0.1", None) is checked_token("localhost", None) is checked_token("::1", None) is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ValueError, match=f"host: {host} lets other machines in, so --token is needed"):
            checked_token(host, None)
        assert checked_token(host, TOKEN) == TOKEN
    assert len(checked_token("0.0.0.0", "")) >= 32
    assert checked_token("0.0.0.0", "") != checked_token("0.0.0.0", "")
    with pytest.raises(ValueError, match="token: 16 letters, digits"):
        checked_token("0.0.0.0", "short")
    monkeypatch.setenv("DECOUPLE_RATE_TOKEN", TOKEN)
    assert checked_token("0.0.0.0", None) == TOKEN


def test_with_a_token_nothing_is_given_without_it(deck):
    with served(deck, token=TOKEN) as url:
        for path in ("/", "/page.js", "/config", f"/picture/{deck.order('ann')[0].keys[0]}"):
            assert call(url + path)[0] == 401
            assert call(f"{url}{path}?token={TOKEN}x")[0] == 401
            assert call(url + path, headers={"Cookie": "decouple_rate=é"})[0] == 401
        assert call(f"{url}/state", {"rater": "ann"})[0] == 401
        status, headers, _ = call(f"{url}/?token={TOKEN}", follow=False)
        assert (status, headers["Location"]) == (303, "/")
        assert "httponly" in headers["Set-Cookie"].lower()
        cookie = {"Cookie": headers["Set-Cookie"].partition(";")[0]}
        assert call(url, headers=cookie)[0] == 200
        assert call(f"{url}/state", {"rater": "ann"}, cookie)[0] == 200
        # By another name, as on a network.
        assert call(url, headers={**cookie, "Host": "evaluation.example"})[0] == 200


def test_other_sites_cannot_write_or_read(deck, store):
    answer = {"rater": "ann", "pair": deck.order("ann")[0].key, "choice": "both", "ticks": {"left": [], "right": []}}
    with served(deck) as url:
        assert call(f"{url}/answer", answer, {"Origin": "https://other.example"})[0] == 403
        assert call(f"{url}/answer", answer, {"Content-Type": "text/plain"})[0] == 400
        assert call(url, headers={"Host": "rebound.example"})[0] == 403
        assert call(f"{url}/../../store.py")[0] == 404
        assert store.ratings() == []
        assert call(f"{url}/answer", answer, {"Origin": url})[0] == 200
        assert call(url)[1]["Content-Security-Policy"].startswith("default-src 'none'")


def test_arms_and_names_are_checked(store):
    assert arms_of(store, None) == list(ARMS)
    assert arms_of(store, "quaggaiou, plain") == ["quaggaiou", "plain"]
    with pytest.raises(ValueError, match="arms: 'comm' is not one of plain, zebracom, quaggaiou"):
        arms_of(store, "plain,comm")
    with pytest.raises(ValueError, match="two different ones"):
        arms_of(store, "plain,plain")
    with pytest.raises(ValueError, match="n: -1 is not allowed"):
        Deck(store, ARMS, n=-1)
    assert clean_name(" Anna\u0308 ") == "Annä"


def test_an_arm_named_as_an_answer_is_refused(tmp_path):
    store = make_run(tmp_path / "odd", arms=("plain", "both"))
    with pytest.raises(ValueError, match="arms: 'both' is also an answer"):
        arms_of(store, None)


def test_the_command_refuses_an_open_host_and_serves_a_closed_one(store, monkeypatch, capsys):
    monkeypatch.delenv("DECOUPLE_RATE_TOKEN", raising=False)
    assert main(["evaluate", "rate", str(store.folder), "--host", "0.0.0.0"]) == 2
    assert "error: host: 0.0.0.0 lets other machines in" in capsys.readouterr().err
    root = Path(__file__).parents[3]
    command = [sys.executable, "-u", "-m", "lib_decouple", "evaluate", "rate", str(store.folder), "--port", "0"]
    with subprocess.Popen([*command, "--rater", "Ann"], cwd=root, stdout=subprocess.PIPE, text=True) as own:
        try:
            line = own.stdout.readline()
            assert line.startswith("12 pairs to rate at http://127.0.0.1:")
            url = line.split(" at ")[1].split("/ ")[0]
            for _ in range(100):
                try:
                    assert json.loads(call(f"{url}/config")[2])["rater"] == "Ann"
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
        finally:
            own.terminate()


# In a browser.


@pytest.fixture(scope="module")
def browser():
    with chromium(1200, 900) as own:
        yield own


def one(browser, selector):
    return browser.find_element("css selector", selector)


def waits_at(browser, number):
    """The page shows the pair after ``number`` answers, its pictures loaded."""
    until(lambda: one(browser, "#count").text.startswith(f"{number} of") and one(browser, "[data-choice]").is_enabled())


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def look(browser, name):
    """A screenshot for a person to look at, where DECOUPLE_SHOTS names a folder."""
    if folder := os.environ.get("DECOUPLE_SHOTS"):
        browser.save_screenshot(f"{folder}/{name}.png")


def test_a_rater_in_a_browser_by_keys_and_by_clicks(deck, store, browser):
    from selenium.webdriver.common.keys import Keys

    order = deck.order("Ann")
    with served(deck) as url:
        browser.get(url)
        until(lambda: one(browser, "#name").is_displayed())
        one(browser, "#name").send_keys("Ann", Keys.ENTER)
        waits_at(browser, 0)
        assert one(browser, "#prompt").text == order[0].sides[0]["prompt"]
        look(browser, "rate")
        press(browser, "b")  # nothing ticked: asked once more
        assert "Nothing is ticked" in until(lambda: one(browser, "#says").text)
        assert store.ratings() == []
        press(browser, "1", "7")  # the left's first, the right's second
        press(browser, Keys.ARROW_LEFT)
        waits_at(browser, 1)
        names = order[0].sides[0]["entities"]
        (rating,) = store.ratings()
        assert rating["choice"] == order[0].sides[0]["arm"]
        assert rating["ticks"] == {order[0].sides[0]["arm"]: [names[0]], order[0].sides[1]["arm"]: [names[1]]}
        # By mouse or finger: labels are as large as they look.
        one(browser, "#right .ticks label").click()
        one(browser, "[data-choice=neither]").click()
        waits_at(browser, 2)
        assert store.ratings()[1]["choice"] == "neither"
        # Undo, then the same pair again, with the ticks not carried over.
        press(browser, "u")
        waits_at(browser, 1)
        assert len(store.ratings()) == 1
        assert not browser.find_elements("css selector", ".ticks :checked")
        # Keys switched off answer nothing.
        one(browser, "#keys").click()
        press(browser, "1", "b")
        assert not browser.find_elements("css selector", ".ticks :checked")
        one(browser, "#keys").click()
        # The tab order reaches every control, with a name for each.
        names = browser.execute_script(
            "return [...document.querySelectorAll('#rate button, #rate input')].map(e => "
            "(e.labels?.[0] ?? e).textContent.trim())"
        )
        assert all(names)
        # Back after a reload: the same rater, the same place.
        browser.refresh()
        waits_at(browser, 1)
        for done in range(2, 13):
            press(browser, "1", Keys.ARROW_RIGHT)
            if done < 12:
                waits_at(browser, done)
        until(lambda: one(browser, "#done").is_displayed())
        assert "Ann: 12 of 12 pairs rated." in one(browser, "#total").text
        look(browser, "rate-done")
        asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert asked
        assert all(name.startswith(url) for name in asked)
        wrong = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert wrong == []
    choices = {tuple(r["pair"]): r["choice"] for r in store.ratings()}
    assert choices == {
        tuple(sorted(shown.pair.ids)): shown.sides[i > 0]["arm"] for i, shown in enumerate(deck.order("Ann"))
    }


def test_a_refused_name_is_not_remembered(deck, browser):
    from selenium.webdriver.common.keys import Keys

    with served(deck) as url:
        browser.get(url)
        until(lambda: one(browser, "#name").is_displayed())
        browser.execute_script("document.getElementById('name').value = 'Ann\\u200bBob'")
        one(browser, "#name").send_keys(Keys.ENTER)
        assert "rater: a name" in until(lambda: one(browser, "#says").text)
        assert browser.execute_script("return localStorage.length") == 0
        one(browser, "#name").clear()
        one(browser, "#name").send_keys("Ann", Keys.ENTER)
        waits_at(browser, 0)
        assert browser.execute_script("return Object.values(localStorage)") == ["Ann"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_phone_and_can_be_read(deck, browser, theme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    with served(deck, rater="Ann") as url:
        browser.get(url)  # another port, so nothing of the former test is remembered
        waits_at(browser, 0)
        look(browser, f"rate-phone-{theme}")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        small = browser.execute_script(
            "return [...document.querySelectorAll('#rate button, #rate .ticks label')]"
            ".filter(e => e.getBoundingClientRect().height < 44).map(e => e.textContent)"
        )
        assert small == []
        for selector in ("#prompt", "#asked", "#undo", "legend", ".ticks label", "[data-choice]", "footer label"):
            assert browser.execute_script(CONTRAST, selector) >= 4.5, selector
        bottom = browser.execute_script(
            "return document.querySelector('.choices').getBoundingClientRect().bottom - innerHeight"
        )
        assert bottom <= 0  # the answers are in view without scrolling


CONTRAST = """
const bright = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
let own = document.querySelector(arguments[0]);
const text = bright(getComputedStyle(own).color);
while (own.parentElement && getComputedStyle(own).backgroundColor === "rgba(0, 0, 0, 0)") own = own.parentElement;
const back = bright(getComputedStyle(own).backgroundColor);
return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
"""
