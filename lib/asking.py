"""Answers that come later: several under way at a time, kept as they come, never asked for twice."""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait

from lib.endpoint import Endpoint
from lib.files import Journal


class Pending:
    """Answers under way. Each is kept in the journal as {"key", name: plain(answer)} when it comes; an answer that
    is None is not kept, and its key is in `failed`."""

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
        raise ValueError(
            f"the endpoint {line.endpoint} gave no answer ({failed}); what came before is kept: "
            "start the same command again when it answers"
        )
