"""Answers that come later: several under way at a time, kept as they come, never asked for twice."""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait

from tqdm import tqdm

from lib.endpoint import Endpoint
from lib.files import Journal


class Progress(tqdm):
    """One bar: things done, with what they are made of and how many answers are waited for beside it."""

    def __init__(self, total: int, things: str, parts: str, waiting, shown: bool):
        super().__init__(total=total, unit=f" {things}", miniters=0, mininterval=0.5, disable=not shown)
        self.parts, self.waiting, self.count = parts, waiting, 0

    def add(self, parts: int = 0, done: int = 0):
        self.count += parts
        told = f"{self.count:,} {self.parts}, {len(self.waiting)} texts with the judge"
        self.set_postfix_str(told, refresh=False)
        self.update(done)


class Pending:
    """Answers under way. Each is kept in the journal as {"key", name: plain(answer)} when it comes; an answer
    that is None is not kept, and its key is in `failed`."""

    def __init__(self, journal: Journal, name: str, plain):
        self.journal, self.name, self.plain = journal, name, plain
        self.waiting, self.failed = {}, set()

    def ask(self, key: str, submit, *question):
        """submit(*question) -> a future, unless the answer is there or under way."""
        if key not in self.journal.rows and key not in self.waiting and key not in self.failed:
            self.waiting[key] = submit(*question)

    def keep(self, wait: bool = False):
        """Keeps what has come; with `wait` all of it. Yields after each."""
        for key in [key for key, future in self.waiting.items() if wait or future.done()]:
            answer = self.waiting.pop(key).result()
            if answer is None:
                self.failed.add(key)
            else:
                self.journal.put(key, **{self.name: self.plain(answer)})
            yield key


def open_line(url: str, model: str, key: str, in_flight: int) -> Endpoint:
    """A model that is asked for long texts. Each question brings its own sampling."""
    unset = {"temperature": None, "top_p": None, "max_tokens": None}
    patience = {"timeouts": (10, 1800), "deadline": 3600, "retries": 4}  # seconds; a long text takes its time
    return Endpoint(url, model, key, in_flight=in_flight, **unset, **patience)


def complete_all(line: Endpoint, questions: list[tuple[list[dict], dict]], spare=()):
    """Yields (index, completion) as each question of (messages, params) is answered, in any order.

    ValueError at the end if one was not: no more are asked then, but what was under way is handed over."""
    todo, asked, failed = deque(enumerate(questions)), {}, ""
    try:
        while asked or (todo and not failed):
            while todo and not failed and len(asked) < line.how.in_flight:
                index, (messages, params) = todo.popleft()
                asked[line.complete(messages, params, spare)] = index
            for future in wait(asked, return_when=FIRST_COMPLETED)[0]:
                index, answer = asked.pop(future), future.result()
                if answer is None:
                    failed = line.last_error or "no answer"
                else:
                    yield index, answer
    finally:
        line.close()
    if failed:
        why = f"{line.endpoint} gave no answer ({failed}); what came before is kept"
        raise ValueError(f"the endpoint {why}: start the same command again when it answers")
