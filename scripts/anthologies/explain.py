"""How one book was understood: contents, headings, stories, and why each other section was left out.

For a user whose own book comes out wrong: `split BOOK --explain` prints this page, and `--contents FILE`
settles what form cannot. Left out: advice; the page says what was seen.
"""

from __future__ import annotations

from scripts.anthologies.stories import Reading, Story
from scripts.anthologies.titles import one_line

ADVICE = """
Is a title missing or too many? List the titles in a file, one per line, then a tab and the author;
put - before what is not a story, and run the same command with --contents FILE."""


def explain(reading: Reading, name: str) -> str:
    stories, toc, found = reading.stories, reading.toc, reading.found
    listed = [(n, text) for n, text in enumerate(toc.lines) if text.strip()]
    left = [s for s in reading.sections if s.why]
    out = [f"{name}: {len(stories)} stories, told apart by {reading.how}"]
    out += [f"author of the whole book: {reading.author or 'not said'}", ""]
    out += [
        f"CONTENTS ({len(listed)} lines, {len(toc.authors)} with an author)"
        if listed
        else "CONTENTS: none were found"
    ]
    out += [*(f"  {text} | {toc.authors.get(n, '-')}" for n, text in listed), ""]
    if found:
        out += [f"HEADINGS ({len(found)}): title | author | source line | what it was taken for"]
        out += [
            f"  {one_line(h.title)} | {h.author or '-'} | {h.credit or '-'} | {_taken(h, reading)}"
            for h in found
        ]
        out += [""]
    out += [f"STORIES ({len(stories)}): words, title | author | source line | first and last words"]
    out += [_story(s) for s in stories]
    out += ["", f"LEFT OUT ({len(left)}): words, title | why"]
    out += [f"  {len(s.text.split()):6d}  {s.title} | {s.why}" for s in left]
    return "\n".join(out) + "\n" + ADVICE


def _taken(h, reading: Reading) -> str:
    if h.why or h.matter:
        return h.why or "not a story: front or back matter"
    if h.ordinal or h.numbered and h not in reading.starts:
        return "a part of the story above"
    return (
        "begins a section" if h in reading.starts else "not a beginning: weaker than the titles, or unlisted"
    )


def _story(s: Story) -> str:
    words = s.text.split()
    ends = f"{' '.join(words[:6])} ... {' '.join(words[-6:])}"
    return f"  {len(words):6d}  {s.title} | {s.author or '-'} | {s.credit or '-'} | {ends}"
