"""Tables for Markdown and the terminal, pictures without a screen, HTML pages without server or network."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 4)):
    """-> (matplotlib figure, 2-D array of axes), drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def legend_beside(ax, lines: dict | None = None):
    """The names of the lines to the right of the axes, where they hide nothing. lines: {name: line}, where
    not all are in `ax`."""
    which = [list(lines.values()), list(lines)] if lines else []
    ax.legend(*which, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def save_figure(fig, path: str | Path, dpi: int = 110):
    """Writes the picture whole and frees the figure."""
    import matplotlib.pyplot as plt

    with atomic(path) as temporary:
        fig.savefig(temporary, dpi=dpi)
    plt.close(fig)


def chart(name: str, title: str, x: str, series: dict[str, list[dict]], **more) -> dict:
    """A chart for `write_page` and `draw_chart`.

    series: {label: [point]}. more: band [[x, low, high]], reference (a level), log (the x axis), ticks
    [[x, text]], group (a heading to fold it under)."""
    lines = [{"name": label, "points": points} for label, points in series.items() if points]
    return {"name": name, "title": title, "x": x, **more, "series": lines}


def point(x: float, y: float, interval: list[float] | None = None) -> dict:
    low, high = interval or (None, None)
    return {"x": x, "y": y, "low": low, "high": high}


def table(title: str, columns: list[str], rows: list[list], **more) -> dict:
    """A table for `write_page`. more: caption, in words; fold, the heading to fold it under."""
    return {"title": title, "columns": columns, "rows": rows, **more}


def draw_chart(path: Path, c: dict):
    """A `chart` as a picture."""
    fig, [[ax]] = figure(size=(6.4, 3.4))
    for colour, series in zip(COLOURS * 9, c["series"]):
        points = series["points"]
        x, y = ([p[key] for p in points] for key in "xy")
        ax.plot(x, y, "o-", ms=3, color=colour, label=series["name"])
        low, high = ([p["y"] if p[key] is None else p[key] for p in points] for key in ("low", "high"))
        ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    if c.get("band"):
        ax.fill_between(*zip(*c["band"]), color="#888", alpha=0.12, lw=0, label="band without a penalty")
    if c.get("log"):
        ax.set_xscale("log")
    ax.set_xticks(*zip(*c["ticks"]))
    ax.minorticks_off()
    ax.set(xlabel=c["x"], title=c["title"])
    ax.grid(alpha=0.25)
    legend_beside(ax)
    save_figure(fig, path, dpi=200)


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


def serve(stamp, make, port: int) -> ThreadingHTTPServer:
    """A server of the page make(), on loopback alone; serve_forever() starts it. stamp(): a short text that
    changes when the page does. The open page asks for /data?seen=STAMP and gets the new data, or 204."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            here = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
            (path, _, seen), now = self.path.partition("?seen="), stamp()
            if self.headers.get("Host", "") not in here:  # a name of another site that points to this machine
                self.send_error(403)
            elif path not in ("/", "/data"):
                self.send_error(404)
            elif seen == now:  # nothing is new
                self.send_response(204)
                self.end_headers()
            else:
                data, kind = make() | {"stamp": now}, "text/html" if path == "/" else "application/json"
                text = page_html(data, served=True) if path == "/" else json.dumps(data, allow_nan=False)
                body = text.encode("utf-8", "replace")
                self.send_response(200)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
