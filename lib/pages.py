"""Tables for Markdown, and figures without a screen."""

from __future__ import annotations

from pathlib import Path

from lib.files import atomic


def markdown_table(head: list, rows: list[list]) -> str:
    """A Markdown table; floats get three decimals, None is a dash."""
    cells = [
        ["-" if x is None else f"{x:.3f}" if isinstance(x, float) else str(x) for x in row]
        for row in [head, *rows]
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [cells[0], ["---"] * len(head), *cells[1:]]]
    return "\n".join(lines) + "\n"


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 4)):
    """-> (matplotlib figure, 2-D array of axes), drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def save_figure(fig, path: str | Path, dpi: int = 110):
    """Writes the picture whole and frees the figure."""
    import matplotlib.pyplot as plt

    with atomic(path) as temporary:
        fig.savefig(temporary, dpi=dpi)
    plt.close(fig)
