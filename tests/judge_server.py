"""A judge on loopback that behaves as it is told: used by the fault tests, also as a process of its own."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from judge import RUBRIC
from lib import endpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No judge in the environment, and no long waits. Tests import it."""
    monkeypatch.setattr(endpoint, "BACKOFF", 0.02)
    for name in ("JUDGE_URL", "JUDGE_MODEL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


QUOTE = "the lamp went out"
STORY = "It was late and the lamp went out. She lit it again."


def answer(change=None, rubric=RUBRIC) -> str:
    """A verdict in good form: half of everything, each with a quote that STORY has."""
    verdict = {
        d.key: {"why": "so", "quotes": [QUOTE], "score": (d.low + d.high) // 2} for d in rubric.dimensions
    }
    if change:
        change(verdict)
    return json.dumps(verdict)


def say(text, finish="stop", **message):
    """Behaviour: a chat completion whose content is `text`."""
    body = json.dumps(
        {
            "choices": [
                {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
            ],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 500},
        }
    ).encode()
    return lambda handler: raw(handler, 200, body)


def status(code, body=b"no", **headers):
    return lambda handler: raw(handler, code, body, **{k.replace("_", "-"): v for k, v in headers.items()})


def reset(handler):
    """Behaviour: the connection ends with RST, without a word."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.close_connection = True


def raw(handler, code, body, **headers):
    handler.send_response(code)
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **headers,
    }.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


class Server:
    """behave(body, number of the call) -> a function that answers on the handler. Keeps every body and
    header."""

    def __init__(self, behave, latency=0.0):
        self.calls, self.headers, self.lock, outer = [], [], threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.calls.append(body)
                    outer.headers.append(dict(self.headers))
                    number = len(outer.calls)
                time.sleep(latency)
                with suppress(OSError):  # the client is gone
                    behave(body, number)(self)

            do_GET = do_POST

        class Quiet(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, *_):
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
