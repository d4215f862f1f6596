"""Which words follow which: short runs of words that some texts have, as a table of bits."""

from __future__ import annotations

import re
import zlib


def place(gram: tuple, size: int) -> int:
    """The bit of a run in a table of `size` bytes."""
    return zlib.crc32(" ".join(gram).encode()) % (8 * size)


class Grams:
    """A set of short runs of tokens, kept as one bit each: crc32 says which. A run that is not in the set is
    taken for one that is as often as bits are set (`full`)."""

    def __init__(self, bits: bytes):
        self.bits, self.full = bits, int.from_bytes(bits, "little").bit_count() / (8 * len(bits))

    @staticmethod
    def of(grams, size: int) -> Grams:
        """size: bytes of the table."""
        bits = bytearray(size)
        for gram in grams:
            at = place(gram, size)
            bits[at >> 3] |= 1 << (at & 7)
        return Grams(bytes(bits))

    def __contains__(self, gram: tuple) -> bool:
        at = place(gram, len(self.bits))
        return bool(self.bits[at >> 3] >> (at & 7) & 1)


EARLY, LATE = "<", ">"  # first token of a run: the rest tends to come early, or late, in a story
MARKS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|[.!?,;:]")


def tokens(text: str) -> list[str]:
    """Lower-case words, "," and "." for every mark that ends a clause or a sentence; names become "#"."""
    found = ["."]
    for mark in MARKS.findall(text):
        if mark in ".!?;:":
            found += ["."] * (found[-1] != ".")
        else:
            name = mark[0].isupper() and found[-1] != "." and not re.match(r"I\b", mark)
            found.append("#" if name else mark.lower().replace("’", "'"))
    return found


def runs(found: list[str]) -> tuple[list[tuple], list[tuple]]:
    """(pairs, triples) of neighbouring tokens."""
    return list(zip(found, found[1:])), list(zip(found, found[1:], found[2:]))
