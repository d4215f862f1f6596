"""Answers that are paid for once, and their bills, in SQLite: several processes may share the file, and a
kill loses nothing that was written."""

import json
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Ledger:
    """What a run has spent, over all its starts."""

    calls: int = 0  # requests that were answered with a bill
    cached: int = 0  # answers that cost nothing because they had been bought before
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0


class Store:
    """One table of answers by key, one of calls; .ledger: the bill of `run`. path None: in memory.
    ValueError: the file cannot be used, or, later, its disk is full or read-only."""

    def __init__(self, path: str | Path | None, run: str):
        self.lock, self.run, self.path = threading.Lock(), run, path
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with self._in_use():
            how = {"timeout": 60, "check_same_thread": False, "isolation_level": None}
            self.db = sqlite3.connect(path or ":memory:", **how)
            self.db.execute("PRAGMA synchronous=NORMAL")  # a power cut, not a kill, may cost the last answers
            columns = "at REAL, run TEXT, model TEXT, prompt_tokens INT, completion_tokens INT, dollars REAL"
            self.db.execute("BEGIN IMMEDIATE")  # waits for another process that makes the tables now
            with self.db:
                self.db.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT)")
                self.db.execute(f"CREATE TABLE IF NOT EXISTS calls ({columns})")
            sums = "COUNT(*), 0, SUM(prompt_tokens), SUM(completion_tokens), SUM(dollars)"
            row = self.db.execute(f"SELECT {sums} FROM calls WHERE run = ?", (run,)).fetchone()
        self.ledger = Ledger(*(number or 0 for number in row))

    @contextmanager
    def _in_use(self):
        try:
            with self.lock:
                yield
        except sqlite3.Error as error:
            mend = "make room on its disk, make it writable, name another file, or remove it"
            raise ValueError(f"the cache of answers {self.path} cannot be used ({error}); {mend}") from None

    def get(self, key: str) -> dict | None:
        with self._in_use():
            row = self.db.execute("SELECT value FROM verdicts WHERE key = ?", (key,)).fetchone()
            self.ledger.cached += row is not None
        return json.loads(row[0]) if row else None

    def record(self, model: str, tokens: tuple[int, int], dollars: float, key: str | None, value):
        """The bill and, where the answer was good, the answer: both or neither."""
        bill = (time.time(), self.run, model, *tokens, dollars)
        with self._in_use():
            self.db.execute("BEGIN IMMEDIATE")
            with self.db:  # commits, or rolls back where something fails
                self.db.execute("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?)", bill)
                if value is not None and key is not None:
                    self.db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, json.dumps(value)))
            self.ledger.dollars += dollars  # before the calls: never a mean that is too low
            self.ledger.calls += 1
            self.ledger.prompt_tokens += tokens[0]
            self.ledger.completion_tokens += tokens[1]
