"""A model card: what a checkpoint was made from and how its metrics moved, as README.md of its folder."""

import re
from pathlib import Path

from lib import metrics
from lib.files import write_text
from lib.pages import markdown_table

HUB_ID = r"[\w-]+(\.[\w-]+)*/[\w-]+(\.[\w-]+)*"  # owner/name


def front_matter(folder: Path, key: str) -> str:
    """A value at the head of the README.md of a model's folder; "" where there is none."""
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    head = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
    found = re.search(rf"^{key}: *([\w./-]+) *$", head, re.M)
    return found[1] if found else ""


def plain(value) -> str:
    """One line of text: no table, heading, link or markup begins in it."""
    return re.sub(r"[|<>`\[\]\s]+", " ", str(value)).strip()


def write(folder: Path, settings: dict, source: Path, facts: dict, log: Path, names: dict):
    """settings: of the run, model and name among them; addresses and paths of this machine stay out. source:
    the files of the model trained from, whose card names its licence. facts: {heading: text}. log: the run's
    metrics.jsonl, if there is one yet. names: {title: metric}, first against last five steps."""
    lines, base = metrics.read(log) if log.exists() else [], settings["model"]
    hub_id = base if re.fullmatch(HUB_ID, base) and not Path(base).exists() else ""
    hub_id, licence = hub_id or front_matter(source, "base_model"), front_matter(source, "license")
    head = {"license": licence, "base_model": hub_id, "library_name": "transformers"}
    head = [f"{key}: {value}" for key, value in head.items() if value]
    about = {"base model": hub_id or Path(base).name}
    about |= {"licence": licence or "the base model's files name none; see where it comes from"} | facts
    moved = [[name, *ends] for name, ends in metrics.ends(lines, names).items()]
    kept = [[k, str(v)] for k, v in settings.items() if v not in ("", {}) and "/" not in str(v)]
    parts = ["\n".join(["---", *head, "pipeline_tag: text-generation", "---"])]
    parts += [f"# {plain(settings['name'])}", table(["", ""], about.items())]
    if moved:
        parts += ["## First and last five steps", table(["mean of", "first five", "last five"], moved)]
    parts += ["## Settings", table(["flag", "value"], kept)]
    write_text(folder / "README.md", "\n\n".join(parts))


def table(head: list[str], rows) -> str:
    rows = [[x if x is None or isinstance(x, float) else plain(x) for x in row] for row in rows]
    return markdown_table(head, rows).strip()
