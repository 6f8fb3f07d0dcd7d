"""A real WebUI under hostile requests, and under hundreds of jobs; see conftest.py.

DECOUPLE_FUZZ: how many requests (10000, say), DECOUPLE_FUZZ_SEED: their seed (0), DECOUPLE_SOAK: how many jobs (500,
say); what is not set is skipped. DECOUPLE_FUZZ_HOST: a1111 (the default) or forge; where it is, conftest.py's variables
say.
"""

from __future__ import annotations

import json
import os
import random
import statistics
from collections import Counter
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from tests.hosts import hostile  # noqa: E402
from tests.hosts.conftest import CALLER, Host, encoded  # noqa: E402

GUIDED = {"entities": ["cat", "dog"], "loss": "com"}
SMALL = {"steps": 4, "width": 64, "height": 64}
SETTLED = 50
"""Jobs after which memory is to stay."""
GROWTH = 0.02
"""Of resident memory, that is no growth: the middle of the last jobs against that of those after ``SETTLED``."""


FORGE_ITSELF = "isinstance() argument 2 cannot be a parameterized generic"
"""What Forge answers with a status of 500 to a request's ``infotext`` that names certain fields, with or without us."""


@pytest.fixture(scope="module")
def webui(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue({"a1111": "host", "forge": "forge"}[os.environ.get("DECOUPLE_FUZZ_HOST", "a1111")])


def number_of(name: str) -> int:
    if not os.environ.get(name):
        pytest.skip(f"set {name} to a number")
    return int(os.environ[name])


def drawn(webui: Host) -> list[Any]:
    """What a plain and a guided job look like."""
    return [webui.draw(**SMALL).pixels, webui.draw(GUIDED, **SMALL).pixels]


def test_no_request_brings_it_down(webui):
    """Every request is answered, none with a status of 500 or more, and jobs come out as before."""
    number, seed = number_of("DECOUPLE_FUZZ"), int(os.environ.get("DECOUPLE_FUZZ_SEED", "0"))
    before = drawn(webui)
    runs = tuple(run["id"] for run in webui.get("/decouple/v1/runs")["runs"])
    options = webui.get("/sdapi/v1/options")
    counts: Counter[tuple[str, int]] = Counter()
    bad: list[str] = []
    forge_itself = 0
    with httpx.Client(base_url=webui.url, timeout=120) as client:
        for k, one in enumerate(hostile.requests(seed, number, runs)):
            headers = {**CALLER, **dict(one.headers)}
            try:
                answer = client.request(one.method, one.path, content=one.body, headers=headers)
                told, status = answer.text[:300], answer.status_code
            except httpx.HTTPError as error:
                told, status = repr(error), 599
            counts[one.path.split("?")[0].split("/")[3], status] += 1
            if (k + 1) % 250 == 0:
                print(k + 1, "of", number, "requests,", len(bad), "bad", flush=True)
            if webui.name == "forge" and b"infotext" in (one.body or b"") and FORGE_ITSELF in told:
                forge_itself += 1
            elif status >= 500 or (status == 422 and not answer.json().get("detail")):
                bad.append(
                    f"{k}: {one.method} {one.path[:200]} {one.headers} {(one.body or b'')[:600]!r}: {status} {told}"
                )
    print(number, "requests of seed", seed, sorted(counts.items()), "failed in Forge itself:", forge_itself)
    assert not bad, f"{len(bad)} of {number}:\n" + "\n".join(bad[:10])
    assert drawn(webui) == before
    assert webui.get("/sdapi/v1/options") == options
    kept = [one["name"] for one in webui.get("/decouple/v1/presets")["presets"] if not one["built_in"]]
    for name in kept:
        client_delete(webui, name)


def client_delete(webui: Host, name: str) -> None:
    from urllib.parse import quote

    assert httpx.delete(f"{webui.url}/decouple/v1/presets/{quote(name, safe='')}").status_code == 200


MEMORY = """
import ctypes, gc, os, psutil
gc.collect()
if os.name == "posix":
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
result = psutil.Process().memory_info().rss
"""
"""Without what is free and only the allocator keeps: tensors of many sizes leave gaps, which are no leak."""


def job(webui: Host, rng: random.Random, start: str) -> str:
    """One job of any kind; its name."""
    kind = rng.choice(
        (
            "plain",
            "guided",
            "batch",
            "compare",
            "img2img",
            "hires",
            "preset",
            "refused",
            "aside",
            "interrupted",
            "plot",
            "tokens",
            "late",
            "choose",
            "drafts",
        )
    )
    guided = {
        **GUIDED, "loss": rng.choice(("com", "iou", "kl", "cc", "intensity", "iou + 0.5*intensity")),
        "steps": rng.randint(1, 4), "size": rng.choice((0.05, 0.3)), "one_at_a_time": rng.random() < 0.3,
        "recompute": rng.random() < 0.3, "every": rng.randint(1, 2),
    }  # fmt: skip
    size = rng.choice((64, 96))
    given: dict[str, Any] = {"steps": 4, "width": size, "height": size, "seed": rng.randrange(1000)}
    if kind == "plain":
        webui.draw(**given)
    elif kind == "guided":
        assert webui.draw(guided, **given).value("Decouple found") == "cat, dog"
    elif kind == "batch":
        assert len(webui.draw(guided, batch_size=2, n_iter=2, **given).images) >= 4
    elif kind == "compare":
        assert len(webui.draw({**guided, "compare": True}, **given).images) == 3
    elif kind == "img2img":
        webui.draw(guided, init_images=[start], denoising_strength=0.8, **given)
    elif kind == "hires":
        webui.draw(
            {**guided, "hires": True},
            enable_hr=True,
            hr_scale=1.5,
            hr_upscaler="Latent",
            denoising_strength=0.7,
            **given,
        )
    elif kind == "preset":
        webui.draw({"preset": rng.choice(("fast", "gentle", "balanced", "low memory"))}, **given)
    elif kind == "refused":
        sent = {"prompt": "a", "alwayson_scripts": {"attention decoupling": {"args": [{"every": 0}]}}}
        assert webui.post("/sdapi/v1/txt2img", sent)[0] == 422
    elif kind == "aside":
        assert webui.draw({**guided, "entities": ["horse", "bird"]}, **given).value("Decouple stood aside")
    elif kind == "interrupted":
        webui.inside(INTERRUPT)
        webui.draw(guided, **given)
    elif kind == "plot":
        from tests.hosts.test_sharing import plot

        assert plot(webui, guided, x="Decouple loss=com,iou")[0] == 200
    elif kind == "late":
        assert webui.draw({**guided, "gradient": "late", "every": 1}, **given).value("Decouple found") == "cat, dog"
    elif kind == "choose":
        chosen = webui.draw({**guided, "look": rng.choice(("choose", "insist")), "restarts": 1}, **given)
        assert chosen.value("Decouple asked seed") == str(given["seed"])
    elif kind == "drafts":
        only = {"alwayson_scripts": {"attention decoupling": {"args": [{"drafts_only": True}]}}}
        status, answer = webui.post("/sdapi/v1/txt2img", {"prompt": "a cat and a dog", **given, **only})
        assert (status, answer["images"]) == (200, [])
        told = webui.get("/decouple/v1/drafts/last")
        best = told["images"][0]["drafts"][0]["seed"]
        assert f"Seed: {best}," in webui.draw({**guided, "draw": f"{told['id']}/0/{best}"}, **given).infotexts[0]
    else:
        webui.post("/decouple/v1/tokens", {"prompt": hostile.text(rng, 40).encode("utf-8", "ignore").decode()})
        webui.get("/decouple/v1/maps/last")
    return kind


INTERRUPT = """
import threading
from modules import shared
threading.Timer(0.3, shared.state.interrupt).start()
result = None
"""


def test_memory_stays_over_many_jobs(webui):
    number = number_of("DECOUPLE_SOAK")
    assert number >= 4 * SETTLED, "too few jobs to tell"
    before = drawn(webui)
    start = encoded(webui.draw(**SMALL).images[0])
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    memory = []
    for k in range(number):
        kind = job(webui, rng, start)
        kinds[kind] += 1
        memory.append(webui.inside(MEMORY))
        print(k, kind, round(memory[-1] / 2**20, 1), "MB", flush=True)
    megabytes = [round(one / 2**20, 1) for one in memory]
    print(number, "jobs:", dict(kinds), "resident MB:", json.dumps(megabytes[:: max(1, number // 50)]))
    settled, last = (statistics.median(part) for part in (memory[SETTLED : 2 * SETTLED], memory[-SETTLED:]))
    told = f"{settled / 2**20:.1f} MB; of the last {SETTLED}: {last / 2**20:.1f} MB"
    print(f"middle of jobs {SETTLED} to {2 * SETTLED}: {told}")
    assert drawn(webui) == before
    assert last <= settled * (1 + GROWTH)
