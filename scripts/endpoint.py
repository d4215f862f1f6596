"""The line to an OpenAI-compatible /chat/completions: one checked JSON answer, whatever HTTP does meanwhile.

A question goes in, a Future of its checked answer comes out, or of None with the reason counted. Answers are paid for once:
they stand in SQLite beside their bill, safe with several processes and after a kill. What the server can do (JSON schema,
JSON object, plain text) is found out once. Limits hold on requests in flight, requests and tokens a minute, seconds a
question, and dollars. judge.py and scripts/prompts.py ask through it; tests/test_judge_faults.py breaks it in every way.

Left out: streaming, chat history, tools, asyncio: requests and threads do.
"""
from __future__ import annotations

import hashlib
import json
import math
import queue
import random
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import requests
import requests.adapters
from requests.exceptions import ChunkedEncodingError, ContentDecodingError
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

# ----------------------------------------------------------------------------------------------------------------------
# What may come back


class Fault(Exception):
    """One failed call. reason: its name in the counts; again: how it may be repeated: "retry" after a wait, "ask" once
    more, in another schema "mode", or "no". wait: seconds the server asked for."""

    def __init__(self, reason: str, again: str, detail: str = "", wait: float = 0.0):
        super().__init__(f"{reason}: {detail}"[:300])
        self.reason, self.again, self.wait = reason, again, wait


def find_json(text: str) -> dict:
    """The JSON object in an answer: bare, in a code fence, or after thinking and other words. Raises Fault without one."""
    def reject(constant: str):
        raise ValueError(f"{constant} is no JSON number")   # Python would read NaN and Infinity as numbers
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.S)
    try:
        return json.loads(text[text.index("{"):text.rindex("}") + 1], parse_constant=reject)
    except (ValueError, RecursionError):
        raise Fault("bad_json", "ask", "no JSON object in the answer") from None


def read_completion(data: bytes) -> tuple[str, list, Fault | None]:
    """The body of a chat completion -> its text, its tokens in and out, and what is wrong with it. Raises Fault where it is none."""
    try:
        answer = json.loads(data)
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = str(message.get("content") or ""), message.get("refusal") or finish == "content_filter"
        tokens = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Fault("not_an_answer", "retry", repr(data[:80])) from None
    fault = (Fault("refusal", "ask", str(refusal)[:80]) if refusal else Fault("cut", "ask", "the answer ran into max_tokens")
             if finish == "length" else None if text.strip() else Fault("empty_answer", "ask", "an answer without text"))
    return text, tokens, fault


# ----------------------------------------------------------------------------------------------------------------------
# Paid once: answers and bills on disk


@dataclass
class Ledger:
    calls: int = 0              # requests that were answered with a bill
    cached: int = 0             # verdicts that cost nothing because they had been bought before
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0        # of this run, a resumed one included


class Store:
    """Verdicts by key and one line a call, in SQLite: several processes may share the file, a kill loses nothing written."""

    def __init__(self, path: str | Path | None, run: str):
        self.lock, self.run = threading.Lock(), run
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.db = sqlite3.connect(str(path or ":memory:"), timeout=60, check_same_thread=False, isolation_level=None)
            self.db.execute("PRAGMA journal_mode=WAL")      # readers and one writer at a time, across processes
            self.db.execute("PRAGMA synchronous=NORMAL")    # survives a killed process; a power cut may cost the last verdicts
            self.db.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT)")
            self.db.execute("CREATE TABLE IF NOT EXISTS calls (at REAL, run TEXT, model TEXT, prompt_tokens INT, "
                            "completion_tokens INT, dollars REAL)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"the cache of answers {path} cannot be used ({error}); name another file or remove it") from None

    def get(self, key: str) -> dict | None:
        with self.lock:
            row = self.db.execute("SELECT value FROM verdicts WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def record(self, model: str, tokens: list[int], dollars: float, key: str, value: dict | None) -> None:
        """The bill and, where the answer was good, the verdict: both or neither."""
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("INSERT INTO calls (at, run, model, prompt_tokens, completion_tokens, dollars) VALUES (?, ?, ?, ?, ?, ?)",
                            (time.time(), self.run, model, *tokens, dollars))
            if value is not None:
                self.db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, json.dumps(value)))
            self.db.execute("COMMIT")

    def ledger(self) -> Ledger:
        with self.lock:
            row = self.db.execute("SELECT COUNT(*), 0, SUM(prompt_tokens), SUM(completion_tokens), SUM(dollars) FROM calls "
                                  "WHERE run = ?", (self.run,)).fetchone()
        return Ledger(*(number or 0 for number in row))


# ----------------------------------------------------------------------------------------------------------------------
# The line itself


def _named(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def _unlimited(schema):
    """The schema without limits, which keep a small model from rambling but which some services refuse."""
    if isinstance(schema, dict):
        limits = ("maxLength", "minItems", "maxItems", "minimum", "maximum")
        return {k: _unlimited(v) for k, v in schema.items() if k not in limits}
    return schema


# How a server is told the form of its answer. Tried in this order until one is taken, once per run.
SCHEMA_MODES = {"json_schema+limits": _named, "json_schema": lambda schema: _named(_unlimited(schema)),
                "json_object+schema": lambda schema: {"type": "json_object", "schema": schema},
                "json_object": lambda schema: {"type": "json_object"}, "text": lambda schema: None}
BACKOFF = 0.5   # seconds before the first retry, doubled each time
RETRY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}


@dataclass
class Task:
    """One answer to be had. It lives in one worker; `began` is when it got its first place among the calls."""
    key: str
    draw: int
    messages: list[dict]
    schema: dict
    read: Callable[[dict], dict]   # checked answer -> what the store keeps; raises Fault
    retries: int
    future: Future = field(default_factory=Future)
    asked: int = 0                 # answers thrown away
    began: float | None = None


class Endpoint:
    """A model behind /chat/completions. Thread-safe. An answer that cannot be had is None, the reasons counted in .counts,
    the last one told in .last_error; no question takes longer than `deadline` seconds from its first call. Prices are
    dollars per million tokens, in and out; when `budget` dollars are spent, .out_of_budget turns True and further answers
    are None. A parameter that is None is not sent. Raises ValueError for settings that cannot work.
    """

    def __init__(self, url: str | None, model: str | None, api_key: str = "", *, temperature: float | None = 0.2,
                 top_p: float | None = 0.9, seed: int | None = None, reasoning_effort: str | None = None, max_tokens: int | None = 6000,
                 in_flight: int = 16, requests_per_minute: float = 0, tokens_per_minute: float = 0, connect_timeout: float = 10,
                 read_timeout: float = 120, deadline: float = 300, retries: int = 6, cache: str | Path | None = None,
                 run: str = "", price_in: float = 0.0, price_out: float = 0.0, budget: float | None = None):
        if not url or not model:
            raise ValueError("no endpoint: an address (such as http://localhost:8000/v1) and a model are needed")
        where = requests.utils.urlparse(url)
        if where.scheme not in ("http", "https") or not where.hostname or where.username or where.query:
            raise ValueError("an endpoint's URL must read http(s)://host/path, without user, key or query; "
                             "the key goes in the environment, in JUDGE_API_KEY or PROMPTS_API_KEY")
        key = api_key.strip()
        if not re.fullmatch(r"[!-~]*", key):
            raise ValueError("the API key holds spaces or characters that no header can carry; set it again")
        if budget is not None and max(price_in, price_out) <= 0:
            raise ValueError("a budget in dollars needs prices: give the dollars per million tokens, in and out")
        if in_flight < 1 or min(deadline, connect_timeout, read_timeout) <= 0 or retries < 0:
            raise ValueError("requests in flight and time limits must be above 0, retries not below 0")
        self.endpoint = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.name, self.seed, self.retries = model, seed, retries
        params = dict(temperature=temperature, top_p=top_p, max_tokens=max_tokens, reasoning_effort=reasoning_effort)
        self.params = {name: value for name, value in params.items() if value is not None}
        self.deadline, self.timeouts = deadline, (connect_timeout, read_timeout)
        self.per_minute, self.next_call = (requests_per_minute, tokens_per_minute), 0.0
        self.prices, self.budget = (price_in, price_out), math.inf if budget is None else budget
        self.reserved, self.out_of_budget = 0.0, False
        # Closures, so that no repr, config dump or traceback of this object shows the key.
        def sign(request):
            request.headers.update({"Authorization": f"Bearer {key}"} if key else {})
            return request
        self._sign = sign
        self._scrub = lambda text: text.replace(key, "[key]") if key else text
        self.session = requests.Session()
        # Plain http goes straight to its host: a proxy named in the environment would read the key and the stories.
        self.session.trust_env = where.scheme == "https"
        self.session.mount(f"{where.scheme}://", requests.adapters.HTTPAdapter(pool_maxsize=in_flight))
        self.store = Store(cache, run)
        self.ledger, self.counts, self.last_error = self.store.ledger(), Counter(), ""
        self.modes, self.mode_known, self.strikes, self.token_field = list(SCHEMA_MODES), False, 0, "max_tokens"
        self.lock, self.discovery, self.slots = threading.Condition(), threading.Lock(), threading.Semaphore(in_flight)
        self.closed, self.pending, self.tasks = Future(), {}, queue.SimpleQueue()
        # Daemons of our own: the standard pool's threads would keep a stopped run alive until its last story is paid for.
        # More of them than slots, so that a story that waits for its retry holds nobody up.
        self.workers = [threading.Thread(target=self._work, daemon=True) for _ in range(4 * in_flight)]
        for worker in self.workers:
            worker.start()

    def answer(self, identity: list, draw: int, messages: list[dict], schema: dict, read: Callable[[dict], dict],
               retries: int | None = None) -> Future:
        """Future of read(answer), or of None; `read` checks the answer and raises Fault. `identity` names the question: the
        same one, of the same model with the same parameters, is paid for once. Another `draw` of it is another answer."""
        identity = [identity, draw, self.endpoint, self.name, self.params, self.seed]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        with self.lock:
            if self.closed.done():
                return known(None)
            if key not in self.pending:       # asked twice at the same time, bought once
                task = Task(key, draw, messages, schema, read, self.retries if retries is None else retries)
                self.pending[key] = task.future
                self.tasks.put(task)
            return self.pending[key]

    def metrics(self) -> dict[str, float]:
        """The ledger and the counted reasons, named for the log; totals since the start."""
        return ({f"judge/{name}": value for name, value in asdict(self.ledger).items()}
                | {f"judge/fault/{reason}": count for reason, count in sorted(self.counts.items())})

    def close(self) -> None:
        """Stop now: what waits or is under way ends as None."""
        with self.lock:
            if not self.closed.done():
                self.closed.set_result(None)
            for _ in self.workers:
                self.tasks.put(None)
        self.session.close()

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            value, error = None, None
            try:
                value = self.store.get(task.key)
                with self.lock:
                    self.ledger.cached += value is not None
                if value is None:
                    value = self._obtain(task)
            except Exception as bug:      # a defect of ours belongs to the caller, who would wait for ever otherwise
                error = bug
            with self.lock:
                self.pending.pop(task.key, None)
            task.future.set_exception(error) if error else task.future.set_result(value)

    def _obtain(self, task: Task) -> dict | None:
        """A bought answer or None: each failed call counted, and repeated where that may help."""
        tried = 0
        while True:
            try:
                return self._buy(task)
            except Fault as fault:
                reasons, again, told = [fault.reason], fault.again, self._scrub(str(fault))
                # Times 0.5-1.5, so that calls which failed together do not return together.
                pause = fault.wait or min(30.0, BACKOFF * 2 ** tried) * random.uniform(0.5, 1.5)
            task.asked += again == "ask"
            tried += again == "retry"
            if again == "retry" and pause > self._left(task):
                reasons, again = [*reasons, "deadline"], "no"
            over = again == "no" or task.asked > 1 or tried > task.retries
            with self.lock:
                self.counts.update([*reasons, "none"] if over else reasons)
            if over:
                self.last_error = told
                return None
            if again == "retry":
                wait([self.closed], pause)

    def _left(self, task: Task) -> float:
        return self.deadline - (time.monotonic() - task.began) if task.began else self.deadline

    def _buy(self, task: Task) -> dict:
        """One call within the limits on money, pace and requests in flight."""
        size = sum(len(m["content"]) for m in task.messages) // 4, 60 * len(task.schema["properties"])   # tokens, roughly
        with self._reserve(self._dollars(*size)):
            # Calls are spaced evenly under the limits a minute (0: no limit).
            cost = max([60 * amount / limit for amount, limit in zip((1, sum(size)), self.per_minute) if limit > 0], default=0.0)
            with self.lock:
                start = self.next_call = max(time.monotonic(), self.next_call)
                self.next_call += cost
            wait([self.closed], max(0.0, start - time.monotonic()))
            with self.slots:
                task.began = task.began or time.monotonic()
                with self.discovery:      # alone until one schema mode is known to work
                    if not self.mode_known:
                        return self._call(task)
                return self._call(task)

    @contextmanager
    def _reserve(self, guess: float):
        """Sets the likely price of a call aside until its bill has come. Raises Fault("budget")."""
        with self.lock:
            price = max(guess, self.ledger.dollars / max(1, self.ledger.calls))
            # Calls under way may cost less than was set aside for them: wait for their bills before giving up.
            while self.ledger.dollars + self.reserved + price > self.budget and self.reserved > 1e-12:
                self.lock.wait(0.1)
            if self.ledger.dollars + price > self.budget:
                self.out_of_budget = True
                raise Fault("budget", "no", f"${self.ledger.dollars:.2f} of ${self.budget:.2f} spent")
            self.reserved += price
        try:
            yield
        finally:
            with self.lock:
                self.reserved -= price
                self.lock.notify_all()

    def _call(self, task: Task) -> dict:
        """The exchange in a thread that can be abandoned: socket time limits restart with every byte, the story's clock does
        not. An abandoned call that still comes back is billed and stored: the money is spent."""
        answer = Future()
        def run():
            try:
                answer.set_result(self._exchange(task))
            except Exception as error:
                answer.set_exception(error)
        if not self.closed.done() and self._left(task) > 0:
            threading.Thread(target=run, daemon=True).start()
            wait([answer, self.closed], self._left(task), FIRST_COMPLETED)
        if self.closed.done():
            raise Fault("cancelled", "no")
        if not answer.done():
            raise Fault("deadline", "no", f"no answer within {self.deadline:g} s")
        return answer.result()

    def _exchange(self, task: Task) -> dict:
        """One request -> one checked answer, billed and stored. Raises Fault."""
        body = {"model": self.name, "messages": task.messages, **self.params}
        if "max_tokens" in body:
            body[self.token_field] = body.pop("max_tokens") * (1 + task.asked)   # an answer that was cut gets more room
        if self.seed is not None:
            body["seed"] = self.seed + task.draw + 1000 * task.asked             # the same seed would fail the same way
        if form := SCHEMA_MODES[self.modes[0]](task.schema):
            body["response_format"] = form
        status, headers, data = self._post(body)
        if status != 200:
            raise self._refused(status, headers, data)
        text, tokens, fault = read_completion(data)
        self.mode_known = True
        value = None
        try:
            if fault:
                raise fault
            value = task.read(find_json(text))
            return value
        finally:    # a useless answer is paid for like a good one
            self._bill(task, text, tokens, value)

    def _post(self, body: dict) -> tuple[int, dict, bytes]:
        try:
            # No redirect is followed: it would carry the stories, and perhaps the key, to a host nobody named.
            with self.session.post(self.endpoint, json=body, auth=self._sign, timeout=self.timeouts, allow_redirects=False) as got:
                return got.status_code, got.headers, got.content
        except requests.RequestException as error:
            broken = isinstance(error, (ChunkedEncodingError, ContentDecodingError))
            slow = isinstance(error, requests.Timeout) or "timed out" in str(error)
            cause = getattr(error.args[0], "reason", error) if error.args else error     # what urllib3 gave up on
            # The kind alone is told: the words of an exception may quote what was sent.
            raise Fault("broken_stream" if broken else "timeout" if slow else "connection", "retry", type(cause).__name__) from None

    def _refused(self, status: int, headers: dict, data: bytes) -> Fault:
        """What a status other than 200 means: another schema mode, another try, or the end."""
        said, pause = f"HTTP {status}: {data[:200].decode('utf-8', 'replace').strip()}", 0.0
        if b"max_completion_tokens" in data and status == 400 and self.token_field == "max_tokens":
            self.token_field = "max_completion_tokens"     # newer OpenAI models refuse the older name
            return Fault("token_field", "mode")
        if not self.mode_known:
            # Servers that lack a mode answer 400, 422 or 500; a 500 may also be bad luck, so the first takes three in a row.
            self.strikes = self.strikes + 1 if status == 500 else 3 if status in (400, 404, 415, 422, 501) else 0
            if self.strikes >= 3 and len(self.modes) > 1:
                return Fault(f"no_{self.modes.pop(0)}", "mode", said)
            if self.strikes >= 3 and status == 500:        # not picky but ill: start over when it is well
                self.modes, self.strikes = list(SCHEMA_MODES), 0
        if 300 <= status < 400:
            return Fault("redirect", "no", f"HTTP {status} to {headers.get('Location', '?')[:100]}: give that address as the URL")
        try:
            pause = max(0.0, Retry().parse_retry_after(headers.get("Retry-After", "0")))
        except InvalidHeader:
            said += " (unreadable Retry-After)"
        return Fault(f"http_{status}", "retry" if status in RETRY_STATUS else "no", said, pause)

    def _dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6

    def _bill(self, task: Task, text: str, tokens: list, value: dict | None) -> None:
        counted = all(isinstance(t, int) and t >= 0 for t in tokens)
        if not counted:       # the server names no tokens: four characters each
            tokens = [sum(len(m["content"]) for m in task.messages) // 4, len(text) // 4]
        dollars = self._dollars(*tokens)
        self.store.record(self.name, tokens, dollars, task.key, value)
        with self.lock:
            led = self.ledger
            led.calls, led.prompt_tokens, led.completion_tokens = led.calls + 1, led.prompt_tokens + tokens[0], led.completion_tokens + tokens[1]
            led.dollars += dollars
            self.counts.update([] if counted else ["tokens_guessed"])


def known(value) -> Future:
    future = Future()
    future.set_result(value)
    return future


def then(futures: list[Future], combine: Callable[[list], object]) -> Future:
    """A future of combine(results), as soon as all are there."""
    whole, left, lock = Future(), len(futures), threading.Lock()
    def done(_):
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        try:
            whole.set_result(combine([f.result() for f in futures]))
        except Exception as error:    # whoever waits for the whole is told
            whole.set_exception(error)
    for future in futures:
        future.add_done_callback(done)
    return whole
