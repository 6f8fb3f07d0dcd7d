"""Labels of other people's prompts: that they fit the prompts where these lie, and what counts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .blind import OWN, PUBLIC, agreement, blind, named
from .public import SETS, Label, labels, prompts, score
from .score import load


def label(prompt: str, entities: tuple[str, ...], optional: tuple[str, ...] = ()) -> Label:
    return Label(hashlib.sha256(prompt.encode()).hexdigest(), "parti", entities, optional, "tuning")


def test_each_label_is_of_a_prompt_of_its_own_and_split_by_its_hash() -> None:
    assert all(len(labels(name)) >= 150 for name in SETS)
    found = [one for name in SETS for one in labels(name)]
    assert len({one.sha256 for one in found}) == len(found)
    assert all((int(one.sha256[-1], 16) % 2 == 1) == (one.split == "tuning") for one in found)
    assert not any(set(one.entities) & set(one.optional) for one in found)


def test_prompts_are_found_in_the_forms_in_which_the_sources_have_them(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a cat\tAnimals\tBasic\n", "utf-8")
    (tmp_path / "b.json").write_text(json.dumps([{"id": "coco_1", "caption": "a dog"}]), "utf-8")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "c.md").write_text("<td><b>Prompt:</b> a hen &amp;\na pig </td>", "utf-8")
    (tmp_path / "t.txt").write_text("a fox\nan owl\n", "utf-8")
    found = [one.strip() for one in prompts(tmp_path)]
    assert found == ["a cat", "a dog", "a hen &\na pig", "a fox\nan owl", "a fox", "an owl"]


def test_what_is_optional_counts_neither_for_nor_against() -> None:
    prompt = "a cat on a sofa, a lamp"
    chosen = [label(prompt, ("cat", "hen"), ("sofa", "shoe"))]
    result = score({chosen[0].sha256: prompt}, chosen)
    assert (result.right, result.suggested, result.labelled) == (1, 2, 2)


def test_blind_labels_are_of_held_out_prompts_two_to_each() -> None:
    held_out = {one.sha256 for one in labels(PUBLIC) if one.split == "held-out"}
    held_out |= {
        hashlib.sha256(case.prompt.encode()).hexdigest()
        for name in OWN
        for case in load(name)
        if case.split == "held-out"
    }
    assert held_out == set(blind())
    assert all(set(both) == {"a", "b"} for both in blind().values())


def test_agreement_leaves_out_what_either_leaves_open() -> None:
    result = agreement([(named(["Cat", "bow_(weapon)"], ["sofa"]), named(["cat", r"bow \(weapon\)", "sofa", "hen"]))])
    assert (result.right, result.suggested, result.labelled) == (2, 2, 3)
