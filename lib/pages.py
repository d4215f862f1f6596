"""Tables for Markdown and the terminal, pictures without a screen, HTML pages without server or network."""

import base64
import hashlib
import json
import re
from pathlib import Path
from statistics import fmean

import numpy as np

from lib.files import atomic, write_text

COLOURS = ("#2f6f9f", "#c05a2e", "#4d8a3d", "#8a4f9e", "#a8892c", "#3b8f8c", "#b0476b", "#6b6b6b")
SHELL = Path(__file__).with_name("page.html")  # charts, tables, texts side by side
HEAD = Path(__file__).with_name("head.html")  # of every page: what it may do, its colours

# ---- tables ------------------------------------------------------------------------------------------------


def markdown_table(head: list, rows: list[list]) -> str:
    """A Markdown table; floats get three decimals, None is a dash."""

    def cell(x):
        return "-" if x is None else f"{x:.3f}" if isinstance(x, float) else str(x)

    lines = [" | ".join(map(cell, row)) for row in [head, ["---"] * len(head), *rows]]
    return "".join(f"| {line} |\n" for line in lines)


def estimate(mean: float | None, interval: list[float] | None, digits: int) -> str:
    """1.20 [1.10, 1.30]; the bracket where there is an interval, a dash where there is no mean."""
    if mean is None:
        return "-"
    # Adding 0.0 turns a negative zero into zero.
    mean, *edges = (f"{round(x, digits) + 0.0:,.{digits}f}" for x in (mean, *(interval or ())))
    return f"{mean} [{', '.join(edges)}]" if edges else mean


# ---- pictures ----------------------------------------------------------------------------------------------


def chart(name: str, title: str, x: str, series: dict[str, list[dict]], **more) -> dict:
    """A chart for `write_page` and `draw`.

    series: {label: [point]}. more: band [[x, low, high]], reference (a level), log (the x axis), ticks
    [[x, text]]; page: group (a heading to fold it under); picture: beyond (grey from this x on)."""
    lines = [{"name": label, "points": points} for label, points in series.items() if points]
    return {"name": name, "title": title, "x": x, **more, "series": lines}


def point(x: float, y: float, interval: list[float] | None = None) -> dict:
    low, high = interval or (None, None)
    return {"x": x, "y": y, "low": low, "high": high}


def table(title: str, columns: list[str], rows: list[list], **more) -> dict:
    """A table for `write_page`. more: caption, in words; fold, the heading to fold it under."""
    return {"title": title, "columns": columns, "rows": rows, **more}


def draw(path: Path, charts: list[dict], columns=1, size=(6.4, 3.4), smooth: int = 0, dpi: int = 110):
    """Charts as one picture, each of `size` inches, with a legend on the right where there is more than one
    name. smooth: lines are pale, with a running mean over so many points on top."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    rows, (width, height) = -(-len(charts) // columns), size
    size = (columns * width, rows * height)
    fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    names = list(dict.fromkeys(series["name"] for c in charts for series in c["series"]))
    for ax, c in zip(axes.flat, charts):
        for series in c["series"]:
            colour, points = COLOURS[names.index(series["name"]) % len(COLOURS)], series["points"]
            x, y, low, high = ([p[key] for p in points] for key in ("x", "y", "low", "high"))
            if smooth:
                ax.plot(x, y, color=colour, lw=1, alpha=0.35)
                y = [fmean(y[max(0, i - smooth + 1) : i + 1]) for i in range(len(y))]
            else:
                ax.vlines(x, np.array(low, float), np.array(high, float), color=colour, alpha=0.6)
            ax.plot(x, y, marker="" if smooth else "o", ms=3, color=colour, lw=2, label=series["name"])
        if c.get("band"):
            ax.fill_between(*zip(*c["band"]), color="#888", alpha=0.12, lw=0, label="band without a penalty")
        if c.get("beyond"):
            grey = {"color": "#888", "alpha": 0.12, "lw": 0, "label": "longer than any trained on"}
            ax.axvspan(c["beyond"], max(p["x"] for series in c["series"] for p in series["points"]), **grey)
        if c.get("log"):
            ax.set_xscale("log")
        if c.get("ticks"):
            ax.set_xticks(*zip(*c["ticks"]))
            ax.minorticks_off()
        ax.set(xlabel=c["x"], title=c["title"])
        ax.grid(alpha=0.3)
    told = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels())}
    if len(told) > 1:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
        axes[0, -1].legend(list(told.values()), list(told), fontsize=8, frameon=False, **beside)
    with atomic(path) as temporary:
        fig.savefig(temporary, dpi=dpi)
    plt.close(fig)


# ---- HTML --------------------------------------------------------------------------------------------------


def page_html(data: dict, template: Path = SHELL, served: bool = False) -> str:
    """`template` with `data` inside: works from disk, and asks no host for anything.

    "<" is escaped, so that no text can close the script element, and the policy in the page's head allows the
    page's own script alone, by its hash: whatever a text contains cannot run. served: the page may ask the
    server that it comes from."""
    html = template.read_text(encoding="utf-8").replace("__HEAD__", HEAD.read_text(encoding="utf-8"), 1)
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    blob = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    html = html.replace("__SCRIPT_HASH__", f"sha256-{digest}", 1)
    html = html.replace("__CONNECT__", "'self'" if served else "'none'", 1)
    return html.replace("__DATA__", blob, 1)


def write_page(path: Path, data: dict, template: Path = SHELL):
    write_text(path, page_html(data, template))
