"""The WebUI backend against a stand-in over real HTTP; tests/hosts/test_evaluate.py does the same on real WebUIs."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("httpx", reason="httpx is not installed")

from lib_decouple.lab.evaluate import plan as plans
from lib_decouple.lab.evaluate.backends import Unreachable, WrongCheckpoint, webui
from lib_decouple.lab.evaluate.prompts import Prompt
from lib_decouple.settings import TITLE, Settings
from lib_decouple.webui import infotext

from .standin import SHA256, picture

SAMPLING = plans.parsed(
    {"arms": ["plain"], "prompts": [{"set": "tiam-2"}], "backend": {"kind": "webui", "urls": ["http://x"]}}
).sampling
PROMPT = Prompt("a cat and a dog", ("cat", "dog"), "own")


def job(settings=None, prompt=PROMPT):
    return plans.Job(prompt, "arm", settings or Settings(), 7)


def test_the_extensions_words_are_its_own():
    assert (webui.FOUND, webui.BY_UPDATE, webui.STOOD_ASIDE) == (
        infotext.FOUND, infotext.BY_UPDATE, infotext.STOOD_ASIDE,
    )  # fmt: skip
    names = ["cat", "salt, pepper", 'a "b"']
    assert webui._listed(infotext.join_list(names)) == names


def test_values_are_read_as_the_host_wrote_them():
    text = 'a cat\nSteps: 6, Decouple found: "cat, dog"'
    text += ", Decouple IoU by update: 0.620 to 0.310 at step 1, Version: v1.10.1"
    assert webui.value(text, webui.FOUND) == "cat, dog"
    assert webui.value(text, "Version") == "v1.10.1"
    assert webui.value(text, webui.STOOD_ASIDE) is None


def test_it_asks_for_one_bare_image_with_named_arguments(start, monkeypatch):
    server = start("--auth", "me:secret")
    backend = webui.WebUI(server.url, SAMPLING, 30, "me:secret")
    about = backend.about()
    assert (about.host, about.checkpoint, about.name) == ("AUTOMATIC1111", SHA256[:10], "tiny.safetensors")
    asked = []
    real = backend._ask
    monkeypatch.setattr(
        backend, "_ask", lambda m, path, body=None, s=30.0: asked.append((path, body)) or real(m, path, body, s)
    )
    ours = Settings(enabled=True, loss="iou", size=0.3)
    plain, drawn = backend.draw([job()])[0], backend.draw([job(ours)])[0]
    bodies = [body for path, body in asked if path.endswith("txt2img")]
    assert bodies[0]["alwayson_scripts"] == {TITLE: {"args": [{"enabled": False}]}}
    assert bodies[1]["alwayson_scripts"] == {TITLE: {"args": [{**ours.as_dict(), "entities": ["cat", "dog"]}]}}
    for body in bodies:
        assert (body["seed"], body["batch_size"], body["n_iter"], body["steps"]) == (7, 1, 1, 50)
        assert not any(body[name] for name in ("enable_hr", "restore_faces", "tiling", "styles", "save_images"))
    for one, loss in ((plain, ""), (drawn, "iou")):
        with Image.open(io.BytesIO(one.image)) as image:
            assert image.tobytes() == picture("a cat and a dog", 7, loss).tobytes()
            assert image.info == {}
    assert (drawn.entities, drawn.tokens) == (("cat", "dog"), {"cat": [2], "dog": [5]})
    assert (drawn.trace, plain.trace) == ({"iou by update": [0.62, 0.31]}, None)
    assert (drawn.passes, plain.passes) == (None, 0)  # a WebUI does not tell them
    assert drawn.about.version == "v1.10.1"
    assert backend.seconds_a_step() > 0


def test_the_host_is_told_by_what_it_can_be_set_to(start):
    server = start("--option", "forge_preset", "--version", "neo-2.26")
    backend = webui.WebUI(server.url, SAMPLING, 30)
    drawn = backend.draw([job()])[0].about
    assert (drawn.host, drawn.version) == ("Forge", "neo-2.26")
    assert backend.about().host == "Forge"


def test_a_sampler_that_the_host_does_not_know_is_told(start):
    server = start()

    def backend(sampler):
        return webui.WebUI(server.url, replace(SAMPLING, sampler=sampler), 30)

    assert backend("DPM++ 2M Karras").draw([job()])  # as older WebUIs call it
    for wrong in ("Eular", "DPM++ 2M Caras"):
        said = rf"sampling\.sampler: '{re.escape(wrong)}' is not known at .* drew with 'DPM\+\+ 2M'"
        with pytest.raises(ValueError, match=said):
            backend(wrong).draw([job()])
        with pytest.raises(ValueError, match=said):  # before anything of the run is drawn
            backend(wrong).seconds_a_step()


def test_without_the_extension_another_endpoint_is_tried_and_this_one_asked_anew(start):
    server = start()
    bare = Path(f"{server.log}.bare")
    bare.touch()
    backend, ours = webui.WebUI(server.url, SAMPLING, 30), Settings(enabled=True, loss="iou")
    with pytest.raises(Unreachable, match="Attention Decoupling is not installed there; arm 'arm' needs it"):
        backend.draw([job(ours)])
    assert backend.draw([job()])[0].tokens is None
    bare.unlink()
    with pytest.raises(Unreachable):  # the plain image asked and learnt that it is not there
        backend.draw([job(ours)])
    assert backend.draw([job(ours)])[0].entities == ("cat", "dog")


def test_a_checkpoint_without_a_hash_yet_is_loaded_for_it(start):
    assert webui.WebUI(start("--not-loaded").url, SAMPLING, 30).about().checkpoint == SHA256[:10]


def test_a_wrong_password_is_told(start):
    server = start("--auth", "me:secret")
    with pytest.raises(Unreachable, match=r"401.*--api-auth"):
        webui.WebUI(server.url, SAMPLING, 30, "me:wrong").about()


def test_another_checkpoint_is_refused_before_and_while(start):
    server = start("--change-after", "1")
    with pytest.raises(WrongCheckpoint, match=r"has checkpoint tiny.safetensors \[71af53dcd6\], the run has \[ffff"):
        webui.WebUI(server.url, SAMPLING, 30, sha256="f" * 64).about()
    backend = webui.WebUI(server.url, SAMPLING, 30, sha256=SHA256)
    backend.about()
    with pytest.raises(WrongCheckpoint, match="ffffffffff"):
        backend.draw([job()])


def test_hung_gone_and_refusing_hosts_are_told_apart(start):
    hung = webui.WebUI(start("--hang-after", "0").url, SAMPLING, 1)
    with pytest.raises(Unreachable, match="no answer to /sdapi/v1/txt2img within 1 s"):
        hung.draw([job()])
    server = start()
    backend = webui.WebUI(server.url, SAMPLING, 30)
    with pytest.raises(ValueError, match="loss: not here"):
        backend.draw([job(Settings(enabled=True, loss="kl"))])
    with pytest.raises(ValueError, match="zebra is not in the prompt"):
        backend.tokens(Prompt("a cat", ("zebra",), "own"))
    server.kill()
    with pytest.raises(Unreachable, match=f"{server.url}: ConnectError"):
        backend.about()


@pytest.mark.parametrize(
    "answer", [{}, {"images": []}, {"images": ["AAAA"], "info": "{}"}, {"images": [None], "info": "{}"}]
)
def test_an_unreadable_answer_is_told(answer):
    with pytest.raises(Unreachable, match="holds no readable image"):
        webui.WebUI("http://x", SAMPLING, 1)._read(answer)
