"""A run's metrics.jsonl, one line per step, and the picture made from it."""

import json
import math
from pathlib import Path

from lib.files import read_lines, write_json, write_lines
from lib.pages import chart, draw, point
from lib.stats import mean


class Log:
    """Appends to `path` and, where asked, to wandb. `metrics`: all lines, of earlier sessions too."""

    def __init__(self, folder: Path, start: int, config: dict, wandb: bool):
        """start: the first step to come; later lines are those of a session that was killed, and are written
        again. config: goes to config.json."""
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)
        self.path, self.metrics, self.wandb = folder / "metrics.jsonl", [], None
        if self.path.exists():
            self.metrics = [m for m in read(self.path) if m["step"] < start]
        write_lines(self.path, self.metrics)
        if wandb:
            import wandb as service

            self.wandb = service.init(project="long-stories", name=folder.name, config=config)

    def write(self, line: dict):
        self.metrics.append(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.wandb:
            self.wandb.log(line)

    def change(self, names: dict[str, str]) -> str:
        """How the metrics behind these names moved, as the end of a sentence; "" below ten steps."""
        moved = [f"{name} {a:.3f} -> {b:.3f}" for name, (a, b) in ends(self.metrics, names).items()]
        return "; first against last five steps: " + ", ".join(moved) if moved else ""


def ends(lines: list[dict], names: dict[str, str]) -> dict[str, list[float]]:
    """{name: means of the first and of the last five steps of the metric behind it}; {} below ten steps."""
    parts = [lines[:5], lines[-5:]] if len(lines) >= 10 else []
    means = {name: [mean(m.get(of) for m in part) for part in parts] for name, of in names.items()}
    return {name: pair for name, pair in means.items() if pair and None not in pair}


def read(path: Path) -> list[dict]:
    """The finished steps of a run. FileNotFoundError, ValueError: `path` is not the metrics of a run."""
    lines = read_lines(path, "the metrics of a training run; give its folder, such as out/tiny", growing=True)
    return [line for _, line in lines if line.get("step", -1) >= 0]


def curves(runs: dict[str, list[dict]]) -> dict[str, dict[str, list]]:
    """{run: metrics} -> {metric: {run: points}} of what is a finite number."""
    found = {}
    for run, lines in runs.items():
        for m in lines:
            for name, value in m.items():
                if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                    found.setdefault(name, {}).setdefault(run, []).append(point(m["step"], value))
    return found


def plot(runs: dict[str, list[dict]], path: Path, titles: dict[str, str]):
    """{run: metrics} as one picture. titles: of the metrics to draw, three per row."""
    found, window = curves(runs), max(1, max(map(len, runs.values())) // 8)  # one window for all runs
    charts = [chart(name, title, "step", found.get(name, {})) for name, title in titles.items()]
    draw(path, charts, columns=3, size=(4, 3), smooth=window)
