"""How one book was understood: contents, headings, stories, and why each other section was left out.

For a user whose own book comes out wrong: `split BOOK --explain` prints this page, and `--contents FILE`
settles
what form could not. Left out: advice; the page says what was seen.
"""

from __future__ import annotations

from scripts.anthologies.stories import Reading, Story
from scripts.anthologies.titles import one_line


def explain(reading: Reading, name: str) -> str:
    stories = reading.stories
    out = [f"{name}: {len(stories)} stories, told apart by {reading.how}"]
    out += [f"author of the whole book: {reading.author or 'not said'}", ""]
    out += _contents(reading)
    if reading.found:
        out += [f"HEADINGS ({len(reading.found)}): title | author | source line | what it was taken for"]
        out += [
            f"  {one_line(h.title)} | {h.author or '-'} | {h.credit or '-'} | {_taken(h, reading)}"
            for h in reading.found
        ]
        out.append("")
    out.append(f"STORIES ({len(stories)}): words, title | author | source line | first and last words")
    out += [_story(s) for s in stories]
    left = [s for s in reading.sections if s.why]
    out += ["", f"LEFT OUT ({len(left)}): words, title | why"]
    out += [f"  {len(s.text.split()):6d}  {s.title} | {s.why}" for s in left]
    out += [
        "",
        "Is a title missing or too many? List the titles in a file, one per line, then a tab and the author;",
    ]
    out += ["put - before what is not a story, and run the same command with --contents FILE."]
    return "\n".join(out)


def _contents(reading: Reading) -> list[str]:
    toc = reading.toc
    if not toc.lines:
        return ["CONTENTS: none were found", ""]
    lines = [(n, text) for n, text in enumerate(toc.lines) if text.strip()]
    return [
        f"CONTENTS ({len(lines)} lines, {len(toc.authors)} with an author)",
        *(f"  {text} | {toc.authors.get(n, '-')}" for n, text in lines),
        "",
    ]


def _taken(h, reading: Reading) -> str:
    title = one_line(h.title)
    if h.why:
        return h.why
    if h.matter:
        return "not a story: front or back matter"
    if h.ordinal or h.numbered and h not in reading.starts:
        return "a part of the story above"
    return (
        "begins a section"
        if h in reading.starts
        else f"not a beginning: weaker than the titles, or unlisted ({title[:20]})"
    )


def _story(s: Story) -> str:
    words = s.text.split()
    ends = f"{' '.join(words[:6])} ... {' '.join(words[-6:])}"
    return f"  {len(words):6d}  {s.title} | {s.author or '-'} | {s.credit or '-'} | {ends}"
