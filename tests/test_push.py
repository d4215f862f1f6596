"""The model card in a checkpoint's folder, and --push to a hub on loopback."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from test_runs import go, model  # noqa: F401  (fixtures)

from lib import huggingface

TOKEN = "hf_aVeryPrivateToken"


class Hub(BaseHTTPRequestHandler):
    """The calls that huggingface_hub makes for an upload; what `refuse` names gets its status."""

    def do_GET(self):
        self.answer({})  # asked where a call was refused: is the repository there?

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "preupload" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
            )
        elif "commit" in self.path and "commit" not in self.server.refuse:
            rows = [json.loads(line) for line in body.splitlines()]
            files = [row["value"] for row in rows if row["key"] == "file"]
            self.server.files |= {f["path"]: base64.b64decode(f["content"]) for f in files}
            self.answer({"commitUrl": self.here() + "/commit/1", "commitOid": "1", "hookOutput": ""})
        elif "repos/create" not in self.path:  # a commit that is refused; the check of a card's head
            self.answer({"errors": [], "warnings": []})
        else:
            self.server.created.append(json.loads(body))
            self.answer({"url": self.here()})

    def here(self):
        return f"http://127.0.0.1:{self.server.server_port}/me/stories"

    def answer(self, value):
        self.server.tokens.add(self.headers.get("Authorization"))
        refused = [status for part, status in self.server.refuse.items() if part in self.path]
        body = json.dumps({"error": f"no, {TOKEN}"} if refused else value).encode()
        self.send_response(refused[0] if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created, server.tokens, server.refuse = {}, [], set(), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_the_last_checkpoint_is_pushed_with_card_without_secrets(go, hub, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("JUDGE_API_KEY", "sk-anotherSecret")
    run = go("--steps", 2, "--push", "me/stories", "--judge_url", "http://inner.example/v1")
    assert "pushed step_000002 to http://127.0.0.1" in capsys.readouterr().out
    folder = run / "checkpoints/step_000002"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files)
    assert not any(name.startswith("state") or name == "trainer.json" for name in hub.files)
    assert hub.files["README.md"] == (folder / "README.md").read_bytes()
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.created and all(repo["visibility"] == "private" for repo in hub.created)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    for secret in (TOKEN, "sk-anotherSecret", "inner.example", str(run.parent)):
        assert not any(secret in text.decode() for name, text in hub.files.items() if name == "README.md")


def test_a_failed_push_loses_nothing_and_is_made_good_by_a_resume(go, hub, capsys):  # noqa: F811
    hub.refuse["commit"] = 403
    run = go("--steps", 2, "--push", "me/stories", code=2)
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: --push me/stories: ") and "nothing is lost" in err and TOKEN not in err
    assert (run / "checkpoints/step_000002/state").is_dir() and not hub.files
    hub.refuse.clear()
    go("--steps", 2, "--push", "me/stories", "--resume", "auto")
    assert "model.safetensors" in hub.files


@pytest.mark.parametrize(
    "repo, refuse, said",
    [
        ("me/stories", {"api": 401}, "check the name, the network and the token"),
        ("stories", {}, "give owner/name"),
        ("me/with blank", {}, "check the name"),
    ],
)
def test_what_can_be_known_is_said_before_training_starts(go, hub, capsys, repo, refuse, said):  # noqa: F811
    hub.refuse |= refuse
    run = go("--push", repo, code=2)
    err = capsys.readouterr().err.splitlines()[-1]
    assert said in err and err.startswith("error: ") and TOKEN not in err and not run.exists()


def test_no_token_and_no_network_are_one_sentence_each(go, hub, capsys, monkeypatch, tmp_path):  # noqa: F811
    from huggingface_hub import constants

    hub.shutdown()
    hub.server_close()
    run = go("--push", "me/stories", code=2)
    assert "the network" in capsys.readouterr().err and not run.exists()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    run = go("--push", "me/stories", code=2)
    err = capsys.readouterr().err
    assert "Token is required" in err and "hf auth login" in err
    assert not run.exists()


def made(folder, source, steps, facts, names, **settings):
    """The text of a card that huggingface.write_card makes."""
    settings = {"model": "Qwen/Qwen3.5-9B", "name": "r", "lr": 1e-6, "watch": {}} | settings
    lines = [json.dumps({"step": i, "reward/mean": i / 10, "length/words": None}) for i in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    huggingface.write_card(folder, settings, source, facts, folder / "metrics.jsonl", names)
    return (folder / "README.md").read_text()


def test_the_card_says_what_the_run_was(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\nlicense: mit\n")
    facts = {"data": "a.jsonl, 7 examples", "judge": "gpt"}
    text = made(tmp_path, base, 12, facts, {"reward": "reward/mean", "words": "length/words"})
    head = text.split("---\n")[1]
    assert "license: apache-2.0" in head and "base_model: Qwen/Qwen3.5-9B" in head
    for row in ("| data | a.jsonl, 7 examples |", "| judge | gpt |", "| lr | 1e-06 |"):
        assert row in text
    assert re.search(r"\| reward \| 0.200 \| 0.900 \|", text) and "words" not in text
    text = made(tmp_path, tmp_path / "none", 9, {}, {"reward": "reward/mean"})
    assert "last five" not in text and "license:" not in text and "name none" in text


def test_nothing_in_a_card_is_markup(tmp_path):
    trap = "a|b\n---\nlicense: mit\n# x <img src=x onerror=alert(1)> [y](http://x)"
    text = made(
        tmp_path,
        tmp_path / "none",
        1,
        {"data": trap},
        {},
        name=trap,
        judge_model=trap,
        model="o/n\nlicense: x",
    )
    assert "<" not in text and "](" not in text and text.count("\n---\n") == 1
    assert "license:" not in text.split("\n---\n")[0]
    assert all(line.count("|") == 3 for line in text.splitlines() if line.startswith("|"))


def test_the_demo_has_a_licence():
    assert huggingface.front_matter(ROOT / "stories/tiny-base", "license") == "mit"
    assert huggingface.fetch(ROOT / "stories/tiny-base").is_dir()
