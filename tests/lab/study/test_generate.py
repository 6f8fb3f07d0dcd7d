"""The command a newcomer types first, on the embedded model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed")

from PIL import Image

from lib_decouple.__main__ import main
from lib_decouple.hosts import diffusers as host
from lib_decouple.lab.study import generate as command

FAST = ["--n", "2", "--sampling-steps", "4", "--steps", "2", "--no-stop"]


def test_it_draws_both_and_writes_everything(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["generate", "a cat and a dog", "--entities", "cat,dog", "--out", str(out), "--seed", "7", *FAST]) == 0
    names = {"7-plain.png", "7-decoupled.png", "8-plain.png", "8-decoupled.png", "compare.png", "trace.json"}
    assert {path.name for path in out.iterdir()} == names
    plain, ours = (np.asarray(Image.open(out / f"7-{kind}.png")) for kind in ("plain", "decoupled"))
    assert plain.shape == (128, 128, 3)
    assert (plain != ours).any()
    trace = json.loads((out / "trace.json").read_text())
    assert [image["seed"] for image in trace["images"]] == [7, 8]
    steps = trace["images"][0]["decoupled"]["steps"]
    assert [step["guided"] for step in steps] == [True, True, False, False]
    # With so few steps an update that raised the loss is taken back.
    assert [step["update_norm"] > 0 or step["taken_back"] for step in steps] == [True, True, False, False]
    assert any(step["update_norm"] > 0 for step in steps)
    assert all(step["update_norm"] == 0 for step in trace["images"][0]["plain"]["steps"])
    assert steps[0]["before"]["iou"].keys() == {"cat/dog"}
    assert "Of 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prompt", "arguments", "why"),
    [
        (
            "a man with a hat",
            ["--loss", "com", "--start", "0"],
            "only “man” was found in the prompt but hat (worn by man)",
        ),
        ("a cat and a dog", ["--loss", "com", "--start", "4", "--steps", "0"], "no step would be guided: 4 are passed"),
    ],
)
def test_a_run_that_moved_nothing_says_so_and_why(prompt, arguments, why, tmp_path, capsys):
    out = tmp_path / "out"
    fast = ["--n", "1", "--sampling-steps", "4", "--no-stop"]
    assert main(["generate", prompt, "--out", str(out), *fast, *arguments]) == 0
    told = capsys.readouterr().out
    assert "Nothing was moved, the pictures are the plain ones: " in told
    assert why in told
    assert (out / "1-plain.png").read_bytes() == (out / "1-decoupled.png").read_bytes()


def test_the_same_noun_twice_is_told_apart_and_moved(tmp_path, capsys):
    out = tmp_path / "out"
    prompt = "a red apple and a green apple"
    assert main(["generate", prompt, "--out", str(out), "--loss", "com", "--start", "0", *FAST]) == 0
    told = capsys.readouterr().out
    assert "entities: red apple, green apple" in told
    assert "Nothing was moved" not in told


def test_the_plain_image_is_the_pipelines_own(tmp_path):
    out = tmp_path / "out"
    main(["generate", "a cat", "--out", str(out), "--seed", "3", "--n", "1", "--sampling-steps", "4"])
    pipe = command.open_pipeline()
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator("cpu").manual_seed(3))
    image = pipe("a cat", latents=noise, num_inference_steps=4, guidance_scale=4.0).images[0]
    assert (np.asarray(image) == np.asarray(Image.open(out / "3-plain.png"))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "iuo"], "error: loss: 'iuo' is not one of iou, com, kl, cc, intensity, spread"),
        (["--entities", "cat,horse"], "horse"),
        (["--entities", ","], "error: entities: none given"),
        (["--checkpoint", "nothing.safetensors"], "error: checkpoint: nothing.safetensors does not exist"),
        (["--n", "0"], "error: n: 0 is not allowed; 1 or more"),
        (["--factor", "8"], "error: factor: 8 is not allowed; this model has 1, 2"),
        (["--width", "100"], "error: width: 100 is not allowed; a multiple of 8 pixels"),
        (["--steps", "-2"], "error: steps: -2 is not allowed; -1 to 150 steps"),
        (["--refine-steps", "a"], "error: refine_steps: 'a' is not allowed; whole numbers by comma"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["generate", "a cat and a dog", "--out", str(out), *FAST, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_entity_that_is_not_there_shows_the_prompts_words(tmp_path, capsys):
    main(["generate", "a cat and a dog", "--entities", "cat,dig", "--out", str(tmp_path / "out"), *FAST])
    told = capsys.readouterr().err
    assert "dig" in told
    assert "dog" in told
    assert "cat" in told


def test_an_entity_that_is_not_there_is_left_out_where_that_was_asked_for(tmp_path, capsys):
    given = ["generate", "a cat and a dog", "--entities", "cat,dig,dog", "--skip-missing"]
    assert main([*given, "--out", str(tmp_path / "out"), *FAST]) == 0
    assert "left out: dig" in capsys.readouterr().out
    trace = json.loads((tmp_path / "out/trace.json").read_text())
    assert trace["images"][0]["decoupled"]["entities"] == ["cat", "dog"]


def test_existing_output_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["generate", "a cat", "--out", str(out), *FAST]) == 2
    assert f"error: out: {out} exists" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "mine"


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "figure", interrupted)
    assert main(["generate", "a cat", "--out", str(tmp_path / "out"), *FAST]) == 130
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_in_guidance_finishes_plain_and_says_so(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("full")

    from lib_decouple.core.gradient import LossGradient

    monkeypatch.setattr(LossGradient, "__call__", full)
    out = tmp_path / "out"
    assert main(["generate", "a cat and a dog", "--entities", "cat,dog", "--out", str(out), *FAST]) == 0
    assert "it stood aside at step 1 of 4: out of memory" in capsys.readouterr().out
    plain, ours = (np.asarray(Image.open(out / f"1-{kind}.png")) for kind in ("plain", "decoupled"))
    assert (plain == ours).all()


def test_a_batch_that_does_not_fit_is_halved():
    drawn = []

    def draw(seeds, label, **_):
        if len(seeds) > 2:
            raise MemoryError
        drawn.append((label, list(seeds)))
        return command.Picture(
            [np.zeros((8, 8, 3), np.uint8)] * len(seeds),
            [host.ImageTrace(())] * len(seeds),
            choices=[None] * len(seeds),
        )

    pairs, asides = command.draw_pairs(draw, [1, 2, 3, 4, 5], 5)
    assert [pair.seed for pair in pairs] == [1, 2, 3, 4, 5]
    assert asides == []
    with pytest.raises(ValueError, match="memory: one plain image does not fit"):
        command.draw_pairs(lambda *_, **__: (_ for _ in ()).throw(MemoryError()), [1], 1)


def test_nothing_but_progress_is_said_beside_the_result(tmp_path):
    """What libraries warn of is no newcomer's business: a fresh interpreter, as `python run.py demo` starts one."""
    words = ["generate", "a cat and a dog", "--out", str(tmp_path / "out"), "--n", "1", "--sampling-steps", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lib_decouple", *words, "--steps", "1", "--start", "0"],
        cwd=Path(command.__file__).parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
    assert said
    assert [line for line in said if not re.match(r"(plain|decoupled), seeds 1-1: +\d+%\|", line)] == []


def test_what_the_demo_says_of_a_hundred_is_what_the_results_have():
    sys.path.insert(0, str(Path(command.__file__).parents[3]))
    try:
        from run import OF_A_HUNDRED
    finally:
        del sys.path[0]
    results = (Path(command.__file__).parents[3] / "docs/results.md").read_text(encoding="utf-8")
    told = re.search(
        r"seeds 1 to 100, .*?: (\d+) show both when drawn plainly and \*\*(\d+)\*\* when decoupled "
        r"\((\d+) got something back, (\d+) lost something\)",
        results,
    )
    assert told
    assert re.findall(r"\d+", OF_A_HUNDRED.partition("hundred ")[2])[:4] == list(told.groups())
