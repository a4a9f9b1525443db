"""Stop strings: where a text ends does not depend on how it was cut into pieces."""

from __future__ import annotations

import random

from llama2c.text.stops import StopStrings


def test_stop_strings_do_not_depend_on_the_cut() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        text = "".join(rng.choices("ab🐢", k=rng.randrange(12)))
        strings = ["".join(rng.choices("ab🐢", k=rng.randrange(1, 5))) for _ in range(rng.randrange(4))]
        # by definition: the shortest start of the text that ends in a stop string, without it
        ends = [n for n in range(len(text) + 1) if text[:n].endswith(tuple(strings))]
        expected = text
        if ends:
            complete = max((s for s in strings if text[: ends[0]].endswith(s)), key=len)
            expected = text[: ends[0] - len(complete)]
        stop, result, rest = StopStrings(strings), "", text
        while rest and not stop.found:
            n = rng.randrange(1, 13)
            result += stop.feed(rest[:n])
            assert expected.startswith(result)
            rest = rest[n:]
        if not stop.found:
            result += stop.flush()
        assert (result, stop.found) == (expected, bool(ends)), (text, strings)
