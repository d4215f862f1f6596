"""Which headings begin stories: weighed against the contents, or by the strongest style, and by who signs.

Titles that are in the contents begin stories; headings of the same style between them do too (contents
forget some);
prefaces, notes, advertisements, poems and numbered parts do not. Without contents the strongest style of
heading
that at least three sections share decides. In a book by many hands a section that names no author is not a
story.
When the evidence disagrees a story is left out rather than cut in half.

Used by stories.py. Left out: reading what a section says; only its form is looked at.
"""

from __future__ import annotations

from collections import Counter

from scripts.anthologies.contents import Contents
from scripts.anthologies.headings import Head, strong
from scripts.anthologies.titles import DEPARTMENT, MIN_WORDS, NOTES, fold

# words: a filler has a heading of its own, no author, and is the last thing before the next story
FILLER = 500
# share of the sections that name an author, above which one that names none is not a story
MANY_HANDS = 0.6


def choose(found: list[Head], toc: Contents) -> list[Head]:
    """The heads that begin a section; those with `matter` end the story before them and begin none."""
    whole = []
    for h in found:  # a half-title and the title after it are one heading
        before = whole[-1] if whole else None
        again = before and (
            h.entry is not None and h.entry == before.entry or fold(h.title) == fold(before.title) != ""
        )
        if again and before.near < 40:
            h.start, h.author, h.credit = before.start, h.author or before.author, h.credit or before.credit
            h.entry = before.entry if h.entry is None else h.entry
            whole.pop()
        whole.append(h)
    found = whole
    plain = [h for h in found if not h.matter and not h.ordinal and h.words >= MIN_WORDS]
    known = [h for h in plain if h.entry is not None]
    if toc.settled:
        chosen = _once(known, toc) + [h for h in found if h.matter and h.entry is not None]
        return sorted(chosen, key=lambda h: h.start)
    if len({h.entry for h in known}) < 3:
        return _by_many(_choose_by_form(found), found, toc)
    return _by_many(_choose_by_contents(found, plain, known, toc), found, toc)


def _once(known: list[Head], toc: Contents) -> list[Head]:
    """A title that is twice in the contents begins two stories; in the notes it begins none."""
    uses, starts = Counter(), []
    for h in known:
        if uses[h.entry] < len(toc.titles.get(fold(h.title), [0])):
            uses[h.entry] += 1
            starts.append(h)
    return starts


def _choose_by_contents(found: list[Head], plain: list[Head], known: list[Head], toc: Contents) -> list[Head]:
    style = Counter(h.style for h in known).most_common(1)[0][0]
    same = [h for h in plain if h.style == style]
    pure = len([h for h in same if h.entry is not None]) >= 0.6 * len(same)
    numbers = len([h for h in known if h.numbered]) > 0.5 * len(known)
    starts = _once(known, toc)
    first, last = starts[0].start, starts[-1].start
    notes = min((h.start for h in found if h.matter and h.start > last), default=1 << 60)
    ends = [
        h
        for h in found
        if h.matter and (strong(h.style, style) or NOTES.fullmatch(h.title) or h.start > last)
    ]
    titles = {fold(h.title) for h in starts}
    for h in plain:  # not in the contents: forgotten there, or an advertisement
        if (
            h.entry is None
            and (h.start > first or h.author)
            and strong(h.style, style)
            and (numbers or not h.numbered)
        ):
            forgotten = h.style == style and (pure and h.start < last or h.author and h.start < notes)
            real = len(fold(h.title)) > 1 and (h.author or not h.verse)
            if forgotten and real and not (h.start > last and fold(h.title) in titles):
                starts.append(h)
            elif h.start > last:
                ends.append(h)
                h.matter, h.why = True, "follows the last title of the contents"
    return _without_poems(sorted(starts + ends, key=lambda h: h.start), style)


def _choose_by_form(found: list[Head]) -> list[Head]:
    """No usable contents: the strongest style of heading that at least three sections share."""
    plain, best = [h for h in found if not h.matter and not h.ordinal], None
    signed = [h for h in plain if h.author and h.words >= MIN_WORDS]
    if len({fold(h.author) for h in signed}) > 2:
        plain = signed
    for style in {h.style for h in plain}:
        enough = len([h for h in plain if h.style == style and h.words >= 100]) >= 3
        if enough and (best is None or strong(style, best)):
            best = style
    if best is None:
        return []
    same = [h for h in plain if h.style == best]
    parts = len([h for h in same if h.numbered]) < 0.5 * len(
        same
    )  # then a numbered title is a part of a story
    chosen = [
        h
        for h in found
        if (strong(h.style, best) or h.matter and NOTES.fullmatch(h.title))
        and not h.ordinal
        and not (parts and h.numbered)
    ]
    return _without_poems(chosen, best)


def _without_poems(chosen: list[Head], style: tuple) -> list[Head]:
    off = False
    for h in chosen:
        off = h.poems or off and not (strong(h.style, style) and h.style != style)
        if off and not h.matter:
            h.matter, h.why = True, "poems, essays or plays"
    return chosen


def _by_many(chosen: list[Head], found: list[Head], toc: Contents) -> list[Head]:
    """In a book by many hands: sections without an author end a story or belong to it, they are none
    themselves."""
    plain = [h for h in chosen if not h.matter and h.words >= MIN_WORDS]
    signed = [h for h in plain if h.author]
    hands, numbers = (
        len({fold(h.author) for h in signed}),
        sum(h.numbered for h in signed) > 0.5 * len(signed),
    )
    if hands < 3 or len(signed) < MANY_HANDS * len(plain) and hands < 0.6 * len(signed):
        return chosen
    if len(signed) < 0.3 * len(plain):
        return chosen
    kept = []
    for n, h in enumerate(chosen):
        if h.matter or h.author:
            kept.append(h)
            continue
        after = next((o for o in chosen[n + 1 :] if o.author or o.matter), None)
        alike = h.numbered and numbers
        inside = toc.titles and h.entry is None and after and any(o.author for o in chosen[:n])
        if inside and not alike and sum(o.words for o in chosen[n : chosen.index(after)]) > FILLER:
            h.why = "taken for a part of the story above"
            continue
        if not (alike and h.words > FILLER):  # a story that the printer left unsigned
            h.matter, h.why = True, "names no author, where the other sections do"
        kept.append(h)
    return sorted(kept + _fillers(kept, found), key=_start)


def _fillers(chosen: list[Head], found: list[Head]) -> list[Head]:
    """Headings within a story that end it: letters, advertisements, short pieces without an author before
    the next story."""
    plain = [h for h in found if not (h.ordinal or h.numbered or h.author or h.verse)]
    names = Counter(fold(h.title) for h in plain)
    fillers = []
    for s, after in zip(chosen, [*chosen[1:], None]):
        inner = [h for h in plain if s.start < h.start and (after is None or h.start < after.start)]
        if s.matter or not inner:
            continue
        h, single = inner[-1], len(inner) == 1 and after is not None
        short = single and h.near <= FILLER and 4 * h.near < s.words + s.near
        page = single and h.style[:2] >= s.style[:2] and h.style[0] == "t"
        again = next((o for o in inner if names[fold(o.title)] > 1 or DEPARTMENT.fullmatch(o.title)), None)
        if again or short or page:
            h = again or h
            h.matter, h.why = (
                True,
                "a filler, letters or an advertisement: no author, and before the next story",
            )
            fillers.append(h)
    return fillers


def _start(h: Head) -> int:
    return h.start
