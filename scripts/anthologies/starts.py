"""Which headings begin stories: weighed against the contents, or by the strongest style, and by who signs.

Titles that are in the contents begin stories; headings of the same style between them do too (contents forget
some); prefaces, notes, advertisements, poems and numbered parts do not. Without contents the strongest style
of heading that at least three sections share decides. In a book by many hands a section that names no author
is not a story. When the evidence disagrees a story is left out rather than cut in half.

Used by stories.py. Left out: reading what a section says; only its form is looked at.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter

from scripts.anthologies.contents import Contents
from scripts.anthologies.headings import Head, strong
from scripts.anthologies.titles import DEPARTMENT, MIN_WORDS, NOTES, fold

FILLER = (
    500  # words: a filler has a heading of its own, no author, and is the last thing before the next story
)
MANY_HANDS = 0.6  # share of the sections that name an author, above which one that names none is not a story


def choose(found: list[Head], toc: Contents) -> list[Head]:
    """The heads that begin a section; those with `matter` end the story before them and begin none."""
    found = _without_half_titles(found)
    plain = [h for h in found if not h.matter and not h.ordinal and h.words >= MIN_WORDS]
    known = _once([h for h in plain if h.entry is not None], toc)
    if toc.settled:
        return _in_order(known + [h for h in found if h.matter and h.entry is not None])
    by_contents = len({h.entry for h in known}) > 2
    chosen = _by_contents(found, plain, known) if by_contents else _by_form(found)
    return _by_many(chosen, found, toc)


def _in_order(found: list[Head]) -> list[Head]:
    return sorted(found, key=lambda h: h.start)


def _without_half_titles(found: list[Head]) -> list[Head]:
    """A half-title and the title after it are one heading."""
    whole = []
    for h in found:
        before = whole[-1] if whole and whole[-1].near < 40 else None
        if before and (
            h.entry is not None and h.entry == before.entry or fold(h.title) == fold(before.title) != ""
        ):
            h.start, h.author, h.credit = before.start, h.author or before.author, h.credit or before.credit
            h.entry = before.entry if h.entry is None else h.entry
            whole.pop()
        whole.append(h)
    return whole


def _once(known: list[Head], toc: Contents) -> list[Head]:
    """A title that is twice in the contents begins two stories; in the notes it begins none."""
    uses, starts = Counter(), []
    for h in known:
        if uses[h.entry] < len(toc.titles.get(fold(h.title), [0])):
            uses[h.entry] += 1
            starts.append(h)
    return starts


def _by_contents(found: list[Head], plain: list[Head], known: list[Head]) -> list[Head]:
    style = Counter(h.style for h in known).most_common(1)[0][0]
    same = [h.entry is not None for h in plain if h.style == style]
    pure = sum(same) >= 0.6 * len(same)
    numbers = sum(h.numbered for h in known) > 0.5 * len(known)
    first, last, titles = known[0].start, known[-1].start, {fold(h.title) for h in known}
    notes = min((h.start for h in found if h.matter and h.start > last), default=1 << 60)
    chosen = list(known)
    for h in found:
        if h.matter and (strong(h.style, style) or NOTES.fullmatch(h.title) or h.start > last):
            chosen.append(h)
    for h in plain:  # not in the contents: forgotten there, or an advertisement
        possible = h.entry is None and (h.start > first or h.author) and (numbers or not h.numbered)
        if not possible or not strong(h.style, style):
            continue
        forgotten = h.style == style and (pure and h.start < last or h.author and h.start < notes)
        real = len(fold(h.title)) > 1 and (h.author or not h.verse)
        if forgotten and real and not (h.start > last and fold(h.title) in titles):
            chosen.append(h)
        elif h.start > last:
            h.leave_out("follows the last title of the contents")
            chosen.append(h)
    return _without_poems(_in_order(chosen), style)


def _by_form(found: list[Head]) -> list[Head]:
    """No usable contents: the strongest style of heading that at least three sections share."""
    plain = [h for h in found if not h.matter and not h.ordinal]
    signed = [h for h in plain if h.author and h.words >= MIN_WORDS]
    if len({fold(h.author) for h in signed}) > 2:
        plain = signed
    count, best = Counter(h.style for h in plain if h.words >= 100), None
    for style, n in count.items():
        if n > 2 and (best is None or strong(style, best)):
            best = style
    if best is None:
        return []
    same = [h.numbered for h in plain if h.style == best]
    parts = sum(same) < 0.5 * len(same)  # then a numbered title is a part of a story
    kept = [h for h in found if not h.ordinal and not (parts and h.numbered)]
    return _without_poems(
        [h for h in kept if strong(h.style, best) or h.matter and NOTES.fullmatch(h.title)], best
    )


def _without_poems(chosen: list[Head], style: tuple) -> list[Head]:
    off = False
    for h in chosen:
        off = h.poems or off and not (strong(h.style, style) and h.style != style)
        if off and not h.matter:
            h.leave_out("poems, essays or plays")
    return chosen


def _by_many(chosen: list[Head], found: list[Head], toc: Contents) -> list[Head]:
    """In a book by many hands a section without an author ends a story or belongs to it."""
    plain = [h for h in chosen if not h.matter and h.words >= MIN_WORDS]
    signed = [h for h in plain if h.author]
    hands = len({fold(h.author) for h in signed})
    if hands < 3 or len(signed) < MANY_HANDS * len(plain) and hands < 0.6 * len(signed):
        return chosen
    numbers, kept = sum(h.numbered for h in signed) > 0.5 * len(signed), []
    for n, h in enumerate(chosen):
        if not h.matter and not h.author:
            after = next((k for k in range(n, len(chosen)) if chosen[k].author or chosen[k].matter), None)
            alike = h.numbered and numbers
            inside = toc.titles and h.entry is None and after and any(o.author for o in kept) and not alike
            if inside and sum(o.words for o in chosen[n:after]) > FILLER:
                h.why = "taken for a part of the story above"
                continue
            if not alike or h.words <= FILLER:  # else a story that the printer left unsigned
                h.leave_out("names no author, where the other sections do")
        kept.append(h)
    return _in_order(kept + _fillers(kept, found))


def _fillers(chosen: list[Head], found: list[Head]) -> list[Head]:
    """Headings within a story that end it: letters, advertisements, short pieces without an author."""
    plain = [h for h in found if not (h.ordinal or h.numbered or h.author or h.verse)]
    names, fillers = Counter(fold(h.title) for h in plain), []
    places = [h.start for h in plain]
    for s, after in zip(chosen, [*chosen[1:], None]):
        inner = plain[bisect_right(places, s.start) : bisect_left(places, after.start) if after else None]
        if s.matter or not inner:
            continue
        h, single = inner[-1], len(inner) == 1
        short = single and after is not None and h.near <= FILLER and 4 * h.near < s.words + s.near
        page = single and after is not None and h.style[:2] >= s.style[:2] and h.style[0] == "t"
        again = next((o for o in inner if names[fold(o.title)] > 1 or DEPARTMENT.fullmatch(o.title)), None)
        if again or short or page:
            h = again or h
            h.leave_out("a filler, letters or an advertisement: no author, and before the next story")
            fillers.append(h)
    return fillers
