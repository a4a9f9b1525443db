"""Writes short children's stories to train a small model on: `python training/corpus.py FOLDER --stories 200000 --seed 0`.

FOLDER gets train.txt and held_out.txt, with an empty line between two stories. The words are in story_parts.json. This file
draws them, keeps them consistent and puts them together. A plot is who wishes what, what is in the way, and who helps. No plot
of held_out.txt is in train.txt.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, TypeVar

N_HELD_OUT = 2000  # stories in held_out.txt
LONG = 122  # a story that is longer than this many words when the wish comes true gets no moral
HELD_OUT_SHARE = 50  # one plot in 50 is held out
MARK = re.compile(r"[\[\]|]|\{[^}]*\}|[^\[\]|{]+")
PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "him", "his", "himself")}

T = TypeVar("T")
Slots = dict[str, str]
Node = str | list[list["Node"]]  # text or {slot}; or a choice between sequences of nodes

# ---------------------------------------------------------------------------
# the words
#
# How to read a template in story_parts.json: [a|b] is one of its choices (it may be empty), {slot} is a word of the story,
# {Slot} the same with a capital, {a slot} the same with its article, <...> is speech and gets quotes. The hero has the slots
# {n} (name), {k} (kind), {he} {him} {his} {himself}; the helper {m} (name), {mk} {mhe} {mhim} {mhis}; a third character
# {f} (name), {fk} {fhe} {fhim}. A wish has slots of its own. A list of single words is one string with spaces.


@dataclass(frozen=True)
class Hero:
    """A kind of hero: where it lives (a key of `homes`), and how often it is drawn."""

    home: str
    weight: int


@dataclass(frozen=True)
class Opening:
    """The sentences that introduce the hero. `one_day`: they already begin the day on which the story happens."""

    text: str
    one_day: bool
    weight: int


@dataclass(frozen=True)
class Nature:
    """A side of the hero's character: a habit, a reaction to trouble, a way to speak, and the change at the end."""

    habit: str
    trouble: str
    says: str
    after: str
    thankful: bool = False  # `after` fits only a hero who was helped


@dataclass(frozen=True)
class Helper:
    """The kinds that can help (if empty: the wish's {teachers}), and how. `to`: they help only these heroes (if empty: all)."""

    kinds: str
    text: str
    to: str = ""


@dataclass(frozen=True)
class Obstacle:
    """What is in the way. If there is a `plea`, the helper comes by and asks; otherwise the helper's text says how they met."""

    name: str
    text: str
    helpers: tuple[Helper, ...]
    plea: str = ""
    not_for: str = ""  # heroes who have no difficulty with it
    not_natures: str = ""
    not_wishes: str = ""
    avoid: str = ""  # words that the hero's home and favourite thing must not contain
    lesson: str = "help"  # a key of `lessons`
    quiet: bool = False  # the text already says how the hero reacts


@dataclass(frozen=True)
class Wish:
    """What the hero wants, and how it ends. `slots` are drawn once for each story, in their order; `avoid` as in Obstacle."""

    name: str
    start: str
    end: str
    slots: dict[str, str] = field(default_factory=dict)
    not_for: str = ""
    avoid: str = ""


@dataclass(frozen=True)
class Family:
    """Wishes, and the obstacles that any of them may meet."""

    name: str
    weight: int
    wishes: tuple[Wish, ...]
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True)
class Parts:
    """Everything in story_parts.json."""

    she_names: list[str]
    he_names: list[str]
    homes: dict[str, str]
    heroes: dict[str, Hero]
    children: list[str]
    grown: list[str]  # helpers that may be called old
    flyers: list[str]
    loves: list[str]
    leads: str
    day_leads: str
    openings: list[Opening]
    natures: dict[str, Nature]
    helper_natures: list[str]  # "old" is added for those in `grown`
    lessons: dict[str, str]
    meeting: str
    offer: str
    thanks: str
    swap: str  # what the hero may offer to the one who keeps the toy
    families: list[Family]


def read_parts(path: Path) -> Parts:
    content: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    for name in ("she_names", "he_names", "children", "grown", "flyers", "helper_natures"):
        content[name] = content[name].split()
    content["heroes"] = {kind: Hero(**hero) for kind, hero in content["heroes"].items()}
    content["openings"] = [Opening(**opening) for opening in content["openings"]]
    content["natures"] = {name: Nature(**nature) for name, nature in content["natures"].items()}
    for family in content["families"]:
        family["wishes"] = tuple(Wish(**wish) for wish in family["wishes"])
        for obstacle in family["obstacles"]:
            obstacle["helpers"] = tuple(Helper(**helper) for helper in obstacle["helpers"])
        family["obstacles"] = tuple(Obstacle(**obstacle) for obstacle in family["obstacles"])
    content["families"] = [Family(**family) for family in content["families"]]
    return Parts(**content)


parts = read_parts(Path(__file__).with_name("story_parts.json"))

# ---------------------------------------------------------------------------
# templates


def pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


@cache
def parse(template: str) -> list[Node]:
    """ "a [b|c]" -> ["a ", [["b"], ["c"]]]"""
    stack: list[list[list[Node]]] = [[[]]]
    for token in MARK.findall(template):
        if token == "[":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == "]":
            choice = stack.pop()
            stack[-1][-1].append(choice)
        else:
            stack[-1][-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError(f"brackets do not match in the template {template!r}")
    return stack[0][0]


def fill(slot: str, slots: Slots) -> str:
    """The word for a slot: "{he}", "{He}" and "{mHe}" (with a capital), "{a adj}" and "{A adj}" (with an article)."""
    name = slot[1:-1]
    if name[:2] in ("a ", "A "):
        word = slots[name[2:]]
        return name[0] + ("n " if word[0] in "aeiou" else " ") + word
    if name in slots:
        return slots[name]
    word = slots[name.lower()]
    return word[0].upper() + word[1:]


def expand(rng: Random, template: str, slots: Slots) -> str:
    """The template with its choices made, its slots filled, and speech in quotes."""

    def walk(nodes: list[Node]) -> str:
        text = ""
        for node in nodes:
            if isinstance(node, list):
                text += walk(pick(rng, node))
            else:
                text += fill(node, slots) if node[0] == "{" else node
        return text

    return walk(parse(template)).replace("<", '"').replace(">", '"')


def count(template: str) -> int:
    """The number of ways to make the choices of a template."""

    def walk(nodes: list[Node]) -> int:
        ways = 1
        for node in nodes:
            if isinstance(node, list):
                ways *= sum(map(walk, node))
        return ways

    return walk(parse(template))


# ---------------------------------------------------------------------------
# plots


@dataclass(frozen=True)
class Plot:
    """Who wishes what, what is in the way, and who helps how."""

    family: Family
    hero: str
    wish: Wish
    obstacle: Obstacle
    helper: Helper
    helper_kind: str

    @property
    def held_out(self) -> bool:
        key = "|".join((self.family.name, self.hero, self.wish.name, self.obstacle.name, self.helper_kind))
        return int.from_bytes(sha256(key.encode()).digest()[:4], "big") % HELD_OUT_SHARE == 0

    def possible(self) -> bool:
        return (
            self.hero not in f"{self.wish.not_for} {self.obstacle.not_for} {self.helper_kind}".split()
            and self.wish.name not in self.obstacle.not_wishes.split()
            and (not self.helper.to or self.hero in self.helper.to.split())
        )


def helper_kinds(wish: Wish, helper: Helper) -> list[str]:
    return (helper.kinds or wish.slots["teachers"]).split()


def plots() -> Iterator[Plot]:
    """Every possible plot, in a fixed order."""
    for family in parts.families:
        for wish in family.wishes:
            for obstacle in family.obstacles:
                for helper in obstacle.helpers:
                    for kind in helper_kinds(wish, helper):
                        for hero in parts.heroes:
                            plot = Plot(family, hero, wish, obstacle, helper, kind)
                            if plot.possible():
                                yield plot


FAMILY_LOT = tuple(family for family in parts.families for _ in range(family.weight))
HERO_LOT = tuple(kind for kind, hero in parts.heroes.items() for _ in range(hero.weight))
OPENING_LOT = tuple(opening for opening in parts.openings for _ in range(opening.weight))


def draw_plot(rng: Random, held_out: bool) -> Plot:
    while True:
        family = pick(rng, FAMILY_LOT)
        wish, obstacle = pick(rng, family.wishes), pick(rng, family.obstacles)
        helper = pick(rng, obstacle.helpers)
        plot = Plot(family, pick(rng, HERO_LOT), wish, obstacle, helper, pick(rng, helper_kinds(wish, helper)))
        if plot.possible() and plot.held_out == held_out:
            return plot


# ---------------------------------------------------------------------------
# stories


def gender_of(rng: Random, kind: str) -> str:
    return {"girl": "she", "boy": "he"}.get(kind) or pick(rng, ("she", "he"))


def pick_name(rng: Random, gender: str, taken: Iterable[str]) -> str:
    names = parts.she_names if gender == "she" else parts.he_names
    return pick(rng, [name for name in names if name not in taken])


def cast(rng: Random, plot: Plot) -> Slots:
    """Slots for the three characters. Hero and helper mostly differ in gender, so that "he" and "she" are clear."""
    slots: Slots = {}
    hero = gender_of(rng, plot.hero)
    other = "he" if hero == "she" else "she"
    free = plot.helper_kind not in parts.children
    helper = other if free and rng.random() < 0.6 else gender_of(rng, plot.helper_kind)
    genders = {"": hero, "m": helper, "f": pick(rng, ("she", "he"))}
    kinds = {"": plot.hero, "m": plot.helper_kind}
    friends = [k for k in parts.heroes if k not in (*kinds.values(), "girl", "boy")]
    kinds["f"] = pick(rng, friends)
    for who, gender in genders.items():
        slots[who or "n"] = pick_name(rng, gender, list(slots.values()))
        slots[who + "k"] = kinds[who]
        for role, word in zip(("he", "him", "his", "himself"), PRONOUNS[gender], strict=True):
            slots[who + role] = word
            slots[who + role.capitalize()] = word.capitalize()
    return slots


def setting(rng: Random, plot: Plot, slots: Slots) -> str:
    """Fills in the natures of the characters, the hero's home and the wish's own slots. Returns the hero's nature."""
    nature = pick(rng, [name for name in parts.natures if name not in plot.obstacle.not_natures.split()])
    slots["adj"] = nature
    slots["says"] = expand(rng, parts.natures[nature].says, slots)
    grown = plot.helper_kind in parts.grown
    slots["madj"] = pick(rng, [adj for adj in (*parts.helper_natures, *["old"] * 4 * grown) if adj != nature])
    slots["came"] = pick(rng, ("flew by", "came flying by") if plot.helper_kind in parts.flyers else ("came by", "came along"))
    slots["swap"] = expand(rng, parts.swap, slots)
    avoid = f"{plot.wish.avoid} {plot.obstacle.avoid}".split()
    homes = parts.homes[parts.heroes[plot.hero].home].strip("[]").split("|")
    slots["home"] = pick(rng, [home for home in homes if not any(word in home for word in avoid)])
    slots["love"] = pick(rng, [love for love in parts.loves if not any(word in love for word in avoid)])
    for name, template in plot.wish.slots.items():
        slots[name] = expand(rng, template, slots)
    return nature


def beginning(rng: Random, nature: str, slots: Slots) -> tuple[str, bool]:
    """The introduction of the hero, and whether the day of the story has begun in it."""
    opening = pick(rng, OPENING_LOT)
    text = expand(rng, opening.text, slots)
    more = pick(rng, ("", "habit", "love", "love", "both"))
    if more in ("habit", "both"):
        text += " " + expand(rng, parts.natures[nature].habit, slots)
    if more in ("love", "both"):
        text += " " + expand(rng, "{He} [loved|liked] to {love}." if more == "love" else "{He} also loved to {love}.", slots)
    return text, opening.one_day


def wish_sentence(rng: Random, plot: Plot, one_day: bool, slots: Slots) -> str:
    who = pick(rng, ("n", "n", "n", "he", "k"))
    slots["who"] = f"the little {slots['k']}" if who == "k" else slots[who]
    start = plot.wish.start.replace("{n}", "{who}", 1)
    if one_day and rng.random() < 0.5:
        return expand(rng, start.replace("{who}", "{Who}", 1), slots)
    return expand(rng, (parts.day_leads if one_day else parts.leads) + ", " + start, slots)


def trouble(rng: Random, plot: Plot, nature: str, slots: Slots) -> str:
    text = expand(rng, plot.obstacle.text, slots)
    if plot.obstacle.plea and not plot.obstacle.quiet and plot.family.name != "help" and rng.random() < 0.5:
        text += " " + expand(rng, parts.natures[nature].trouble, slots)
    return text


def turn(rng: Random, plot: Plot, slots: Slots) -> str:
    """The helper comes, asks and helps. For an obstacle without a plea, the helper's text contains the meeting."""
    if not plot.obstacle.plea:
        return expand(rng, plot.helper.text, slots)
    text = expand(rng, parts.meeting, slots) + " " + expand(rng, f"<{plot.obstacle.plea},> {{says}}.", slots)
    if not plot.helper.text.startswith("<") and rng.random() < 0.6:
        text += " " + expand(rng, parts.offer, slots)
    text += " " + expand(rng, plot.helper.text, slots)
    return text + expand(rng, parts.thanks, slots)


def ending(rng: Random, plot: Plot, nature: str, slots: Slots, n_words: int) -> str:
    """The wish comes true. A short story also says what the hero feels, has learned or has become."""
    text = expand(rng, plot.wish.end, slots)
    if n_words > LONG:
        return text
    change = parts.natures[nature]
    was_helped = bool(plot.obstacle.plea) and plot.family.name != "help"
    changes = (was_helped or not change.thankful) and rng.random() < 0.45
    last = change.after if changes else parts.lessons[plot.obstacle.lesson]
    return (text + " " + expand(rng, last, slots)).rstrip()


def tell(rng: Random, plot: Plot) -> str:
    """A story of this plot."""
    slots = cast(rng, plot)
    nature = setting(rng, plot, slots)
    first, one_day = beginning(rng, nature, slots)
    wish = wish_sentence(rng, plot, one_day, slots)
    pieces = [first, wish, trouble(rng, plot, nature, slots), turn(rng, plot, slots)]
    pieces.append(ending(rng, plot, nature, slots, n_words=len(" ".join(pieces).split())))
    gaps = pick(rng, ("\n \n\n", "\n \n\n", "  \n\n", "\n \n ", "\n\n\n\n"))
    return pieces[0] + "".join(gap + piece for gap, piece in zip(gaps, pieces[1:], strict=True))


def write_story(rng: Random, held_out: bool = False) -> str:
    """One story. Its plot is from the training set or, with `held_out`, from the held-out set."""
    return tell(rng, draw_plot(rng, held_out))


def stories(seed: int, n: int, held_out: bool = False) -> Iterator[str]:
    """`n` stories. Story i of a seed is the same for every `n`."""
    for i in range(n):
        yield write_story(Random(f"{seed}:{i}"), held_out)


def count_stories() -> int:
    """A lower bound: for each plot, the names times the ways to tell its four parts. Openings and natures are not counted."""
    total = 0
    for plot in plots():
        n_ways = 1
        used = plot.wish.start + plot.obstacle.text + plot.helper.text + plot.wish.end
        for template in (plot.wish.start, plot.obstacle.text, plot.helper.text, plot.wish.end):
            n_ways *= count(template)
        for name, template in plot.wish.slots.items():
            if "{" + name + "}" in used:
                n_ways *= count(template)
        total += n_ways
    return total * min(len(parts.she_names), len(parts.he_names)) * (min(len(parts.she_names), len(parts.he_names)) - 1)


def progress(texts: Iterator[str], total: int, name: str) -> Iterable[str]:
    """Shows a progress bar if stderr is a terminal and tqdm is installed."""
    if not sys.stderr.isatty():
        return texts
    try:
        from tqdm import tqdm
    except ImportError:
        return texts
    bar: Iterable[str] = tqdm(texts, total=total, desc=name, unit=" stories")
    return bar


def write_corpus(folder: Path, n_stories: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, held_out in (("train.txt", n_stories, False), ("held_out.txt", N_HELD_OUT, True)):
        with (folder / name).open("w", encoding="ascii", newline="\n") as file:
            for i, story in enumerate(progress(stories(seed, n, held_out), n, name)):
                file.write(("\n" if i else "") + story + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder for train.txt and held_out.txt; created if it does not exist")
    parser.add_argument("--stories", type=int, default=200_000, help="the number of stories in train.txt (default 200000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        write_corpus(options.folder, options.stories, options.seed)
    except OSError as error:
        print(f"corpus: error: cannot write to the folder {options.folder}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
