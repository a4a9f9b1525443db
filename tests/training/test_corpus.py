"""training/corpus.py: its stories are reproducible, well-formed and different, and the held-out plots are never trained on."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

TRAINING = Path(__file__).parents[2] / "training"
N_SAMPLES = 20_000


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("corpus", TRAINING / "corpus.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sample(corpus: ModuleType) -> list[str]:
    return list(corpus.stories(0, N_SAMPLES))


@pytest.fixture(scope="module")
def all_plots(corpus: ModuleType) -> list[str]:
    """A story of every possible plot, including the rare ones."""
    return [corpus.tell(Random(f"plot {i}"), plot) for i, plot in enumerate(corpus.plots())]


def test_reproducible(corpus: ModuleType) -> None:
    first = list(corpus.stories(3, 50))
    assert list(corpus.stories(3, 20)) == first[:20]
    assert corpus.write_story(Random("3:7")) == first[7]
    assert not set(first) & set(corpus.stories(4, 50))
    assert not set(first) & set(corpus.stories(3, 50, held_out=True))


def test_corpus_is_the_one_of_the_bundled_model(corpus: ModuleType, sample: list[str], all_plots: list[str]) -> None:
    """Hashes of the stories that the model was trained on: an edit of the words or of a draw changes them."""
    assert (
        sha256("".join(sample[:3000]).encode()).hexdigest()
        == "2244470e0661f69d5d752a2f40d23c3ee07dddd6c67b4ad7b34d4a3d18f3bcb7"
    )
    assert sha256("".join(all_plots).encode()).hexdigest() == "a4dd509dc77b58653465b3c0b0c4d20fa5f6bf9a4dbc07106b618a787c6ff9bf"
    assert len(all_plots) == 19928
    assert corpus.count_stories() == 1_471_044_720


def test_templates(corpus: ModuleType) -> None:
    slots = {"n": "Tom", "he": "he", "mhe": "she", "color": "orange", "toy": "red ball"}
    assert corpus.expand(Random(0), "<Oh!> said {n}. {He} had {a color} hat and {a toy}.", slots) == (
        '"Oh!" said Tom. He had an orange hat and a red ball.'
    )
    assert {corpus.expand(Random(i), "a[ b[c|d]|]", {}) for i in range(50)} == {"a bc", "a bd", "a"}
    assert corpus.count("[a|b] x [c|d[e|f|g]|]") == 2 * (1 + 3 + 1)
    with pytest.raises(ValueError, match="brackets do not match"):
        corpus.parse("[a|b")


def check_form(story: str) -> None:
    assert story.isascii()
    assert not re.search(r"[{}\[\]<>|_]|  | \n|\n |\n\n|\s[.,!?]|[,.]{2}|[!?][.,!?]", story), story
    assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|\ba an?\b|\b(\w+) \1\b", story), story
    assert 2 <= len(story.split("\n")) <= 5
    for paragraph in story.split("\n"):
        assert paragraph.count('"') % 2 == 0, story
        assert re.fullmatch(r'["A-Z].*[.!?]"?', paragraph), story
        # Speech opens after a space and closes before one; what follows the end of a sentence begins with a capital.
        for i, part in enumerate(paragraph.split('"')):
            if i % 2:
                assert re.fullmatch(r"\S.*[.,!?]", part), story
                sentences = re.split(r"[.!?] ", part)[1:]
            else:
                assert not part or part == paragraph or re.match(r" |[A-Z]", part), story
                sentences = re.split(r"[.!?] ", part)[1:]
            assert all(sentence == "" or sentence[0].isupper() for sentence in sentences), story


def test_form(sample: list[str], all_plots: list[str]) -> None:
    for story in sample + all_plots:
        check_form(story)


@pytest.mark.parametrize("flaw", ["Tom had a apple.\nHe ate.", 'Tom "ran.\nHe ate.', "Tom ran.\nhe ate.", "Tom {x}.\nHe ate."])
def test_form_sees_flaws(flaw: str) -> None:
    check_form("Tom had an apple.\nHe ate it.")
    with pytest.raises(AssertionError):
        check_form(flaw)


def test_length(sample: list[str], all_plots: list[str]) -> None:
    lengths = [len(story.split()) for story in sample]
    assert 130 <= sum(lengths) / len(lengths) <= 165
    assert all(80 <= len(story.split()) <= 220 for story in all_plots)


def test_pronouns_agree(corpus: ModuleType, sample: list[str], all_plots: list[str]) -> None:
    """A story says "he" or "she" only if it has such a character. Stories with only one of the two exist for both."""
    words = {"she": {"she", "her", "herself"}, "he": {"he", "him", "his", "himself"}}
    people = {
        "she": {*corpus.parts.she_names, "mother", "mama", "grandma", "Grandma"},
        "he": {*corpus.parts.he_names, "grandpa", "baker"},
    }
    seen: Counter[str] = Counter()
    for story in sample + all_plots:
        tokens = set(re.findall(r"\w+", story))
        for gender in words:
            if not tokens & people[gender]:
                assert not {token.lower() for token in tokens} & words[gender], story
                seen[gender] += 1
    assert min(seen.values()) > 500


def test_cast(corpus: ModuleType) -> None:
    """Three different names and three different kinds. Girls are she, boys are he."""
    for i, plot in enumerate(corpus.plots()):
        slots = corpus.cast(Random(i), plot)
        assert len({slots["n"], slots["m"], slots["f"]}) == 3
        assert len({slots["k"], slots["mk"], slots["fk"]}) == 3
        for prefix, name in (("", "n"), ("m", "m"), ("f", "f")):
            assert (slots[name] in corpus.parts.she_names) == (slots[prefix + "he"] == "she")
            assert {"girl": "she", "boy": "he"}.get(slots[prefix + "k"], slots[prefix + "he"]) == slots[prefix + "he"]


def test_plots_make_sense(corpus: ModuleType) -> None:
    """A few plots must not exist; every wish, obstacle, helper and hero must be in some plot."""
    plots = list(corpus.plots())
    seen = {(plot.hero, plot.wish.name) for plot in plots} | {(plot.hero, plot.obstacle.name) for plot in plots}
    assert not seen & {("duck", "river"), ("bird", "branch"), ("frog", "swim"), ("cat", "climb"), ("pig", "mud")}
    for family in corpus.parts.families:
        here = [plot for plot in plots if plot.family is family]
        assert {plot.wish.name for plot in here} == {wish.name for wish in family.wishes}
        assert {plot.obstacle.name for plot in here} == {obstacle.name for obstacle in family.obstacles}
        assert {plot.helper for plot in here} == {helper for obstacle in family.obstacles for helper in obstacle.helpers}
    assert {plot.hero for plot in plots} == set(corpus.parts.heroes)


def test_held_out_plots(corpus: ModuleType) -> None:
    """About one plot in fifty is held out. A plot is drawn on its own side only, and its story names hero and helper."""
    plots = list(corpus.plots())
    assert len(plots) / 70 < sum(plot.held_out for plot in plots) < len(plots) / 35
    for held_out in (False, True):
        for i in range(1000):
            plot = corpus.draw_plot(Random(i), held_out)
            assert plot.held_out == held_out
            story = corpus.tell(Random(i), plot)
            assert re.search(rf"\b{plot.hero}\b", story) and re.search(rf"\b{plot.helper_kind}\b", story)
            assert story == corpus.tell(Random(i), plot)


def test_held_out_stories(corpus: ModuleType, sample: list[str]) -> None:
    assert not set(sample) & set(corpus.stories(0, 1000, held_out=True))


def test_stories_differ(corpus: ModuleType, sample: list[str]) -> None:
    assert len(set(sample)) > N_SAMPLES - 5
    assert corpus.count_stories() > 100_000_000


def test_openings(sample: list[str], corpus: ModuleType) -> None:
    openings: Counter[str] = Counter()
    names = "|".join(corpus.parts.she_names + corpus.parts.he_names)
    named = (f"One day, ({names})", f"({names}) was")
    wanted = ("Once upon a time", "The little dog", "There was once", "It was a sunny day", *named)
    for story in sample:
        openings.update(start for start in wanted if re.match(rf"{start}\b", story))
    assert all(openings[start] > N_SAMPLES / 200 for start in wanted), openings
    assert openings["Once upon a time"] > N_SAMPLES / 6


def test_vocabulary(sample: list[str], all_plots: list[str]) -> None:
    words = {word for story in sample + all_plots for word in re.findall(r"[a-z']+", story.lower())}
    assert 800 < len(words) < 1500


def test_files(corpus: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "N_HELD_OUT", 30)
    folder = tmp_path / "new" / "folder"
    assert corpus.main([str(folder), "--stories", "100", "--seed", "5"]) == 0
    for name, n, held_out in (("train.txt", 100, False), ("held_out.txt", 30, True)):
        text = (folder / name).read_bytes().decode("ascii")
        assert text.endswith("\n")
        assert text[:-1].split("\n\n") == list(corpus.stories(5, n, held_out))


def test_unwritable(corpus: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text("not a folder")
    assert corpus.main([str(path), "--stories", "1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"corpus: error: cannot write to the folder {path}: ") and error.count("\n") == 1
