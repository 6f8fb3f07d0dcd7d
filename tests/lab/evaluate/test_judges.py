"""The judges' real loading and scoring code, on small checkpoints of the true architectures with random weights.

What a score is worth needs trained weights; here stands that the arithmetic is right: on checkpoints whose answer is
set by hand, and against the libraries' own way of computing the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from lib_decouple.__main__ import main
from lib_decouple.lab.evaluate.judges import KINDS, Missing, Options, named, threshold
from lib_decouple.lab.evaluate.judges.base import Item, verdicts
from lib_decouple.lab.evaluate.store import Store

from . import checkpoints

pytest.importorskip("inflect")

MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": checkpoints.clip,
    "blip-vqa": lambda folder: checkpoints.blip(folder, "BlipForQuestionAnswering"),
    "blip": lambda folder: checkpoints.blip(folder, "BlipForConditionalGeneration"),
    "vilt": checkpoints.vilt,
    "blip2": checkpoints.blip2,
    "instructblip": checkpoints.instructblip,
    "llava": checkpoints.llava,
    "git": checkpoints.git,
    "vit-gpt2": checkpoints.two_part,
    "owlv2": checkpoints.owlv2,
}
CASES = [
    ("clip", "clip"),
    *(("vqa", name) for name in ("blip-vqa", "vilt", "blip2", "instructblip", "llava", "git")),
    *(("vqascore", name) for name in ("blip2", "instructblip", "llava", "git")),
    ("soft-tifa", "llava"),
    ("owlv2", "owlv2"),
    *(("caption", name) for name in ("blip", "blip2", "instructblip", "llava", "git", "vit-gpt2")),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> folder of that checkpoint, made once."""
    found: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in found:
            torch.manual_seed(len(name))
            found[name] = MAKERS[name](tmp_path_factory.mktemp("checkpoints") / name)
        return found[name]

    return folder


@pytest.fixture(scope="module")
def five() -> list[Item]:
    rng = np.random.default_rng(0)
    # Questions of unlike lengths, so that a batch would be padded, and images of unlike sizes.
    names = [("cat", "dog"), ("elephant", "glasses"), ("bird", "car", "ball"), ("red car", "frog"), ("bear", "apple")]
    return [
        Item(
            Image.fromarray(rng.integers(0, 256, (40 + 8 * n, 48, 3), dtype=np.uint8)),
            " and ".join(f"a {e}" for e in own),
            own,
        )
        for n, own in enumerate(names)
    ]


def build(kind: str, folder: Path, **options: str) -> Any:
    judges, lacking = named(f"{kind}:{folder}", Options(**options))
    assert lacking == []
    return judges[0]


def edited(folder: Path, target: Path, class_name: str, change: Callable[[Any], None]) -> Path:
    """A copy of a checkpoint with weights set by hand."""
    model = getattr(tf, class_name).from_pretrained(folder)
    with torch.no_grad():
        change(model)
    target.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
        elif file.is_dir():
            (target / file.name).mkdir()
            for inner in file.iterdir():
                (target / file.name / inner.name).write_bytes(inner.read_bytes())
    model.save_pretrained(target)
    return target


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_scores_of_a_batch_are_those_of_each_image(
    kind: str, name: str, made: Callable[[str], Path], five: list[Item]
) -> None:
    judge = build(kind, made(name))
    together, scores = verdicts(judge, five)
    alone = [verdicts(judge, [item]) for item in five]
    assert [list(own) for own in scores] == [list(own[0]) for _, own in alone]
    for own, (_, (single,)) in zip(scores, alone):
        assert own == pytest.approx(single, abs=2e-6)
    assert [item.caption for item in together] == [item.caption for (item,), _ in alone]
    low, high = (-1.0, 1.0) if kind == "clip" else (0.0, 1.0)
    assert all(low <= value <= high for own in scores for value in own.values())
    assert all(set(item.entities) <= set(own) for item, own in zip(five, scores))
    assert judge.name == f"{kind}:{made(name)}"
    if kind == "caption":
        assert all(item.caption for item in together)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("kind", "name"), [("clip", "clip"), ("vqa", "blip-vqa"), ("vqa", "vilt"), ("vqascore", "llava")]
)
def test_half_precision_comes_near(
    kind: str, name: str, dtype: str, made: Callable[[str], Path], five: list[Item]
) -> None:
    exact = build(kind, made(name)).score(five)
    half = build(kind, made(name), dtype=dtype)
    holder = getattr(half, "writer", None) or getattr(half, "against", half)
    assert {p.dtype for p in holder.model.parameters()} == {getattr(torch, dtype)}
    for a, b in zip(exact, half.score(five)):
        assert a == pytest.approx(b, abs=0.02)


# --- CLIP


def test_clip_gives_a_cosine_set_by_hand(tmp_path: Path, made: Callable[[str], Path], five: list[Item]) -> None:
    def change(model: Any) -> None:
        for norm, projection, value in (
            (model.vision_model.post_layernorm, model.visual_projection, (3.0, 0.0)),
            (model.text_model.final_layer_norm, model.text_projection, (0.3, -0.4)),
        ):
            norm.weight.zero_()
            norm.bias.zero_()
            norm.bias[:2] = torch.tensor(value)
            projection.weight.zero_()
            projection.weight[:2, :2] = torch.eye(2)

    judge = build("clip", edited(made("clip"), tmp_path / "clip", "CLIPModel", change))
    scores = judge.score(five[:2])
    assert scores[0] == pytest.approx({"": 0.6, "cat": 0.6, "dog": 0.6}, abs=1e-6)


def test_clip_agrees_with_transformers_own_logits(made: Callable[[str], Path], five: list[Item]) -> None:
    model, processor = tf.CLIPModel.from_pretrained(made("clip")), tf.CLIPProcessor.from_pretrained(made("clip"))
    texts = [five[1].prompt, "a elephant", "a glasses"]  # the pieces of that prompt as written
    with torch.no_grad():
        found = model(**processor(text=texts, images=five[1].image, padding=True, return_tensors="pt"))
        expected = (found.logits_per_image / model.logit_scale.exp())[0].tolist()
    scores = build("clip", made("clip")).score(five)[1]
    assert list(scores.values()) == pytest.approx(expected, abs=1e-6)
    assert len({round(value, 4) for value in expected}) == 3


def test_clip_agrees_with_torchmetrics(made: Callable[[str], Path], five: list[Item]) -> None:
    multimodal = pytest.importorskip("torchmetrics.multimodal.clip_score")
    model, processor = tf.CLIPModel.from_pretrained(made("clip")), tf.CLIPProcessor.from_pretrained(made("clip"))
    ours = build("clip", made("clip")).score(five[:1])[0][""]

    class Plain:
        """torchmetrics 1.9 takes the features to be tensors, as they were before transformers 5."""

        config = model.config

        def to(self, *_: Any) -> Plain:
            return self

        def eval(self) -> Plain:
            return self

        def get_image_features(self, *given: Any) -> torch.Tensor:
            found = model.get_image_features(*given)
            return math.copysign(1, ours) * getattr(found, "pooler_output", found)  # it cuts what is negative

        def get_text_features(self, *given: Any) -> torch.Tensor:
            found = model.get_text_features(*given)
            return getattr(found, "pooler_output", found)

    update = multimodal._clip_score_update
    picture = torch.from_numpy(np.asarray(five[0].image).copy()).permute(2, 0, 1)
    with torch.no_grad():
        score, n = update(picture, five[0].prompt, Plain(), processor)
    assert n == 1
    assert score.item() == pytest.approx(100 * abs(ours), abs=1e-3)


def test_clip_says_that_a_long_prompt_is_cut(made: Callable[[str], Path], five: list[Item]) -> None:
    item = Item(five[0].image, "a cat " * 80, ("cat",))
    with pytest.warns(UserWarning, match="longer than CLIP's 77 tokens"):
        build("clip", made("clip")).score([item])


def test_clip_text_is_1_for_the_prompt_itself(made: Callable[[str], Path], five: list[Item]) -> None:
    judge = build("clip-text", made("clip"))
    same = Item(five[0].image, "a cat and a dog", ("cat", "dog"), "a cat and a dog")
    other = Item(five[0].image, "a cat and a dog", ("cat", "dog"), "an elephant")
    scores = judge.score([same, other])
    assert scores[0] == pytest.approx({"": 1.0}, abs=1e-6)
    model, processor = tf.CLIPModel.from_pretrained(made("clip")), tf.CLIPProcessor.from_pretrained(made("clip"))
    with torch.no_grad():
        given = processor(text=["an elephant", other.prompt], images=five[0].image, padding=True, return_tensors="pt")
        caption, prompt = model(**given).text_embeds
    assert scores[1][""] == pytest.approx(float(caption @ prompt), abs=1e-6)
    assert scores[1][""] < 0.999
    assert judge.score([other]) == [pytest.approx(scores[1], abs=1e-6)]
    with pytest.raises(Missing, match="name caption:MODEL too"):
        judge.score(five)


# --- VQA


def test_blip_weighs_yes_against_no(tmp_path: Path, made: Callable[[str], Path], five: list[Item]) -> None:
    def change(model: Any) -> None:
        head, words = model.text_decoder.cls.predictions, tf.BertTokenizerFast.from_pretrained(made("blip-vqa"))
        head.decoder.weight.zero_()
        head.bias.zero_()
        head.bias[words.convert_tokens_to_ids("yes")] = 3.0
        head.bias[words.convert_tokens_to_ids("no")] = 1.0
        head.decoder.bias.copy_(head.bias)

    judge = build("vqa", edited(made("blip-vqa"), tmp_path / "blip", "BlipForQuestionAnswering", change))
    assert judge.score(five[:1])[0] == pytest.approx({"cat": 1 / (1 + math.exp(-2)), "dog": 1 / (1 + math.exp(-2))})


def test_blips_likelihood_is_what_its_generation_scores(made: Callable[[str], Path], five: list[Item]) -> None:
    """The first step of the model's own ``generate`` gives the same odds of "yes" against "no"."""
    folder = made("blip-vqa")
    model, processor = tf.BlipForQuestionAnswering.from_pretrained(folder), tf.BlipProcessor.from_pretrained(folder)
    asked = processor(images=five[0].image, text="is there a cat?", return_tensors="pt")
    asked = {name: asked[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    judge = build("vqa", folder)
    with torch.no_grad():
        image = model.vision_model(asked["pixel_values"])[0]
        read = model.text_encoder(asked["input_ids"], asked["attention_mask"], encoder_hidden_states=image)[0]
        start = torch.tensor([[model.decoder_start_token_id]])
        odds = {}
        for word in ("yes", "no"):
            ids = processor.tokenizer.convert_tokens_to_ids([word, "[SEP]"])
            first = model.text_decoder(start, encoder_hidden_states=read).logits[0, -1].log_softmax(-1)
            then = torch.cat([start, torch.tensor([[ids[0]]])], 1)
            second = model.text_decoder(then, encoder_hidden_states=read).logits[0, -1].log_softmax(-1)
            odds[word] = float(first[ids[0]] + second[ids[1]])
    expected = 1 / (1 + math.exp(odds["no"] - odds["yes"]))
    assert judge.score(five[:1])[0]["cat"] == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(0.5, abs=1e-4)


def test_a_classifier_weighs_its_labels_yes_and_no(
    tmp_path: Path, made: Callable[[str], Path], five: list[Item]
) -> None:
    def change(model: Any) -> None:
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.copy_(torch.tensor([9.0, 1.0, 9.0, 0.5]))  # two, no, red, yes

    judge = build("vqa", edited(made("vilt"), tmp_path / "vilt", "ViltForQuestionAnswering", change))
    assert judge.score(five[:1])[0]["dog"] == pytest.approx(1 / (1 + math.exp(0.5)))


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("blip2", "Blip2ForConditionalGeneration"),
        ("instructblip", "InstructBlipForConditionalGeneration"),
        ("llava", "LlavaForConditionalGeneration"),
    ],
)
def test_a_writer_that_knows_nothing_answers_by_chance(
    name: str, class_name: str, tmp_path: Path, made: Callable[[str], Path], five: list[Item]
) -> None:
    """All tokens alike: "yes" and "Yes" are two of the vocabulary, "no" is one."""

    def change(model: Any) -> None:
        model.get_output_embeddings().weight.zero_()

    folder = edited(made(name), tmp_path / name, class_name, change)
    size = len(tf.AutoTokenizer.from_pretrained(folder))
    assert build("vqascore", folder).score(five[:1])[0] == pytest.approx(dict.fromkeys(["", "cat", "dog"], 2 / size))
    assert build("vqa", folder).score(five[:1])[0] == pytest.approx({"cat": 2 / 3, "dog": 2 / 3})


def test_vqascore_is_the_models_own_probability_of_yes(made: Callable[[str], Path], five: list[Item]) -> None:
    folder = made("instructblip")
    model = tf.InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = tf.AutoProcessor.from_pretrained(folder)
    question = 'Does this figure show "a cat and a dog"? Please answer yes or no.'
    asked = processor(images=five[0].image, text=question, return_tensors="pt")
    with torch.no_grad():
        logits = model(**asked, decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
    ids = processor.tokenizer.convert_tokens_to_ids(["yes", "Yes"])
    expected = float(logits.softmax(-1)[ids].sum())
    assert build("vqascore", folder).score(five[:1])[0][""] == pytest.approx(expected, rel=1e-4)


# --- captions


def test_a_caption_scores_what_it_names(made: Callable[[str], Path], five: list[Item]) -> None:
    judge = build("caption", made("blip"))
    item = Item(five[0].image, "a cat and a dog", ("cat", "dog"), "a puppy in the grass")
    assert judge.score([item]) == [{"cat": 0.0, "dog": 1.0, "": 0.5}]


def test_captions_are_what_the_model_writes(made: Callable[[str], Path], five: list[Item]) -> None:
    folder = made("llava")
    model, processor = (
        tf.LlavaForConditionalGeneration.from_pretrained(folder),
        tf.AutoProcessor.from_pretrained(folder),
    )
    text = "USER: <image> Describe this image in one sentence. ASSISTANT:"
    asked = processor(images=five[0].image, text=text, return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**asked, max_new_tokens=30, num_beams=3, do_sample=False)
    expected = processor.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert build("caption", folder).captions(five[:1]) == [expected]
    assert expected


# --- what cannot be had


def test_judges_that_cannot_be_had_are_told_and_the_rest_judge(made: Callable[[str], Path], tmp_path: Path) -> None:
    judges, lacking = named(f"vqa,clip:{tmp_path / 'none'},vqascore:{tmp_path},clip:{made('clip')}", Options())
    assert [judge.name for judge in judges] == [f"clip:{made('clip')}"]
    assert lacking[0] == "vqa: no model given; write vqa:FOLDER or vqa:HUB/NAME"
    assert lacking[1] == f"clip:{tmp_path / 'none'}: there is no folder {tmp_path / 'none'}"
    assert f"{tmp_path} cannot be loaded" in lacking[2]


def test_an_untrained_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "moved", lambda model: model)
    for kind, make in (("clip", checkpoints.clip), ("vqascore", checkpoints.llava), ("caption", MAKERS["blip"])):
        judges, lacking = named(f"{kind}:{make(tmp_path / kind)}", Options())
        assert judges == []
        assert "was never trained" in lacking[0]


def test_a_checkpoint_for_something_else_is_refused(made: Callable[[str], Path]) -> None:
    """``transformers`` would draw what is lacking at random, and only warn."""
    judges, lacking = named(f"vqa:{made('blip')},clip-text:{made('vilt')},caption:{made('clip')}", Options())
    assert judges == []
    assert "has no weights for text_encoder" in lacking[1]
    assert "not a checkpoint for this judge" in lacking[1]
    assert "caption" in lacking[0]
    assert "clip-text" in lacking[2]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, made: Callable[[str], Path]) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    _, lacking = named(f"open-clip:{made('clip')}", Options())
    assert "needs the packages open_clip_torch and torchvision" in lacking[0]
    monkeypatch.setitem(sys.modules, "transformers", None)
    _, lacking = named(f"clip:{made('clip')}", Options())
    assert "needs the package transformers" in lacking[0]


def test_wrong_words_are_named() -> None:
    with pytest.raises(ValueError, match="'clop' is not one of drawn, clip"):
        named("clop:x", Options())
    with pytest.raises(ValueError, match="'clip:x' is named twice"):
        named("clip:x,clip:x", Options())
    with pytest.raises(ValueError, match="more than one caption"):
        named("caption:x,caption:y", Options())
    with pytest.raises(ValueError, match="dtype: 'float8' is not one of"):
        Options(dtype="float8")
    with pytest.raises(ValueError, match="device: 'nowhere' is not there"):
        Options(device="nowhere")


def test_a_stored_name_tells_the_border() -> None:
    assert threshold("drawn") == threshold("vqa:a/b") == 0.5
    assert threshold("clip:a/b") is None
    assert threshold("whatever") is None
    assert all(kind == judge.kind for kind, judge in KINDS.items())


# --- judging a run


@pytest.fixture
def run_folder(tmp_path: Path, five: list[Item]) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    store = Store(folder, create=True)
    for n, item in enumerate(five):
        item.image.save(folder / f"{n}.png")
        store.put_image(
            {
                "prompt_id": str(n),
                "prompt": item.prompt,
                "entities": list(item.entities),
                "count": len(item.entities),
                "arm": "plain",
                "seed": 0,
                "file": f"{n}.png",
            }
        )
    return folder


def test_a_run_is_judged_with_what_is_there(
    run_folder: Path, made: Callable[[str], Path], five: list[Item], capsys: pytest.CaptureFixture[str]
) -> None:
    text, caption, clip = f"clip-text:{made('clip')}", f"caption:{made('blip')}", f"clip:{made('clip')}"
    judges = f"{text},{clip},vqa:{run_folder / 'none'},{caption}"  # captions are written first all the same
    assert main(["evaluate", "judge", str(run_folder), "--judges", judges, "--batch", "2"]) == 1
    assert "there is no folder" in capsys.readouterr().err
    store = Store(run_folder)
    assert store.judges() == sorted([text, caption, clip])
    assert set(store.captions()) == {1, 2, 3, 4, 5}
    expected = build("clip", made("clip")).score(five)
    for (_, own), wanted in zip(sorted(store.scores(clip).items()), expected):
        assert own == pytest.approx(wanted, abs=2e-6)
    assert store.notes()[f"judge:{clip}"] == {"source": str(made("clip")), "threshold": None}
    assert main(["evaluate", "judge", str(run_folder), "--judges", clip]) == 0
    assert "0 images scored" in capsys.readouterr().out


def test_a_run_has_one_captioning_model(run_folder: Path, made: Callable[[str], Path]) -> None:
    assert main(["evaluate", "judge", str(run_folder), "--judges", f"caption:{made('blip')}"]) == 0
    before = Store(run_folder).captions()
    assert main(["evaluate", "judge", str(run_folder), "--judges", f"caption:{made('git')}"]) == 2
    assert Store(run_folder).captions() == before


def test_text_without_captions_is_told(
    run_folder: Path, made: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "judge", str(run_folder), "--judges", f"clip-text:{made('clip')}"]) == 1
    assert "name caption:MODEL too" in capsys.readouterr().err
    assert Store(run_folder).judges() == []


def test_what_is_no_number_is_not_stored(
    run_folder: Path, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(made("clip"), tmp_path / "nan", "CLIPModel", lambda model: model.visual_projection.weight.zero_())

    def spoil(model: Any) -> None:
        model.visual_projection.weight.fill_(math.nan)

    broken = edited(folder, tmp_path / "broken", "CLIPModel", spoil)
    assert main(["evaluate", "judge", str(run_folder), "--judges", f"clip:{broken},drawn"]) == 1
    assert "no number" in capsys.readouterr().err
    assert Store(run_folder).judges() == []
