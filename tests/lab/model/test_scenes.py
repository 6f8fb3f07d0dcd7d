"""Drawings, scenes and training of the model of drawn things."""

import json
import os
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lib_decouple.lab.evaluate import prompts
from lib_decouple.lab.model import scenes, sprites
from lib_decouple.lab.model.sprites import ANIMALS, COLOURS, OBJECTS, ROLES, THINGS, drawings, tinted


def test_things_and_colours_are_attend_and_excites():
    source = json.loads((Path(prompts.__file__).parent / "attend-excite.json").read_text())
    assert [list(ANIMALS), list(OBJECTS), list(COLOURS)] == [source["animals"], source["objects"], source["colours"]]


def test_every_drawing_is_its_own_and_held_out_ones_are_of_no_other_role():
    assert len(sprites.sprites()) == len(list(sprites.listed()))
    pictures = {sprite.pixels.tobytes() for sprite in sprites.sprites()}
    assert len(pictures) == len(sprites.sprites())
    names = {role: {name for r, _, name in sprites.listed() if r == role} for role in ROLES}
    assert not names["held out"] & (names["taught"] | names["judged"])
    for thing in THINGS:
        assert len(drawings(thing, "taught")) >= 2
        assert drawings(thing, "held out")
    for sprite in sprites.sprites():
        ys, xs = np.nonzero(sprite.pixels[..., 3] > 127)
        assert max(np.ptp(ys), np.ptp(xs)) >= sprites.SIDE - 8, sprite.name


def test_every_set_of_drawings_has_its_author_and_licence():
    """In the file that has the licences' words, and those that the model is taught in its card, too."""
    folder = Path(sprites.__file__).parent
    licences = (folder / "LICENSE.drawings.txt").read_text(encoding="utf-8")
    of_sets = dict(re.findall(r"(?m)^@iconify-json/(\S+) .* (Apache-2\.0|MIT|CC BY 4\.0)", licences))
    used = {role: {name.partition(":")[0] for r, _, name in sprites.listed() if r == role} for role in ROLES}
    assert set(of_sets) == set(sprites.PACKAGES) == set.union(*used.values()) - {"own"}
    for words in ("Permission is hereby granted", "Licensed under the Apache License", "licenses/by/4.0/legalcode"):
        assert words in licences
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`@iconify-json/{name}` {version} |" in readme for name, version in sprites.PACKAGES.items())
    authors = {"noto": "Noto Emoji", "fluent-emoji-flat": "Fluent Emoji"}
    assert used["taught"] - {"own"} == set(authors)
    card = (folder.parents[1] / "embedded" / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name, author in authors.items():
        assert author in card
        assert of_sets[name] in card


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell's script")
def test_the_sets_are_fetched_by_name_and_version(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text(
        f"""#!{sys.executable}
import io, json, sys, tarfile
word, _, _, folder, wanted = sys.argv[1:]
assert word == "pack"
name, version = wanted.removeprefix("@iconify-json/").split("@")
text = json.dumps([name, version]).encode()
with tarfile.open(f"{{folder}}/iconify-json-{{name}}-{{version}}.tgz", "w:gz") as whole:
    member = tarfile.TarInfo("package/icons.json")
    member.size = len(text)
    whole.addfile(member, io.BytesIO(text))
"""
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    sprites.fetch(fetched)
    found = {name: json.loads((fetched / name / "icons.json").read_text()) for name in sprites.PACKAGES}
    assert found == {name: [name, version] for name, version in sprites.PACKAGES.items()}
    npm.unlink()
    with pytest.raises(FileNotFoundError, match="npm is not installed"):
        sprites.fetch(fetched)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tinted_drawing_is_nearest_to_its_colour(colour):
    """By the median of what is drawn, against the palette itself: of all drawings none is nearer to another colour."""
    palette = np.array(list(COLOURS.values()), float)
    wrong = []
    for sprite in sprites.sprites():
        pixels = tinted(sprite.pixels, colour)
        assert (pixels[..., 3] == sprite.pixels[..., 3]).all()
        middle = np.median(pixels[pixels[..., 3] > 200][:, :3], axis=0)
        nearest = list(COLOURS)[int(((palette - middle) ** 2).sum(1).argmin())]
        if nearest != colour:
            wrong.append((sprite.name, nearest))
    assert len(wrong) <= 0.03 * len(sprites.sprites()), wrong


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"thing: 'cow'.*cat"):
        drawings("cow", "taught")
    with pytest.raises(ValueError, match=r"role: 'kept'.*taught"):
        drawings("cat", "kept")
    with pytest.raises(ValueError, match=r"colour: 'teal'.*red"):
        tinted(drawings("cat", "taught")[0].pixels, "teal")
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"colour: 'teal'.*red"):
        scenes.place([("cat", "teal")], rng)
    with pytest.raises(ValueError, match="5 given; 1 to 4"):
        scenes.place([("cat", None)] * 5, rng)


def test_scenes_hold_what_was_asked_for_apart_and_inside():
    rng = np.random.default_rng(1)
    for count in (1, 2, 3, 4) * 20:
        things = [scenes.coloured(str(thing), rng) for thing in rng.choice(THINGS, size=count, replace=False)]
        placed = scenes.place(things, rng)
        assert [(p.thing, p.colour) for p in placed] == things
        for p in placed:
            for middle in (p.x, p.y):
                assert p.size / 2 <= middle <= scenes.SCENE - p.size / 2
        for a, b in combinations(placed, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2
        state = rng.bit_generator.state
        image = scenes.render(placed, rng)
        rng.bit_generator.state = state
        bare = scenes.render([], rng)
        changed = np.abs(image.astype(int) - bare).sum(-1) > 30
        for p in placed:
            half = p.size * 0.35
            window = changed[int(p.y - half) : int(p.y + half), int(p.x - half) : int(p.x + half)]
            assert window.mean() > 0.2, (p.thing, p.sprite.name, p.colour)


def test_training_scenes_keep_their_shares_and_company():
    rng = np.random.default_rng(2)
    drawn = [scenes.sample(rng) for _ in range(4000)]
    counts = Counter(len(scene) for scene in drawn)
    for count, share in enumerate(scenes.SHARES, 1):
        assert counts[count] / 4000 == pytest.approx(share, abs=0.025)
    met = {frozenset(pair) for scene in drawn for pair in combinations([thing for thing, _ in scene], 2)}
    assert met <= scenes.COMPANY
    assert len(scenes.COMPANY) == 69
    assert {thing for scene in drawn for thing, _ in scene} == set(THINGS)
    assert {thing for pair in scenes.COMPANY for thing in pair} == set(THINGS)


def test_captions_name_exactly_what_is_drawn():
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(2000):
        things = scenes.sample(rng)
        text = scenes.caption(things, rng)
        body = re.sub(r"^a (photo|picture|drawing) of ", "", text)
        phrases = re.split(r", | and | with ", body)
        read = []
        for phrase in phrases:
            article, *words = phrase.split()
            assert article in ("a", "an")
            assert article == "a" or words[0][0] in "aeo"
            read.append((words[-1], words[0] if len(words) == 2 else None))
        assert sorted(map(str, read)) == sorted(map(str, things)), text
        seen.add(re.sub(r"[a-z]+", lambda m: m[0] if m[0] in ("with", "and", "photo") else "x", text))
    assert any("with" in text for text in seen)
    assert any("," in text for text in seen)


def torch_parts():
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    import torch

    from lib_decouple.lab.model import train

    return torch, train


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path):
    torch, train = torch_parts()

    def run(folder, *stops, seed=5):
        folder.mkdir(exist_ok=True)
        for stop in stops:
            torch.manual_seed(0)
            module = torch.nn.Linear(3, 1)
            training = train.Training(folder, "toy", module, seed, 1e-2, 0.9)
            training.resume()

            def loss(rng, module=module):
                given = torch.from_numpy(rng.normal(size=(8, 3))).float() + torch.randn(8, 3)
                value = (module(given) - given.sum(1, keepdim=True)).square().mean()
                return value, {"loss": value.item()}

            # The rate's course must be that of the whole run: a stop is a stop, not another plan.
            training.run(stop, loss) if stop == stops[-1] else stopped(training, loss, stop, stops[-1])
        return [*training.learned, *training.average], training

    class Stop(Exception):
        pass

    def stopped(training, loss, stop, steps):
        def until(rng):
            if training.step == stop:
                training.save()
                raise Stop
            return loss(rng)

        with pytest.raises(Stop):
            training.run(steps, until)

    whole, _ = run(tmp_path / "whole", 40)
    parts, training = run(tmp_path / "parts", 7, 23, 40)
    assert training.step == 40
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    with pytest.raises(ValueError, match="seed"):
        run(tmp_path / "parts", 41, seed=6)


def test_words_in_use_mean_the_same_in_clips_full_vocabulary(tmp_path):
    torch, train = torch_parts()
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(train.TOKENIZER)
    words = train.vocabulary(tokenizer)
    torch.manual_seed(1)
    student = train.Student(words).eval()
    student.save(tmp_path)
    full = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    ids = torch.tensor([tokenizer("a red cat with an apple", padding="max_length", max_length=77).input_ids])
    rows = torch.tensor([[words.index(i) for i in ids[0].tolist()]])
    with torch.no_grad():
        assert torch.equal(full(ids).last_hidden_state, student.text(rows).last_hidden_state)


def test_all_prompts_of_attend_and_excite_are_made_of_words_in_use():
    _, train = torch_parts()
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(train.TOKENIZER)
    words = set(train.vocabulary(tokenizer))
    source = json.loads((Path(prompts.__file__).parent / "attend-excite.json").read_text())
    texts = [text for kind, texts in source.items() if "-" in kind for text in texts]
    assert len(texts) == 276
    assert not {i for text in texts for i in tokenizer(text).input_ids} - words


def test_the_drawn_layout_is_an_sd1_checkpoint_that_opens(tmp_path):
    torch, train = torch_parts()
    import yaml
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    from lib_decouple.embedded.place import TOKENIZER, yaml_text
    from lib_decouple.hosts.checkpoints import open_pipeline
    from lib_decouple.lab.model.export import export

    torch.manual_seed(2)
    train.Student(train.vocabulary(CLIPTokenizer.from_pretrained(TOKENIZER))).save(tmp_path)
    vae = AutoencoderKL(**train.VAE_CONFIG)
    vae.save_pretrained(tmp_path / "vae")
    target = tmp_path / "decouple-drawn.safetensors"
    export(tmp_path, target)
    assert target.stat().st_size <= 40e6
    pipe = open_pipeline(target)
    assert pipe.unet.config.cross_attention_dim == train.WIDTH
    assert pipe.unet.config.block_out_channels == train.UNET_CONFIG["block_out_channels"]
    assert torch.allclose(pipe.vae.decoder.conv_in.weight.float(), vae.decoder.conv_in.weight, atol=1e-3)
    assert pipe("a cat", num_inference_steps=1, output_type="np").images.shape == (1, 128, 128, 3)
    params = yaml.safe_load(yaml_text(TOKENIZER.as_posix()))["model"]["params"]
    assert params["image_size"] == 16
    assert params["unet_config"]["params"]["attention_resolutions"] == [1, 2]
    widths = params["first_stage_config"]["params"]["ddconfig"]
    assert [widths["ch"] * times for times in widths["ch_mult"]] == train.VAE_CONFIG["block_out_channels"]


def test_the_autoencoder_begins_with_the_pictures_own_colours():
    torch, train = torch_parts()
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**train.VAE_CONFIG)
    train.pass_colours_through(vae)
    rng = np.random.default_rng(1)
    images = train.to_tensor(np.stack([scenes.render(scenes.place(scenes.sample(rng), rng), rng) for _ in range(4)]))
    small = torch.nn.functional.avg_pool2d(images, 8)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        back = vae.decode(latents).sample
    for channel in range(3):
        both = torch.stack([latents[:, channel].flatten(), small[:, channel].flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.97
    smooth = torch.nn.functional.interpolate(small, scale_factor=8, mode="bilinear")
    inner = (..., slice(16, -16), slice(16, -16))
    assert (back - smooth)[inner].square().mean() < 0.03 < (0 - smooth)[inner].square().mean()
