"""The line to an OpenAI-compatible /chat/completions: a checked JSON answer or a plain text, or None.

A question goes in, a Future of its answer comes out, or of None with the reason counted. JSON answers are
paid for once (lib/store.py). How the server is told the form of an answer is found by one check call alone.
Left out: streaming, chat history, tools, asyncio: requests and threads do.
"""

from __future__ import annotations  # `settings` reads the types as text

import hashlib
import json
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from weakref import WeakValueDictionary

import requests
from requests import exceptions
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from lib.answers import SCHEMA_MODES, Fault, find_json, read_completion, response_format, scrubber
from lib.store import Store


@dataclass(frozen=True)
class Settings:
    """Every key of --judge_settings key=value. None: not sent, or no limit. ValueError: it cannot work."""

    temperature: float | None = 0.2
    top_p: float | None = 0.9
    seed: int | None = None
    reasoning_effort: str | None = None  # low, medium, high, where the model knows it
    max_tokens: int | None = 6000  # room for one answer
    in_flight: int = 16  # requests at the same time
    per_minute: tuple[float, float] = (0.0, 0.0)  # most requests and most tokens; 0: no limit
    timeouts: tuple[float, float] = (10.0, 120.0)  # seconds to connect, and without a byte
    deadline: float = 300.0  # seconds for one answer since its first call, retries included
    retries: int = 6
    price: tuple[float, float] = (0.0, 0.0)  # dollars per million tokens, in and out
    budget: float | None = None  # dollars per run; no call is made beyond them

    def __post_init__(self):
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g}: must lie in (0, 1]")
        if self.in_flight < 1 or self.max_tokens == 0:
            raise ValueError("in_flight and max_tokens must be at least 1")
        if self.deadline <= 0 or min(self.timeouts) <= 0:
            raise ValueError("deadline and timeouts are seconds, and must be above 0")
        if self.budget is not None and max(self.price) <= 0:
            raise ValueError("a budget in dollars needs prices: set price=IN,OUT, dollars per million tokens")


def settings(values: dict) -> Settings:
    """{key: text or number} -> Settings. Two numbers of one key are separated by a comma (price=1.25,10);
    "none" takes a key out. ValueError: an unknown key, or a value that cannot be."""
    kinds = {f.name: f.type for f in fields(Settings)}
    if unknown := [key for key in values if key not in kinds]:
        raise ValueError(f"there is no setting {unknown[0]!r}; the settings are {', '.join(kinds)}")
    return Settings(**{key: _value(key, value, kinds[key]) for key, value in values.items()})


def _value(key: str, value, kind: str):
    if str(value).lower() in ("none", ""):
        if "None" not in kind:
            raise ValueError(f"{key} needs a value")
        return None
    if kind.startswith("str"):
        return str(value)
    pair, read = kind.startswith("tuple"), int if kind.startswith("int") else float
    try:
        numbers = tuple(read(word) for word in str(value).strip("()").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 1 + pair or not all(0 <= number < math.inf for number in numbers):
        wanted = "two numbers such as 10,120" if pair else "a whole number" if read is int else "a number"
        raise ValueError(f"{key}={value}: needs {wanted}, not below 0")
    return numbers if pair else numbers[0]


BACKOFF = 0.5  # seconds before the first retry, doubled each time
RETRY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
# What servers say to a form of answer that they lack.
NO_MODE = [f"http_{status}" for status in (400, 404, 415, 422, 500, 501)]


@dataclass
class Task:
    """One answer to be had. It lives in one thread."""

    messages: list[dict]
    schema: dict | None = None  # of a JSON answer; None: a text
    read: Callable[[dict], dict] | None = None  # JSON answer -> what is kept of it; raises Fault
    key: str | None = None  # in the store; None: not kept
    draw: int = 0
    params: dict = field(default_factory=dict)  # beside the endpoint's own
    spare: tuple[str, ...] = ()  # params that a server which does not know them may be spared
    asked: int = 0  # answers thrown away
    ends: float = math.inf  # its time, which begins with its first place among the calls

    def size(self) -> tuple[int, int]:
        """Tokens in and out, roughly: four characters each."""
        out = 60 * len(self.schema["properties"]) if self.schema else self.params.get("max_tokens", 0)
        return sum(len(message["content"]) for message in self.messages) // 4, out


class Endpoint:
    """A model behind /chat/completions. Thread-safe. An answer that cannot be had is None, the reasons
    counted in .counts, the last one told in .last_error. When the budget is spent, .out_of_budget turns True
    and further answers are None. cache: a file of answers, shared with others. run: whose bill it is. how:
    see Settings. ValueError: what cannot work."""

    def __init__(self, url: str, model: str, api_key="", cache: str | Path | None = None, run="", **how):
        if not url or not model:
            raise ValueError("no endpoint: give an address (such as http://localhost:8000/v1) and a model")
        if not re.fullmatch(r"https?://[^/@?#\s]+(/[^?#\s]*)?", url, re.I):
            key = "the key goes in the environment (JUDGE_API_KEY, PROMPTS_API_KEY or ENDPOINT_API_KEY)"
            raise ValueError(f"an endpoint's URL must read http(s)://host/path, without user or query; {key}")
        self.how, self.name = settings(how), model
        self.retries = self.how.retries
        self.endpoint = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        sent = ("temperature", "top_p", "max_tokens", "reasoning_effort")
        self.params = {key: value for key in sent if (value := getattr(self.how, key)) is not None}
        self.budget = math.inf if self.how.budget is None else self.how.budget
        self.next_call, self.reserved, self.out_of_budget = 0.0, 0.0, False
        self._connect(url.partition("://")[0].lower(), api_key.strip())
        self.store = Store(cache, run)
        self.ledger, self.counts, self.last_error = self.store.ledger, Counter(), ""
        # A mode is changed by find_mode alone: a text that a server dislikes says nothing about forms.
        self.schema_mode, self.token_field, self.spared = SCHEMA_MODES[0], "max_tokens", set()
        self.lock, self.slots = threading.Condition(), threading.Semaphore(self.how.in_flight)
        self.closed, self.pending = Future(), WeakValueDictionary()  # {key: future}, while somebody waits
        # More threads than slots, so that a question that waits for its retry holds up no other.
        self.pool = ThreadPoolExecutor(4 * self.how.in_flight)

    def _connect(self, scheme: str, key: str):
        """The HTTP session. Closures hold the key: no repr, dump or traceback of this object shows it."""
        if not re.fullmatch(r"[!-~]*", key):
            raise ValueError("the API key holds spaces or characters that no header can carry; set it again")

        def sign(request):
            if key:
                request.headers["Authorization"] = f"Bearer {key}"
            return request

        self._scrub, self.session = scrubber(key), requests.Session()
        self.session.auth = sign  # without one requests would look for a key in ~/.netrc
        # Plain http goes straight to its host: a proxy would read the key and the texts, and a local server
        # is not behind it.
        self.session.trust_env = scheme == "https"
        self.session.mount(f"{scheme}://", requests.adapters.HTTPAdapter(pool_maxsize=self.how.in_flight))

    def answer(self, identity: list, draw: int, messages: list, schema: dict, read) -> Future:
        """Future of read(JSON answer), or of None; `read` checks the answer and raises Fault. `identity`
        names the question: the same one, of the same model with the same parameters, is paid for once.
        Another `draw` of it is another answer."""
        identity = [identity, draw, self.endpoint, self.name, self.params, self.how.seed]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self._submit(Task(messages, schema, read, key, draw))

    def complete(self, messages: list[dict], params: dict, spare: tuple[str, ...] = ()) -> Future:
        """Future of a Completion, or of None. params go beside the endpoint's own or replace them; those
        named in `spare` are left out for a server that refuses them as unknown. Not kept in the store."""
        return self._submit(Task(messages, params=params, spare=spare))

    def _submit(self, task: Task) -> Future:
        with self.lock:
            if self.closed.done():
                return known(None)
            future = self.pending.get(task.key)  # asked twice at the same time, bought once
            if future is None or future.done():  # who asks again after a None buys anew
                kept = self.store.get(task.key) if task.key else None
                future = self.pool.submit(self._obtain, task) if kept is None else known(kept)
            if task.key:
                self.pending[task.key] = future
            return future

    def find_mode(self, ask: Callable[[], Future]) -> bool:
        """Whether `ask()`, in one schema mode after the other, brings an answer; the first mode in which it
        does is kept. Nothing else may be asked meanwhile."""
        self.retries = 2  # few: whoever started the program waits
        for self.schema_mode in SCHEMA_MODES:
            said, reason = ask().result(), self.last_error.partition(":")[0]
            if said or reason not in NO_MODE:
                break
            if reason == "http_500":  # might have been bad luck, so the first mode was tried three times
                self.retries = 0
        self.retries = self.how.retries
        if said:
            self.counts.clear()  # a mode that the server lacks is not an answer that is lost
        else:
            self.schema_mode = SCHEMA_MODES[0]
        return bool(said)

    def metrics(self) -> dict[str, float]:
        """The ledger and the counted reasons, named for the log; totals since the start."""
        faults = {f"judge/fault/{reason}": count for reason, count in sorted(self.counts.items())}
        return {f"judge/{name}": value for name, value in asdict(self.ledger).items()} | faults

    def close(self):
        """Stop now: what waits or is under way ends as None."""
        with self.lock:
            if not self.closed.done():
                self.closed.set_result(None)
        self.pool.shutdown(wait=False)
        self.session.close()

    def _obtain(self, task: Task):
        """A bought answer or None: each failed call counted, and repeated where that may help."""
        tried = 0
        while True:
            try:
                return self._buy(task)
            except Fault as error:
                fault = error
            # Times 0.5-1.5, so that calls which failed together do not return together.
            pause = fault.wait or min(30.0, BACKOFF * 2**tried) * random.uniform(0.5, 1.5)
            task.asked += fault.again == "ask"
            tried += fault.again == "retry"
            late = fault.again == "retry" and time.monotonic() + pause > task.ends
            over = late or fault.again == "no" or task.asked > 1 or tried > self.retries
            with self.lock:
                self.counts.update([fault.reason] + ["deadline"] * late + ["none"] * over)
            if over:
                self.last_error = str(fault)
                return None
            if fault.again == "retry":
                wait([self.closed], pause)

    def _buy(self, task: Task):
        """One call within the limits on money, pace and requests in flight."""
        tokens = task.size()
        price = self._reserve(self._dollars(*tokens))
        try:
            # Calls are spaced evenly under the limits per minute (0: no limit).
            amounts = zip((1, sum(tokens)), self.how.per_minute)
            cost = max((60 * amount / limit for amount, limit in amounts if limit > 0), default=0.0)
            with self.lock:
                start = self.next_call = max(time.monotonic(), self.next_call)
                self.next_call += cost
            wait([self.closed], max(0.0, start - time.monotonic()))
            with self.slots:
                task.ends = min(task.ends, time.monotonic() + self.how.deadline)
                return self._call(task)
        finally:
            with self.lock:  # the bill has come
                self.reserved -= price
                self.lock.notify_all()

    def _reserve(self, guess: float) -> float:
        """-> the likely price of a call, set aside. Raises Fault("budget")."""
        with self.lock:
            price = max(guess, self.ledger.dollars / max(1, self.ledger.calls))
            # Calls under way may cost less than was set aside for them: wait for their bills first.
            while self.ledger.dollars + self.reserved + price > self.budget and self.reserved > 1e-12:
                self.lock.wait(0.1)
            if self.ledger.dollars + price > self.budget:
                self.out_of_budget = True
                raise Fault("budget", "no", f"${self.ledger.dollars:.2f} of ${self.budget:.2f} spent")
            self.reserved += price
            return price

    def _call(self, task: Task):
        """The exchange in a thread that can be abandoned: socket time limits restart with every byte, the
        clock of a question does not. An abandoned call that still comes back is billed and stored: it is paid
        for."""
        answer, left = Future(), task.ends - time.monotonic()

        def exchange():
            try:
                answer.set_result(self._exchange(task))
            except Exception as error:
                answer.set_exception(error)

        if not self.closed.done() and left > 0:
            threading.Thread(target=exchange, daemon=True).start()
            wait([answer, self.closed], left, FIRST_COMPLETED)
        if self.closed.done():
            raise Fault("cancelled", "no")
        if not answer.done():
            raise Fault("deadline", "no", f"no answer within {self.how.deadline:g} s")
        return answer.result()

    def _exchange(self, task: Task):
        """One request -> one checked answer, billed and stored. Raises Fault."""
        body = self._body(task)
        status, headers, data = self._post(body)
        if status != 200:
            raise self._refused(task, body, status, headers, data)
        completion = read_completion(data, self._scrub)
        value = None
        try:
            completion.check(whole=bool(task.schema))
            value = task.read(find_json(completion.text)) if task.schema else completion
            return value
        finally:  # a useless answer is paid for like a good one
            tokens = completion.prompt_tokens, completion.tokens
            if not all(isinstance(t, int) and t >= 0 for t in tokens):  # the server does not say
                tokens = task.size()[0], len(completion.text) // 4
                with self.lock:
                    self.counts["tokens_guessed"] += 1
            self.store.record(self.name, tokens, self._dollars(*tokens), task.key, value)

    def _body(self, task: Task) -> dict:
        body = {"model": self.name, "messages": task.messages, **self.params, **task.params}
        for name in self.spared.intersection(task.spare):
            body.pop(name, None)
        if "max_tokens" in body:  # an answer that was cut gets more room
            body[self.token_field] = body.pop("max_tokens") * (1 + task.asked)
        if self.how.seed is not None:  # the same seed would fail the same way
            body["seed"] = self.how.seed + task.draw + 1000 * task.asked
        if task.schema and (form := response_format(self.schema_mode, task.schema)):
            body["response_format"] = form
        return body

    def _post(self, body: dict) -> tuple[int, dict, bytes]:
        """-> status, headers and body without any part of the key. Raises Fault."""
        try:
            # No redirect is followed: it would carry the texts, and perhaps the key, to another host.
            how = {"timeout": self.how.timeouts, "allow_redirects": False}
            with self.session.post(self.endpoint, json=body, **how) as got:
                headers = {name: self._scrub(value) for name, value in got.headers.items()}
                return got.status_code, headers, self._scrub(got.content.decode("latin-1")).encode("latin-1")
        except requests.RequestException as error:
            broken = isinstance(error, (exceptions.ChunkedEncodingError, exceptions.ContentDecodingError))
            slow = isinstance(error, requests.Timeout) or "timed out" in str(error)
            # What urllib3 gave up on; its kind alone: the words of an exception may quote what was sent.
            cause = getattr(error.args[0], "reason", error) if error.args else error
            reason = "broken_stream" if broken else "timeout" if slow else "connection"
            raise Fault(reason, "retry", type(cause).__name__) from None

    def _refused(self, task: Task, body: dict, status: int, headers: dict, data: bytes) -> Fault:
        """What a status other than 200 means: again without a field, later, or the end."""
        said, pause = f"HTTP {status}: {data[:200].decode('utf-8', 'replace').strip()}", 0.0
        if status == 400 and b"max_completion_tokens" in data and "max_tokens" in body:
            self.token_field = "max_completion_tokens"  # newer OpenAI models refuse the older name
            return Fault("token_field", "now", said)
        if status in (400, 422) and (names := [n for n in task.spare if n in body and n.encode() in data]):
            self.spared.update(names)
            return Fault(f"no_{names[0]}", "now", said)
        if 300 <= status < 400:
            to = headers.get("Location", "?")[:100]
            return Fault("redirect", "no", f"HTTP {status} to {to}: give that address as the URL")
        with suppress(InvalidHeader):
            pause = max(0.0, Retry().parse_retry_after(headers.get("Retry-After", "0")))
        return Fault(f"http_{status}", "retry" if status in RETRY_STATUS else "no", said, pause)

    def _dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.how.price[0] + tokens_out * self.how.price[1]) / 1e6


def known(value) -> Future:
    future = Future()
    future.set_result(value)
    return future


class Later:
    """What becomes of several answers: combine(results), made when it is asked for."""

    def __init__(self, futures: list[Future], combine: Callable[[list], object]):
        self.futures, self.combine = futures, combine

    def result(self):
        return self.combine([future.result() for future in self.futures])
