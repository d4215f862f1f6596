"""Files that are whole or absent: a kill, a full disk or a second process never leaves half a file behind."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path):
    """Yields a temporary name beside `path`. What is written there replaces `path`; an error removes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str):
    """Half a surrogate pair, which UTF-8 cannot hold, is written as a question mark."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def write_json(path: str | Path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: str | Path, rows):
    """JSON Lines: one object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: str | Path, needs: str = "one whole JSON object per line", growing: bool = False):
    """Yields (line number, object) per line that is not blank. growing: the last line may be half written,
    and is left out where it lacks its end. FileNotFoundError, ValueError: which line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected {needs}")
    raw = path.read_bytes()
    for number, line in enumerate((raw.rpartition(b"\n")[0] if growing else raw).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({str(error)[:80]}); expected {needs}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}, not an object in braces; expected {needs}")
        yield number, row


def replace_folder(partial: Path, path: Path):
    """Puts a finished folder in place by rename: a kill leaves the old folder or the new one."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def set_aside(folder: Path, keep: tuple[str, ...] = ()) -> Path:
    """Renames a folder that a new one would replace -> its new name, which ends in the present time. Files
    whose names begin with one of `keep` stay."""
    aside = folder.with_name(f"{folder.name}-until-{time.strftime('%Y%m%d-%H%M%S')}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-2")
    folder.rename(aside)
    for part in [p for p in aside.iterdir() if p.name.startswith(keep)]:
        folder.mkdir(exist_ok=True)
        part.rename(folder / part.name)
    return aside


def key_of(*parts) -> str:
    """A short hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def plain_name(text: str) -> str:
    """`text` as a file's name."""
    return re.sub(r"[^\w.-]", "_", text)


def lock(folder: Path):
    """Reserves `folder` until the returned file is closed or the process ends, however it ends. The lock file
    lies beside the folder, so that the folder can be renamed. ValueError: another process has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = open(folder.with_name(f".{folder.name}.lock"), "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another process is writing {folder}; wait, or choose another name") from None
    return file


def replace_between(text: str, begin: str, end: str, new: str) -> str:
    """`text` with `new` between the two marks, which stay. ValueError: a mark is missing."""
    head, found, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page lacks the mark {begin!r} or {end!r}; put them back")
    return f"{head}{begin}\n{new.strip()}\n{end}{tail}"
