"""Plans and prompts: what is written is what is drawn, and a mistake is told by name."""

import itertools
import json
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")

from lib_decouple.lab.evaluate import plan as plans
from lib_decouple.lab.evaluate import prompts
from lib_decouple.lab.evaluate.arms import ARMS
from lib_decouple.lab.evaluate.prompts.splits import cases
from lib_decouple.lab.model.sprites import THINGS
from lib_decouple.settings import Settings


def written(tmp_path, text):
    file = tmp_path / "plan.toml"
    file.write_text(text, encoding="utf-8")
    return file


RESULTS = Path(__file__).resolve().parents[3] / "docs/results"

SMALL = 'arms = ["plain", "com"]\n[[prompts]]\nset = "embedded-2"\nlimit = 2\n'


SPLIT = 'arms = ["plain", {tuned = "com"}]\n[[prompts]]\nsplit = "tune"\nlimit = 4\n'


def test_a_split_gives_each_picture_a_seed_of_its_own(tmp_path):
    _, jobs = plans.read(written(tmp_path, SPLIT + '[[prompts]]\nsplit = "report"\nentities = 3\nlimit = 30\n'))
    plain = [job for job in jobs if job.arm == "plain"]
    for split, count, size in (("tune", 2, 4), ("report", 3, 30)):
        own = [(job.prompt.entities, job.seed) for job in plain if job.prompt.origin == f"{split}-{count}"]
        assert own == [(case.entities, case.seed) for case in cases(split, count, size)]
    assert [(job.prompt, job.seed) for job in jobs if job.arm == "com"] == [(job.prompt, job.seed) for job in plain]
    # A run that is stopped early has some of each.
    assert {len(job.prompt.entities) for job in jobs[:8]} == {2, 3}
    _, jobs = plans.read(written(tmp_path, SPLIT + "first_seed = 7\n"))
    assert sorted({job.seed for job in jobs}) == [7, 8, 9, 10]


def test_four_entities_have_the_arms_of_three(tmp_path):
    _, jobs = plans.read(written(tmp_path, 'arms = [{tuned = "com"}]\n[[prompts]]\nset = "tiam-drawn-4"\nlimit = 1\n'))
    assert jobs[0].settings == ARMS[3]["com"]


def test_attend_and_excites_sets_are_its_construction():
    data = json.loads((prompts.HERE / "attend-excite.json").read_text())
    animals, objects, colours = data["animals"], data["objects"], data["colours"]
    assert (len(animals), len(objects), len(colours)) == (12, 12, 11)
    assert "2301.13826" in data["source"]
    pairs, mixed, things = (prompts.built_in(n) for n in ("animal-animal", "animal-object", "object-object"))
    assert (len(pairs), len(mixed), len(things)) == (66, 144, 66)
    assert {frozenset(p.entities) for p in pairs} == {frozenset(p) for p in itertools.combinations(animals, 2)}
    assert {p.entities for p in mixed} == set(itertools.product(animals, objects))
    assert {frozenset(p.entities) for p in things} == {frozenset(p) for p in itertools.combinations(objects, 2)}
    for prompt in (*pairs, *mixed, *things):
        words = prompt.text.split()
        assert set(words) - {"a", "and", "with"} - set(colours) == set(prompt.entities)
    assert mixed[2].text == "a monkey and a red car"


def test_tiams_templates():
    two, three, four = (prompts.built_in(f"tiam-{n}") for n in (2, 3, 4))
    assert (len(two), len(three), len(four)) == (24 * 23, 5 * 4 * 3, 5 * 4 * 3 * 2)
    assert two[0].text == "a photo of a bicycle and a car"
    assert "a photo of a fire hydrant and an apple" in [p.text for p in two]
    assert four[0].entities == ("car", "giraffe", "elephant", "refrigerator")
    assert four[0].text == "a photo of a car next to a giraffe with an elephant and a refrigerator"
    two, three, four = (prompts.built_in(f"tiam-drawn-{n}") for n in (2, 3, 4))
    assert (len(two), len(three), len(four)) == (10 * 9, 5 * 4 * 3, 5 * 4 * 3 * 2)
    assert {prompt.text for prompt in two} < {prompt.text for prompt in prompts.built_in("tiam-2")}
    assert {name for prompt in (*two, *three, *four) for name in prompt.entities} <= set(THINGS)
    assert three[0].text == "a photo of a car and a bench and a bird"


def test_every_set_has_one_id_a_prompt_and_says_what_it_is():
    for name in prompts.SETS:
        ids = [prompt.id for prompt in prompts.built_in(name)]
        assert len(ids) == len(set(ids)) > 0
    assert all(about for about, _ in prompts.SETS.values())
    with pytest.raises(ValueError, match="set: 'animals' is not one of animal-animal"):
        prompts.built_in("animals")


def test_a_lot_is_always_the_same_and_keeps_the_order():
    whole = prompts.built_in("animal-object")
    some = prompts.drawn_from(whole, 10)
    assert some == prompts.drawn_from(whole, 10)
    assert some == [p for p in whole if p in some]
    with pytest.raises(ValueError, match="limit: 145 is not allowed; animal-object has 144"):
        prompts.drawn_from(whole, 145)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.txt", "# mine\n\na cat and a [red|blue] dog | cat, dog\na lion\tlion\nan old man walking his dog\n"),
        (
            "own.csv",
            'prompt,entities\na cat and a [red|blue] dog,"cat, dog"\na lion,lion\nan old man walking his dog,\n',
        ),
        (
            "own.jsonl",
            '{"prompt": "a cat and a [red|blue] dog", "entities": ["cat", "dog"]}\n'
            '{"prompt": "a lion", "entities": ["lion"]}\n\n{"prompt": "an old man walking his dog"}\n',
        ),
    ],
)
def test_users_files(name, text, tmp_path):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8-sig")
    found = prompts.from_file(file)
    assert [(p.text, p.entities, p.origin) for p in found] == [
        ("a cat and a [red|blue] dog", ("cat", "dog"), name),
        ("a lion", ("lion",), name),
        ("an old man walking his dog", ("man", "dog"), name),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "a cat | cat,,dog", "line 1: entities: .* none empty"),
        ("a.txt", "a cat\nwalking slowly", "line 2: no entity is found in 'walking slowly'"),
        ("a.txt", "# nothing", "holds no prompt"),
        ("a.csv", "text\na cat", "no column prompt; its columns are text"),
        ("a.csv", "prompt,entities\na cat,cat,dog", "line 2: more values than columns"),
        ("a.csv", "prompt,weight\na cat,1", "column 'weight' is not allowed"),
        ("a.jsonl", '{"prompt": "a cat"', "line 1: not JSON"),
        ("a.jsonl", '{"text": "a cat"}', "line 1: .* is needed"),
        ("a.jsonl", '{"prompt": "a cat", "entities": "cat"}', "entities: 'cat' is not allowed; a list"),
        ("a.md", "a cat", r"is not allowed; one of \*.txt, \*.csv, \*.jsonl"),
    ],
)
def test_a_bad_file_is_told_by_line(name, text, message, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        prompts.from_file(file)


def test_arms_are_what_they_name(tmp_path):
    text = (
        'arms = ["plain", "iou + 0.5*intensity", {preset = "balanced"}, {tuned = "com"},\n'
        '{name = "mine", loss = "cc", settings = {size = 0.3, steps = 9}}]\n'
        '[[prompts]]\nset = "embedded-2"\nlimit = 1\n'
        '[[prompts]]\nset = "embedded-3"\nlimit = 1\n'
    )
    _, jobs = plans.read(written(tmp_path, text))
    own = {(job.arm, len(job.prompt.entities)): job.settings for job in jobs}
    assert own["plain", 2] == Settings()
    assert own["iou + 0.5*intensity", 2] == Settings(enabled=True, loss="iou + 0.5*intensity")
    assert own["balanced", 3] == Settings(enabled=True, loss="intensity + 0.3*com").fixed()
    assert (own["com", 2], own["com", 3]) == (ARMS[2]["com"], ARMS[3]["com"])
    assert own["mine", 2] == Settings(enabled=True, loss="cc", size=0.3, steps=9)


@pytest.mark.parametrize("same", [True, False])
def test_every_arm_has_the_same_seeds_and_they_stay_when_prompts_come(same, tmp_path):
    text = f'seeds = 3\nfirst_seed = 50\nsame_seeds = {str(same).lower()}\narms = ["plain", "com", "kl"]\n[[prompts]]\n'
    _, jobs = plans.read(written(tmp_path, text + 'set = "embedded-2"\nlimit = 4\n'))
    seeds = {}
    for job in jobs:
        seeds.setdefault((job.prompt.id, job.arm), []).append(job.seed)
    assert len(jobs) == 4 * 3 * 3
    for prompt in {p for p, _ in seeds}:
        assert seeds[prompt, "plain"] == seeds[prompt, "com"] == seeds[prompt, "kl"]
        assert len(set(seeds[prompt, "plain"])) == 3
    assert (len({tuple(s) for s in seeds.values()}) == 1) == same
    assert not same or seeds[jobs[0].prompt.id, "plain"] == [50, 51, 52]
    _, more = plans.read(written(tmp_path, text + 'set = "embedded-2"\n'))
    assert {job.key for job in jobs} <= {job.key for job in more}
    # A run that is stopped after a quarter has seen every prompt.
    assert len({job.prompt for job in more[: 14 * 3]}) == 14


def test_a_recipe_changes_with_what_the_picture_depends_on_and_with_nothing_else(tmp_path):
    def recipes(text):
        plan, jobs = plans.read(written(tmp_path, text))
        return [job.recipe(plan.sampling, plan.backend, "0123456789") for job in jobs]

    own = recipes(SMALL)
    assert len(set(own)) == len(own)
    assert recipes("maps = true\nexpected_missing = 0.1\n" + SMALL + "[backend]\nbatch = 2\nworkers = 2\n") == own
    assert recipes(SMALL + "[sampling]\nsteps = 20\n") == own  # the embedded model's own
    assert not set(recipes(SMALL + "[sampling]\nsteps = 21\n")) & set(own)
    changed = recipes(SMALL.replace('"com"', '{name = "com", loss = "com", settings = {size = 0.2}}'))
    assert [a == b for a, b in zip(own, changed)] == [True, False] * (len(own) // 2)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/plan.toml")), ids=lambda file: file.parent.name)
def test_the_plans_of_published_figures_ask_for_the_settings_that_these_were_drawn_with(file):
    drawn = json.loads((file.parent / "results.json").read_text(encoding="utf-8"))["settings"]
    _, jobs = plans.read(file)
    assert {f"{len(job.prompt.entities)} {job.arm}": job.settings.as_dict() for job in jobs} == drawn


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms = [", "is no TOML"),
        ('arms = ["plain"]\n', "prompts: none"),
        (SMALL.replace("limit", "limits"), r"prompts\[1\].limits: no such field \(did you mean limit\?\)"),
        (SMALL.replace("limit = 2", "limit = -1"), r"prompts\[1\].limit: -1 is not allowed; 0 to 1000000"),
        (SMALL.replace("limit = 2", 'file = "x.txt"'), r"prompts\[1\]: one of set, file and split"),
        (SMALL.replace('"com"', '"con"'), r"arms\[2\].loss: loss: 'con' is not one of iou, com"),
        (SMALL.replace('"com"', '"plain"'), "arms: 'plain' stands twice"),
        (SMALL.replace('"com"', '{preset = "Balancd"}'), "arm 'Balancd'.preset: .*Balanced"),
        (SMALL.replace('"com"', '{tuned = "best"}'), r"arms\[2\].tuned: 'best' is not one of plain, iou"),
        (
            SMALL.replace('"com"', '{tuned = "gated"}') + '[backend]\nkind = "webui"\nurls = ["http://a"]\n',
            "arm 'gated'.tuned: 'gated' is not drawn by a WebUI: it is no setting",
        ),
        (
            SMALL.replace('"com"', '{loss = "com", settings = {enabled = false}}'),
            "settings.enabled: is not allowed but",
        ),
        (SMALL + "entities = 3\n", r"prompts\[1\].entities: is of a split only"),
        (SMALL + "first_seed = 3\n", r"prompts\[1\].first_seed: is of a split only"),
        (SPLIT.replace("limit = 4\n", ""), r"prompts\[1\].limit: is needed with split"),
        (SPLIT + "seeds = 2\n", r"prompts\[1\].seeds: 2 is not allowed; each picture of a split has"),
        (SPLIT.replace('"tune"', '"all"'), r"prompts\[1\].split: split: 'all' is not one of tune, report, unseen"),
        (SPLIT + SPLIT.partition("\n")[2], r"prompts\[2\]: '.*' stands in tune-2 already"),
        (SMALL.replace('"com"', '{loss = "com", preset = "Fast"}'), "loss and preset exclude each other"),
        (SMALL.replace('"com"', '{name = "x"}'), "'x' says nothing"),
        (SMALL.replace('"com"', '{name = "both", loss = "com"}'), "'both' is not allowed; the rating page"),
        (SMALL.replace('"com"', '{name = "plain", loss = "com"}'), "the arm plain is drawn without guidance"),
        (
            SMALL.replace('"com"', '{loss = "com", settings = {size = -1}}'),
            "arm 'com'.settings: size: -1 is not allowed",
        ),
        (SMALL.replace('"com"', '{loss = "com", settings = {entities = ["a"]}}'), "settings.entities: is not allowed"),
        ("seeds = true\n" + SMALL, "seeds: True is not allowed; a whole number, 1 to 10000"),
        ('seeds = "4"\n' + SMALL, "seeds: '4' is not allowed"),
        (SMALL + "[sampling]\nsteps = 0.5\n", "sampling.steps: 0.5 is not allowed; a whole number"),
        (SMALL + '[sampling]\nsampler = "Euler"\n', "sampling.sampler: 'Euler' is not allowed; a local file"),
        (SMALL + '[backend]\nkind = "comfy"\n', "backend.kind: 'comfy' is not one of embedded, diffusers, webui"),
        (SMALL + '[backend]\nkind = "diffusers"\n', "backend.checkpoint: is needed"),
        (SMALL + '[backend]\nurls = ["http://a"]\n', "backend.urls: is not of kind 'embedded'"),
        (SMALL + '[backend]\nkind = "webui"\n', "either urls or endpoints"),
        (SMALL + '[backend]\nkind = "webui"\nurls = ["http://me:secret@a"]\n', "urls: .* --api-auth"),
        (SMALL + '[backend]\nkind = "webui"\nurls = ["http://a"]\nsha256 = "X"\n', "backend.sha256: 'X'"),
        (SMALL + '[[prompts]]\nset = "embedded-2"\n', r"prompts\[2\]: '.*' stands in embedded-2 already"),
        (
            'arms = [{tuned = "com"}]\n[[prompts]]\nsplit = "tune"\nentities = 1\nlimit = 1\n',
            "'com' is not one of plain, choose.*, the arms of 1 entities",
        ),
    ],
)
def test_a_wrong_plan_names_field_value_and_what_is_allowed(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plans.read(written(tmp_path, text))


def test_every_field_of_a_plan_has_words_for_the_reference():
    parts = (plans.Plan, plans.PromptsPart, plans.ArmPart, plans.Sampling, plans.BackendPart)
    assert [f"{p.__name__}.{f.name}" for p in parts for f in fields(p) if not f.metadata.get("help")] == []
