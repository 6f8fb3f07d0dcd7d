"""Suggestions: the rules one by one, then the labelled prompts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_decouple.prompt.align import Piece, align
from lib_decouple.prompt.entities import locate, suggest
from lib_decouple.prompt.syntax import Dialect

from .score import SETS, load, score

LEAST_F1 = 0.9
"""What the issue asks for; ``python -m tests.prompt.score`` prints what is reached."""


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of an old man walking his dog", ["man", "dog"]),
        ("masterpiece, best quality, 1girl, holding umbrella, traffic light", ["1girl", "umbrella", "traffic light"]),
        ("a cat and a dog", ["cat", "dog"]),
        ("", []),
        ("masterpiece, best quality, 8k", []),
    ],
)
def test_the_plainest_prompts(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # What somebody is asked to do is no thing.
        ("sketch a castle", ["castle"]),
        ("please design an owl with a lantern", ["owl", "lantern"]),
        ("can you render two teapots", ["teapots"]),
        ("picture a horse and a cow", ["horse", "cow"]),
        ("guard with a spear, a dog", ["guard", "spear", "dog"]),
        # What a living being does, though the word is a thing, too.
        ("a pigeon landing on a statue", ["pigeon", "statue"]),
        ("a man building in a park", ["man", "park"]),
        ("an apartment building in a park", ["apartment building", "park"]),
        # A piece of a substance.
        ("a boy carries a plank and a brick", ["boy", "plank", "brick"]),
        # What a thing is said to be.
        ("a cat in a mirror; the cat is orange", ["cat", "mirror"]),
        ("a vase, it is gold and the table is silver", ["vase", "table"]),
        ("the hero is a lemon", ["hero", "lemon"]),
        # A verb leads to an article, a noun doesn't; what one being does is told in "s", what several do without.
        ("the smith grinds the axe with a stone", ["smith", "axe", "stone"]),
        ("under the bridge stands a heron", ["bridge", "heron"]),
        ("my sister stacks plates", ["sister", "plates"]),
        ("swallows circle above", ["swallows"]),
        ("a truck stops near two bus stops", ["truck", "bus stops"]),
        ("a bus stops near a truck", ["bus", "truck"]),
        ("a wizard quietly brews a potion", ["wizard", "potion"]),
        ("a zorblin quietly brews a potion", ["zorblin", "potion"]),
        ("a crow that can slowly swing a hammer", ["crow", "hammer"]),
        ("a fox will cook soup", ["fox", "soup"]),
        ("a lamp stand on a rug and a door handle with a key", ["lamp stand", "rug", "door handle", "key"]),
        ("a hair dryer, a fryer", ["hair dryer", "fryer"]),
        ("two children are ice skating on a pond", ["children", "pond"]),
        ("there is bread baking in an oven", ["bread", "oven"]),
        ("milk that is pouring into a cup", ["milk", "cup"]),
        ("a woman and a bear hug in a park", ["woman", "bear", "park"]),
        ("a crowd of people watch a train", ["people", "train"]),
        ("girls playing football with a football", ["girls", "football"]),
        # A word that is mostly something else.
        ("a monkey on a camel's back, the back of a truck", ["monkey", "camel", "back", "truck"]),
        ("from the back, a cat looks back", ["cat"]),
        ("a ladder ten feet tall, a man with two feet in a pond", ["ladder", "man", "feet", "pond"]),
        ("a tiger staring at the camera, a boy with a camera", ["tiger", "boy", "camera"]),
        ("a rock in a wide plain", ["rock", "plain"]),
        ("a white faced owl", ["owl"]),
        ("a cat on its back, a parking lot, two wine glasses", ["cat", "parking lot", "wine glasses"]),
        ("boys in sandals ride ponies past taxis", ["boys", "sandals", "ponies", "taxis"]),
        ("men filming cats, a cook slicing a leek", ["men", "cats", "cook", "leek"]),
        ("a banner with 'buy a fish' printed on it", ["banner"]),
        ("a thief cracks the safe with a drill", ["thief", "safe", "drill"]),
        # What several do whose plural doesn't show.
        ("two samurai clash swords", ["samurai", "swords"]),
        ("several deer graze in a meadow", ["deer", "meadow"]),
        ("a 4-door car, a 12-string guitar", ["car", "guitar"]),
        # Pairs that name a game or a way to draw, or one dish.
        ("children playing hide and seek, tug of war", ["children"]),
        ("a pen and ink drawing of a cat, hugs and kisses", ["cat"]),
        ("hand in hand, a boy and a girl, head and shoulders portrait", ["boy", "girl"]),
        ("a bowl of mac and cheese beside a knife and fork", ["bowl", "mac and cheese", "knife", "fork"]),
        ("a badge, a barrel and a hose", ["badge", "barrel", "hose"]),
    ],
)
def test_what_a_word_is_by_what_stands_around_it(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a polar bear beside a fire hydrant", ["polar bear", "fire hydrant"]),
        ("a small polar bear in the old town", ["polar bear", "town"]),
        ("a hot dog and a teddy bear", ["hot dog", "teddy bear"]),
        ("two wolves and three geese", ["wolves", "geese"]),
        ("a young woman", ["woman"]),
        ("a leather jacket", ["jacket"]),
        ("a corgi's head", ["corgi", "head"]),
        ("a black cat", ["cat"]),
        ("a small white lighthouse", ["lighthouse"]),
        ("a dragon tail and a goblin merchant", ["dragon tail", "goblin merchant"]),
        ("a baby dragon and a child king", ["dragon", "king"]),
        ("a winter coat under a night sky", ["winter coat", "sky"]),
        ("a beer can beside a garbage can lid", ["beer can", "garbage can lid"]),
        ("a rose dress, a plum tree, a navy car", ["dress", "plum tree", "car"]),
        ("an origami frog on a lego truck", ["frog", "truck"]),
        ("side braid, side window", ["braid", "side window"]),
        ("Osaka Castle beside the Zwinger Palace", ["osaka castle", "zwinger palace"]),
        ("photo of Peter Fisher holding a fish", ["peter fisher", "fish"]),
        ("Red Barn, Old Mill", ["barn", "mill"]),
    ],
)
def test_heads_and_compounds(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cup of coffee", ["cup", "coffee"]),
        ("a herd of sheep", ["sheep"]),
        ("a bunch of bananas", ["bananas"]),
        ("an oil painting of a fox", ["fox"]),
        ("a statue of an owl", ["statue", "owl"]),
        ("a dragonfly made of glass", ["dragonfly"]),
        ("a cat without a hat", ["cat"]),
        ("no humans, mountain", ["mountain"]),
    ],
)
def test_of_and_no(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a girl is painting a fence", ["girl", "fence"]),
        ("a car next to bike next to bus", ["car", "bike", "bus"]),
        ("a scarf similar to fish", ["scarf", "fish"]),
        ("a can on a shelf", ["can", "shelf"]),
        ("a watering can and a hose", ["watering can", "hose"]),
        ("a dog can jump over a fence", ["dog", "fence"]),
        ("lion tiger bear", ["lion", "tiger", "bear"]),
        ("a bear cub and a fox girl", ["bear cub", "fox girl"]),
        ("a cat in place of a dog", ["cat"]),
        ("a place of worship, a monk", ["monk"]),
        ("cat, dog\nNegative prompt: horse, cow\na hen", ["cat", "dog", "hen"]),
        ("score_9, source_pony, rating_safe, 1girl", ["1girl"]),
        ("a wolf watches from behind a tree", ["wolf", "tree"]),
        ("dogs play in the park", ["dogs", "park"]),
        ("the dog chased the cat", ["dog", "cat"]),
        ("a spoon lay next to the bowl", ["spoon", "bowl"]),
        ("a tall building", ["building"]),
        ("a motorcycle hanging on a wall", ["motorcycle", "wall"]),
        ("how to fly a kite", ["kite"]),
        ("a robot watering flowers", ["robot", "flowers"]),
        ("a dancer tying her shoes", ["dancer", "shoes"]),
        ("a cat and a dog walk into a bar", ["cat", "dog", "bar"]),
        ("rice terraces at dawn", ["rice terraces"]),
        ("a trophy doesn't fit into a suitcase", ["trophy", "suitcase"]),
    ],
)
def test_verbs_are_no_entities(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    "tail",
    [
        " in the style of Van Gogh",
        ", by greg rutkowski and artgerm",
        ", cinematic lighting, bokeh, film grain, depth of field",
        ", trending on artstation, unreal engine 5, octane render",
        ", (masterpiece:1.3), <lora:forest_castle:0.8>",
        ", white background, solo, looking at viewer, smile",
        ", pixar style, digital art, oil on canvas",
        ", 85mm lens, f/1.8, raw photo",
    ],
)
def test_style_tails_add_nothing(tail: str) -> None:
    assert suggest("a cat on a sofa" + tail) == ["cat", "sofa"]


@pytest.mark.parametrize("tail", ["masterpiece", "hd", "uhd", "bokeh, best quality", "realism", "x", "high resolution"])
def test_praise_without_a_comma_takes_no_thing_with_it(tail: str) -> None:
    """As "Prompts from file" puts the page's own prompt behind each line."""
    assert suggest(f"a cat and a dog {tail}") == ["cat", "dog"]
    assert suggest(f"a dog {tail}, a plan b, a model t")[:1] == ["dog"]


@pytest.mark.parametrize(
    "name",
    [
        *("easynegative", "EasyNegativeV2", "bad-hands-5", "ng_deepnegative_v1_75t", "verybadimagenegative_v1.3"),
        *("badhandv4", "bad_prompt_version2", "bad-artist-anime", "negative_hand-neg", "BadDream", "negativeXL_D"),
        *(
            "zorbNegative",
            "HandNeg-v2",
            "zorb-negative-embedding",
            "ZORB_NEG",
            "bad_pictures",
            "score_9_up",
            "rating_safe",
        ),
    ],
)
def test_names_of_embeddings_are_no_things(name: str) -> None:
    """With a comma or without."""
    for prompt in ("a cat {}", "{} a cat", "cat, {}", "(cat:1.1) ({}:0.8)", "a cat. {}, masterpiece"):
        assert suggest(prompt.format(name)) == ["cat"], prompt
    assert suggest(f"cat {name} dog") == ["cat", "dog"]


def test_words_that_only_look_like_such_names_are_things() -> None:
    assert suggest("a badger, a bad guy, a bad-tempered cat") == ["badger", "bad guy", "cat"]
    assert suggest("a woman in a negligee, a vinegar bottle") == ["woman", "negligee", "vinegar bottle"]
    assert suggest("cat, neg: dog") == suggest("cat --neg dog") == suggest("cat\nNegative prompt: dog") == ["cat"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("2boys, 3girls, 1cat", ["2boys", "3girls", "1cat"]),
        ("a 3d render of a cat, 35mm", ["cat"]),
        ("red_scarf, street_lamp", ["scarf", "street lamp"]),
        (r"bow \(weapon\), (red dress:1.2)", ["bow (weapon)", "dress"]),
        ("[cat:dog:0.5] {fox|wolf} __animal__", ["cat", "dog", "fox", "wolf"]),
        ("a lion AND a tiger BREAK a bear", ["lion", "tiger", "bear"]),
        ("a sign that says 'hello', \"a cat\" on it", ["sign"]),
        ("a cat # and a dog\nin a box", ["cat", "box"]),
    ],
)
def test_the_prompt_language(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        *("((cat)) ((dog))", "(black cat:1.2) (white dog:1.2)", "[cat] [dog]", "(cat)(dog)", "[(cat)] ([dog])"),
        *("((cat) dog)", "(cat) dog", "cat (dog)"),
        *("[[cat]][[dog]]", "(a cat:1.2) (a dog)", "{cat} {dog}", "<cat> <dog>"),
        *("(cat:1.1)[dog]", "((black:1.2) cat) ((white) dog)", "(cat\n(dog"),
        *("【cat】【dog】", "（cat）（dog）", "cat) (dog)"),
        *("(cat BREAK dog)", "(cat, [dog:0.9])", "a (cat:1.2) vs. a (dog)"),
        *("cat/dog", "cat | dog", "cat & dog", "cat + dog"),
        *("cat，dog", "cat、dog", "cat；dog", "cat。dog"),
        *("a cat — a dog", "cat…dog", "cat; dog.", "*cat* *dog*", "cat\ndog"),
        *('"a cat and a dog"', "'a cat and a dog'", "“a cat and a dog”", "«a cat, a dog»", "„a cat and a dog“"),
        *("「cat、dog」", "『cat』『dog』", "‹cat› ‹dog›"),
        *('"cat", "dog"', '"cat" and "dog"', '"a cat" and a dog', "`cat`, `dog`"),
        *('"a cat and a dog", masterpiece', '"a cat and a dog'),
        *('"a cat and a \\"big\\" dog"', '"a \\"cat\\" and a \\"dog\\""', '"\\"a cat and a dog\\""'),
        *('{"prompt": "a \\"cat\\", a dog"}', "'a \"cat\" and a \"dog\"'", '"a cat, \'a dog\'"'),
        *("cat v dog", "a cat v a dog", "cat n dog", "a cat x a dog"),
        *("cat break dog", "Cat Break Dog", "a cat and a dog break", "cat\nbreak\ndog"),
        *('\\"a cat and a dog\\"', "＂a cat and a dog＂", 'a "cat" and a "dog"'),
        *("cat ADDCOL dog", "cat ADDROW dog ADDBASE", "cat AND_SALT dog"),
        *("cat AND dog", "cat BREAK dog", "cat ADDCOMM dog"),
    ],
)  # fmt: skip
def test_what_parts_words(prompt: str) -> None:
    assert suggest(prompt) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(man)(woman)", ["man", "woman"]),
        ("((tall) boy) ((short) girl)", ["boy", "girl"]),
        ("(leather) (jacket)", ["jacket"]),
        ('caption: "cat", a dog', ["dog"]),
        ('"a sign that says \\"dog\\", a cat"', ["sign", "cat"]),
        ('"a cat, a sign that reads \\"no dogs\\""', ["cat", "sign"]),
        ("'a girl with a sign that says \"a dog\" and a cat'", ["girl", "sign", "cat"]),
        ("'a cat\\'s toy and a dog\\'s bone'", ["cat", "toy", "dog", "bone"]),
        ("a break room with a sofa, waves break on a beach", ["break room", "sofa", "waves", "beach"]),
        ('prompt: "a cat and a dog"', ["cat", "dog"]),
        ("a café, crème brûlée, two piñatas", ["café", "crème brûlée", "piñatas"]),
        ("кошка и собака", []),
        ("a robot and a human", ["robot", "human"]),
        ("an eccentric, old scientist", ["scientist"]),
        ("an alien, a general. A girl at a well", ["alien", "general", "girl", "well"]),
        ("left cat, right cat", ["left cat", "right cat"]),
    ],
)
def test_words_that_are_easily_lost(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


def test_an_adjective_in_brackets_is_still_said_of_its_noun() -> None:
    assert suggest("a (red:1.2) apple and a [tiny] (fire hydrant)") == ["apple", "fire hydrant"]
    assert suggest("(red) apple, (green) apple") == ["red apple", "green apple"]


@pytest.mark.parametrize(
    "prompt",
    [
        *("a cat AND a dog :-0.5", "a cat, (dog:-1)", "a cat, (dog:0)", "a cat [(dog:-0.1)]", "a cat, (a dog:-.5)"),
        *("a cat and no dog", "a cat without a dog", "a cat without any dog", "a cat w/o a dog", "a cat sans dog"),
        *("a cat minus the dog", "a cat free of dogs", "a cat, no dogs or birds", "a cat, neither dog nor bird"),
        *("a cat, not a dog", "a cat instead of a dog"),
        *("a cat rather than a dog", "a cat, never a dog", "a cat, 0 dogs"),
        *("a cat. There is no dog.", "a cat, there isn't a dog", "a cat, don't draw a dog", "a cat that isn't a dog"),
        *("a cat, zero dogs", "a cat, none of the dogs"),
        *("a cat devoid of dogs", "a cat lacking a dog", "a cat, exclude dogs"),
        *("a cat, no dogs, birds or fish", "a cat with no dog nor bird"),
        *("a cat AND_PERP a dog :-1", "a cat except dogs"),
        *("a cat AND (dog:1.2) :-1 AND a bird :0", "a cat, avoid dogs"),
        *("a cat without a dog and a bird", "a dogless cat"),
        *("a cat -dog", "a cat, -dog, -bird", "cat --no dog", "cat --neg dog", "a cat, not dog"),
        *("a cat, dogs excluded", "a cat -bird -dog"),
        *("a cat, without: dog, bird", "a cat | negative: dog", "a cat\nexclude: dogs, birds", "a cat missing its dog"),
        *("a cat free from dogs", "anything but a dog, a cat", "a cat; the dog is removed", "a cat, absent any dogs"),
        *("a cat, no sign of a dog", "a cat, no-dog", "a cat with nary a dog", "a cat unlike a dog"),
        *("a cat, w/out dogs", "a cat, dogs are not allowed", "a cat, dogs mustn't appear"),
        *("a cat, the dog is nowhere to be seen", "cat, not dogs nor birds"),
        *("a cat, leave out the dog", "a cat, skip the dog", "a cat, please nix the dog", "a cat, dogs: none"),
        *("hold the dog, a cat", "a cat, hold the dog", "a cat, please drop the dog", "a cat, lose the black dog"),
        *("a cat ~dog", "a cat, ~(dog), ~bird", "a cat ¬dog", "a cat, forget the dog", "a cat, scrap the dog"),
        *("a cat, get rid of the dog", "a cat, do away with dogs", "a cat, kick out the dog", "a cat barring dogs"),
        *("a cat, the dog left out", "a cat, dog free", "a cat, the dog isn't there", "a cat, there ain't no dog"),
        *("a cat -(dog)", "a cat, !dog", "a cat, -[dog:1.2]", "a dog that isn't shown, cat", "dog: no, cat"),
        *("a cat, dogs be gone", "dogs begone, a cat", "a cat, be gone dog", "a cat, take the dog away"),
        *("take away the dog, a cat", "a cat, take dogs away", "a cat, cut the dog", "a cat, please cut out the dog"),
        *("a cat, crop the black dog out", "a cat, leave the dog out of it", "a cat, keep dogs out"),
        *("a cat, now send the dog away", "a cat, throw the dogs out", "a cat, get the dog out, please"),
        *("a cat, edit the dog out of the picture", "a cat, delete dogs", "a cat, drop the dog please"),
        *("a cat, purge dogs", "a cat, discard the dog", "a cat, ignore the dog", "a cat, hide the dog"),
        *("a cat, the dog is gone", "a cat, the dog has been removed", "a cat, the dogs are missing"),
        *("a cat, off with the dog", "a cat, down with dogs", "a cat, not even a dog", "a cat, not including a dog"),
        *("a cat, nothing like a dog", "a cat, with the exception of dogs", "a cat, let's lose the dog"),
        *("a cat, the dog must go", "a cat, please take the dog out of this picture"),
        *("a cat, apart from a dog", "a cat, aside from dogs", "a cat, hardly any dogs", "a cat, wipe out the dogs"),
        *("a cat, (no dogs:1.3)", "a cat, (dog BREAK bird:-1)", "a cat does not have a dog", "a cat BREAK (dog:0.0)"),
    ],
)  # fmt: skip
def test_what_the_prompt_takes_away(prompt: str) -> None:
    assert suggest(prompt) == ["cat"]


@pytest.mark.parametrize(
    "no",
    [
        # What who writes dislikes.
        *("I hate hens", "we really dislike hens", "I would hate to see a hen", "i can't stand hens", "hate hens"),
        *("I don't like hens", "I'm not into hens", "i am not a big fan of hens", "sick of hens"),
        *("allergic to hens", "I'm so tired of hens"),
        *("I never liked hens", "I never want to see a hen", "nobody asked for a hen", "no one wants hens"),
        *("i detest hens and foxes", "I hate it when there are hens", "We don't care for the hens", "I'm against hens"),
        # What somebody is told.
        *("stop drawing hens", "quit adding a hen", "stop it with the hens", "refrain from drawing a hen", "drop hens"),
        *("spare me the hen", "please spare us the hens", "save us from hens", "rid the picture of hens"),
        *("less hen", "less hens", "fewer hens and foxes", "enough hens", "enough of the hens", "to hell with hens"),
        *("screw the hen", "stay away from hens", "steer clear of hens", "go away hens", "shoo, hen", "bye hens"),
        *("don't you dare draw a hen", "try not to include a hen", "don't ever show a hen", "dont draw hens"),
        *("veto hens", "block hens", "nope to hens"),
        *("please stop showing hens", "go away, you hen", "stay away, hens", "prevent hens", "cut out hens"),
        # What denies by the way.
        *("under no circumstances a hen", "by no means a hen", "on no account draw a hen", "no need for hens"),
        *("nothing to do with hens", "nothing that has hens", "not one hen", "as opposed to a hen", "in lieu of a hen"),
        *("cannot have hens", "it isnt a hen", "i hate hens, foxes or owls"),
        # What stands behind it.
        *("hens get out", "hens must stay away", "hens stay out, please", "the hens can go", "hens unwelcome here"),
        *("hens are off limits", "hens are a no-go", "hens are out of the question", "hens need not apply"),
        *("hens are not allowed in the picture", "hens don't belong here", "a hen must never be seen", "hens (none)"),
        *("hen, get lost", "hens, go away!", "hens? no.", "hens? Absolutely not!", "hen? no thanks", "hens... no"),
        *("hens: out", "hens - not wanted", "hens: not here", "unwanted: hens, foxes"),
        *("dislikes: hens", "hens? none of them"),
    ],
)  # fmt: skip
def test_what_says_no_in_other_words(no: str) -> None:
    assert suggest(f"a cat, {no}") == ["cat"]
    assert suggest(f"A cat. {no[0].upper()}{no[1:]}") == ["cat"]
    assert suggest(f"({no})\na cat") == ["cat"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog not only on a sofa", ["dog", "sofa"]),
        ("a trophy doesn't fit into a suitcase", ["trophy", "suitcase"]),
        ("a kitchen table with no chairs on a rug", ["kitchen table", "rug"]),
        ("a man without a hat and a dog", ["man", "dog"]),
        ("(dog:0.1), (cat:+.5)", ["dog", "cat"]),
        ("a cat, no humans, a hill", ["cat", "hill"]),
        ("- cat\n- dog", ["cat", "dog"]),
        ("-cat\n -dog", ["cat", "dog"]),
        ("a cat - a dog, a well-fed pig", ["cat", "dog", "pig"]),
        ("a cat with its collar removed", ["cat", "collar"]),
        ("a shelf without any pairs of shoes on it, a cat", ["shelf", "cat"]),
        ("a clown, not scary, with a dog", ["clown", "dog"]),
        ("a missing cat, nothing but a dog", ["cat", "dog"]),
        ("a man in the middle of nowhere, a no-parking sign", ["man", "sign"]),
        ("Wow! dog, a cat!", ["dog", "cat"]),
        ("a girl holds the dog, a hand to hold the leash", ["girl", "dog", "hand", "leash"]),
        ("a nurse, hold the dog tight", ["nurse", "dog"]),
        ("~quiet barn~ ~~ owl ~", ["barn", "owl"]),
        ("a bird, set free", ["bird"]),
        ("a girl skips past a cat, a ban on dogs", ["girl", "cat", "dogs"]),
        ("a train leaves out of a station", ["train", "station"]),
        ("a man taking the dog away", ["man", "dog"]),
        ("a man takes the dog away, a maid", ["man", "dog", "maid"]),
        ("a thief removing a painting from a wall", ["thief", "painting", "wall"]),
        ("a car avoiding a cow", ["car", "cow"]),
        ("a man running away with a pig", ["man", "pig"]),
        ("a boy sitting down with a dog", ["boy", "dog"]),
        ("a girl cutting out paper with scissors", ["girl", "paper", "scissors"]),
        ("a dog gone wild, a cat", ["dog", "cat"]),
        ("a cat, nothing except a hen", ["cat", "hen"]),
        ("take a photo of a hen", ["hen"]),
        ("a lost dog, a missing cat", ["dog", "cat"]),
        ("clear sky, a crow", ["sky", "crow"]),
        ("remove the hat from the man, a wall", ["man", "wall"]),
        ("replace the dog with a hen, a cat", ["hen", "cat"]),
        ("a man whose dog is gone", ["man", "dog"]),
        # Who dislikes, sends away or says no is seen to do it, or it is no noun that follows.
        ("a man who hates hens", ["man", "hens"]),
        ("a girl who doesn't like hens", ["girl", "hens"]),
        ("a monk who is tired of geese", ["monk", "geese"]),
        ("a girl i like with a hen", ["girl", "hen"]),
        ("a nurse stops drawing a hen", ["nurse", "hen"]),
        ("two hens get out of a car", ["hens", "car"]),
        ("a boy saves a hen from a fire", ["boy", "hen", "fire"]),
        ("a boy no longer on a bus", ["boy", "bus"]),
        ("a stop sign, a spare tire, a screw", ["stop sign", "spare tire", "screw"]),
        ("a room with less furniture", ["furniture", "room"][::-1]),
        ("less cluttered kitchen with a hen", ["kitchen", "hen"]),
        ("a crow and not one but two hens", ["crow", "hens"]),
        ("a crow, no less than two hens", ["crow", "hens"]),
        ("a hen, never seen before", ["hen"]),
        ("a crow, hens? yes please", ["crow", "hens"]),
        ("a crow? a hen?", ["crow", "hen"]),
        ("hen, out of focus", ["hen"]),
        ("1girl, a goodbye kiss", ["1girl", "goodbye kiss"]),
        ("a mother waving goodbye to a boy", ["mother", "boy"]),
        ("drop earrings, cut flowers, trash can, block print", ["drop earrings", "cut flowers", "trash can"]),
        ("I hate hens but I love crows", ["crows"]),
        ("I don't like hens but draw a crow", ["crow"]),
        ("get me a hen and a crow", ["hen", "crow"]),
    ],
)
def test_what_says_no_to_nothing_takes_nothing_away(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple and a green apple", ["red apple", "green apple"]),
        ("a red apple, a green apple and an apple", ["red apple", "green apple", "apple@3"]),
        ("an apple and a green apple", ["apple", "green apple"]),
        ("a big red apple and a small red apple", ["big red apple", "small red apple"]),
        ("a man in a black hat and a man in a white hat", ["man", "black hat", "man@2", "white hat"]),
        ("a cat and a cat", ["cat", "cat@2"]),
        ("cat vs cat", ["cat", "cat@2"]),
        ("a dog-house, a dog and another dog", ["dog-house", "dog@2", "dog@3"]),
        ("a cat on a sofa. The cat is black.", ["cat", "sofa"]),
        ("black cat, cat, masterpiece", ["cat"]),
        ("a cat AND a cat", ["cat"]),
        ("a cat, (cat:1.3)", ["cat"]),
        ("red fox, white fox, blue fox", ["red fox", "white fox", "blue fox"]),
        ("a sleeping cat and a jumping cat", ["sleeping cat", "jumping cat"]),
        ("1girl, red dress, blue dress", ["1girl", "red dress", "blue dress"]),
        ("1girl, beautiful face, perfect face, detailed eyes, blue eyes", ["1girl", "face", "eyes"]),
        ("a lovely red fox and a lovely gray fox", ["red fox", "gray fox"]),
        ("a tall cute girl and a short cute girl", ["girl", "girl@2"]),
    ],
)
def test_the_same_noun_again(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (r"kiwi \(bird\)", ["kiwi (bird)"]),
        (r"2b \(nier:automata\)", ["2b (nier:automata)"]),
        (r"1girl, hatsune miku \(append\), (saber \(fate\):1.2)", ["1girl", "hatsune miku (append)", "saber (fate)"]),
        (r"red bow \(weapon\), bow \(ribbon\)", ["bow (weapon)", "bow (ribbon)"]),
        (r"artoria pendragon \(swimsuit ruler\) \(fate\)", ["artoria pendragon (swimsuit ruler) (fate)"]),
        (r"watercolor \(medium\), touhou \(series\), cat", ["cat"]),
        (r"kiwi \(bird", ["kiwi"]),
        ("kiwi （bird）, an egg", ["kiwi", "bird", "egg"]),
        ("Kiwi_(Bird), an egg", ["kiwi bird", "egg"]),
        ("1girl, hatsune_miku_(vocaloid), (saber_(fate):1.2)", ["1girl", "hatsune miku vocaloid", "saber fate"]),
        ("red_bow_(weapon:1.3) bow_(ribbon)", ["bow weapon", "bow ribbon"]),
        ("artoria_(swimsuit_ruler)_(fate), 2b_(nier:automata)", ["artoria swimsuit_ruler fate", "2b nier:automata"]),
        ("zorblat_(series), titanic_(movie), zorblat_(series)_(cosplay), cat", ["cat"]),
        ("kiwi_(bird, cat", ["kiwi", "bird", "cat"]),
        ("(cat)_(dog)", ["cat", "dog"]),
        ("kiwi_(bird:0), _(cat), dog_()", ["kiwi", "cat", "dog"]),
        (r"d.va \(overwatch\), a cat", ["d.va (overwatch)", "cat"]),
        (r"c.c. \(code geass\), a 30 y.o. woman", ["c.c. (code geass)", "woman"]),
        (
            r"a.b.a \(guilty gear\), k.k. slider \(animal crossing\)",
            ["a.b.a (guilty gear)", "k.k. slider (animal crossing)"],
        ),
        (r"dr. mario \(nintendo\), mrs. claus", ["dr. mario (nintendo)", "mrs. claus"]),
    ],
)
def test_qualified_tags(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a tall and a short man", ["tall", "short man"]),
        ("a big red and a small red ball", ["big red", "small red ball"]),
        ("one large and one small fox", ["large", "small fox"]),
        ("a red car and a blue one on a road", ["car", "blue one", "road"]),
        ("a black and white cat", ["cat"]),
        ("a cat and an orange", ["cat", "orange"]),
    ],
)
def test_a_noun_that_two_share(prompt: str, expected: list[str]) -> None:
    """Each thing is named by words that stand together, as only these have tokens."""
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("zorblat and a donkey", ["zorblat", "donkey"]),
        ("a cat and zorblat", ["cat", "zorblat"]),
        ("zorblat gribbix holding a lantern", ["zorblat gribbix", "lantern"]),
        ("zorblat jumps over a turtle", ["zorblat", "turtle"]),
        ("zorblat vs gribbix", ["zorblat", "gribbix"]),
        ("a squid next to zorblat", ["squid", "zorblat"]),
        ("zorblat behind a fence", ["zorblat", "fence"]),
        ("a dragon fighting zorblat", ["dragon", "zorblat"]),
        ("zorblat, a dog", ["dog"]),
        ("zorblatic rendering of a cat, photo by gribbix holding a dog", ["cat", "dog"]),
        ("a person sits and waits", ["person"]),
        ("a portrait of zorblat, photo of zorblat gribbix", ["zorblat", "zorblat gribbix"]),
        ("a bowl of gribbix beside a spoon", ["bowl", "gribbix", "spoon"]),
        ("a llama in the ruins of Zorblat", ["llama", "ruins", "zorblat"]),
        ("a painting of van Zorblat, in the style of gribbix, art of zorblat", ["van zorblat"]),
        ("Zorblat on a swing, photorealistic on a screen", ["zorblat", "swing", "screen"]),
        ("Zorblat solemnly presents a trophy", ["zorblat", "trophy"]),
    ],
)
def test_a_name_that_nobody_knows_is_somebody_where_only_somebody_can_stand(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [limestone:granite:0.3] arch", ["arch"]),
        ("[wooden:stone:0.4] bridge", ["bridge"]),
        ("[marble::0.6] fountain, [:brick:0.5] tower", ["fountain", "tower"]),
        ("{copper|steel} door and a {gold|silver} key", ["door", "key"]),
        ("[silver|bronze] on a desk", ["desk"]),
        ("[rabbit:0.2] meadow", ["rabbit", "meadow"]),
        ("[lion|tiger] cage", ["lion", "tiger", "cage"]),
    ],
)
def test_what_a_choice_says_of_the_noun_behind_it(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a bus interior with passengers, modern interior", ["bus interior", "passengers"]),
        ("a kite in a strong breeze, a tornado", ["kite", "tornado"]),
        ("a fish between kelp and algae", ["fish", "kelp", "algae"]),
        ("a felt hat, rubber boots and a wooden spoon", ["hat", "boots", "spoon"]),
        ("a castle in Wales, a bridge in san francisco", ["castle", "wales", "bridge", "san francisco"]),
        ("a baker rolls dough and butters the tin", ["baker", "dough", "tin"]),
        ("two hens and ducks the size of cows", ["hens", "ducks", "cows"]),
        ("one paints a fence, another holds a ladder", ["fence", "ladder"]),
        ("a boat made of sugar cubes and waffles, a swarm made of bees", ["boat", "swarm", "bees"]),
        ("a mask made of bread and an owl", ["mask", "owl"]),
        ("a pick-up truck, an egg-plant, two fire-trucks", ["pick-up truck", "egg-plant", "fire-trucks"]),
        ("a leopard patterned sofa, a moss covered log", ["sofa", "log"]),
        ("a star shaped lamp, a cake shaped like a boat", ["lamp", "cake", "boat"]),
        (
            "a waiting area, two cutting mats, children painting walls",
            ["waiting area", "cutting mats", "children", "walls"],
        ),
        ("branches swaying in a field, flags waving over a tent", ["branches", "field", "flags", "tent"]),
        ("a blue jet and a red magic cape", ["jet", "cape"]),
        ("a man with a photo of a goat, a photo of a hen", ["man", "photo", "goat", "hen"]),
        ("a van with a red interior, in an open area", ["van", "interior", "area"]),
        ("a light above a stove, a dog in a warm light", ["light", "stove", "dog"]),
        ("walrus v. narwhal, arms behind back", ["walrus", "narwhal", "arms", "back"]),
        ("a cat PREFACE a dog, a hen CONCAT a pig", ["cat", "dog", "hen", "pig"]),
        ("🦊 fox 🦉 owl, 猫 cat 犬 dog", ["fox", "owl", "cat", "dog"]),
        ("big wolf little hedgehog, a tall giraffe small zebra", ["wolf", "hedgehog", "giraffe", "zebra"]),
        ("a duke with a scepter, a monk with a staff", ["duke", "scepter", "monk", "staff"]),
        ("a crow WEARING a hat, a goat idea a hill", ["crow", "hat", "goat", "hill"]),
    ],
)
def test_kinds_of_things(prompt: str, expected: list[str]) -> None:
    assert suggest(prompt) == expected


def test_comments_that_the_host_does_not_know_are_text() -> None:
    assert suggest("mutual#kiss, cat, dog") == []
    assert suggest("mutual#kiss, cat, dog", Dialect(comments=False)) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("prompt", "dialect", "expected"),
    [
        ("((fox)) ((owl)) BREAK hen", Dialect(emphasis="None"), ["fox", "owl", "hen"]),
        ("(fox:0), (owl:-1)", Dialect(emphasis="None"), ["fox", "owl"]),
        ("(fox:0), owl", Dialect(emphasis="Ignore"), ["fox", "owl"]),
        ("(fox:-1), owl", Dialect(emphasis="No norm"), ["owl"]),
        ("#fox, #owl # a hen", Dialect(comments=False), ["fox", "owl", "hen"]),
        ("[fox # and an owl\n:hen:0.5]", Dialect(), ["fox", "hen"]),
        ("fox # (owl\nhen)", Dialect(), ["fox", "hen"]),
        ("fox\nAND\nowl:-2 AND hen :0.0", Dialect(), ["fox"]),
    ],
)
def test_what_the_hosts_settings_make_of_signs(prompt: str, dialect: Dialect, expected: list[str]) -> None:
    assert suggest(prompt, dialect) == expected


def test_each_mention_is_located() -> None:
    prompt = "A Cat, (street_lamp:1.2), another cat"
    assert [(found.text, prompt[found.start : found.end]) for found in locate(prompt)] == [
        ("cat", "Cat"),
        ("street lamp", "street_lamp"),
        ("cat@2", "cat"),
    ]


def test_what_is_suggested_can_be_aligned() -> None:
    tokens = ["1</w>", "girl</w>", ",</w>", "traffic</w>", "light</w>", ",</w>", "cats</w>"]
    pieces = [Piece(i + 1, token) for i, token in enumerate(tokens)]
    assert align(suggest("1girl, traffic light, cats"), pieces) == [(1, 2), (4, 5), (7,)]
    tokens = [
        "2</w>",
        "b</w>",
        "_</w>",
        "nier</w>",
        ":</w>",
        "autom",
        "ata</w>",
        ",</w>",
        "kiwi</w>",
        "_</w>",
        "bird</w>",
    ]
    pieces = [Piece(i + 1, token) for i, token in enumerate(tokens)]
    assert align(suggest("2b_(nier:automata), kiwi_(bird:1.2)"), pieces) == [(1, 2, 3, 4, 5, 6, 7), (9, 10, 11)]


@given(st.text(max_size=200))
def test_any_string_has_an_answer(prompt: str) -> None:
    for found in locate(prompt):
        assert 0 <= found.start < found.end <= len(prompt)
        assert found.text == found.text.lower()


@given(st.lists(st.sampled_from([case.prompt for case in load()]), min_size=1, max_size=3))
def test_prompts_joined_by_and_name_what_each_names(prompts: list[str]) -> None:
    """Its nouns: what they are called may differ, as two of a name are told apart."""
    joined = [one.noun for one in locate(" AND ".join(prompts))]
    assert joined == [one.noun for prompt in prompts for one in locate(prompt)]


@pytest.mark.parametrize("name", SETS)
def test_the_labelled_prompts(name: str) -> None:
    cases = load(name)
    assert len(cases) >= 80
    assert {case.split for case in cases} == {"tuning", "held-out"}
    for split in ("tuning", "held-out"):
        result = score(case for case in cases if case.split == split)
        assert result.f1 >= LEAST_F1, f"{split}: precision {result.precision:.3f}, recall {result.recall:.3f}"


def test_importing_reads_no_lexicon() -> None:
    code = (
        "import sys; import lib_decouple.prompt.entities, lib_decouple.prompt.lexicon as l;"
        "assert l._table.cache_info().currsize == 0; assert not {'torch', 'numpy', 'gradio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
