"""Books from a mirror on loopback that is slow, cuts off, is busy, has lost a book or sends another one."""

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_anthologies import TITLES, contents_page, epub, gutenberg, page, paragraphs, prose

from data import read_examples
from scripts.anthologies import fetch
from scripts.anthologies.__main__ import main

ROOT = Path(__file__).resolve().parent.parent


class Mirror(BaseHTTPRequestHandler):
    """Serves `server.files`; misbehaves once for each path in `server.faults`: cut, slow, busy."""

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, time.monotonic()))
        data, fault = server.files.get(self.path.split("?")[0]), server.faults.pop(self.path, "")
        if data is None or fault == "busy":
            self.send_response(404 if data is None else 429)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(3 if fault == "slow" else 0)
            return
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.files, server.faults, server.seen = {}, {}, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def book(number: int) -> bytes:
    titles = [f"{t} of {'abcdefgh'[number // 11]}" for t in TITLES]
    tales = "\n\n\n\n\n".join(f"{t.upper()}\n\n\n{prose(10 * number + n)}" for n, t in enumerate(titles))
    return gutenberg(contents_page(titles) + tales, number).encode()


def table(folder: Path, rows: list[str]) -> str:
    path = folder / "catalogue.tsv"
    path.write_text("name\ttitle\tauthor\tyear\tfile\tsha256\n" + "\n".join(rows) + "\n")
    return str(path)


def arguments(mirror, catalogue: str, folder: Path) -> list[str]:
    where = ["--gutenberg", mirror.url, "--standard_ebooks", mirror.url, "--catalogue", catalogue]
    return ["fetch", "--out_dir", str(folder), *where, "--pause", "0"]


def test_slow_cut_and_busy_answers_are_tried_again(tmp_path, mirror, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 1)
    mirror.files = {f"/{n}/{n}{n}/{n}{n}-8.txt": book(11 * n) for n in (1, 2, 3)}
    mirror.faults = dict(zip(mirror.files, ("cut", "slow", "busy")))
    rows = [
        f"pg{n}{n}.txt\tT\tA\t1\t{n}{n}-8.txt\t{hashlib.sha256(book(11 * n)).hexdigest()}" for n in (1, 2, 3)
    ]
    main(arguments(mirror, table(tmp_path, rows), tmp_path / "books"))
    said = capsys.readouterr().out
    assert "3 books fetched now, 3 of 3" in said and "edition" not in said
    for n in (1, 2, 3):
        assert (tmp_path / f"books/pg{n}{n}.txt").read_bytes() == book(11 * n)
    assert Counter(path for path, _ in mirror.seen) == dict.fromkeys(mirror.files, 2)
    busy = [at for path, at in mirror.seen if path == list(mirror.files)[2]]
    assert busy[1] - busy[0] >= 1, "Retry-After is kept"
    mirror.seen.clear()
    main(arguments(mirror, table(tmp_path, rows), tmp_path / "books"))
    assert mirror.seen == [], "what is here is not asked for again"


def test_what_is_gone_is_skipped_and_what_is_wrong_is_refused(tmp_path, mirror, capsys):
    other = book(22).replace(b"river", b"brook")
    mirror.files = {
        "/2/22/22-0.txt": other,  # whole, but not the catalogue's edition
        "/3/33/33-0.txt": b"<html>The catalogue of the mirror</html>",
        "/5/55/55.txt": book(55).split(b"End of")[0],  # cut short on the mirror itself
        "/ebooks/ann-author/tales/downloads/ann-author_tales.epub": epub({"a.xhtml": page(paragraphs(1))}),
        "/ebooks/ann-author/torn/downloads/ann-author_torn.epub": b"<html>please log in</html>",
    }
    rows = [
        f"pg22.txt\tTwo\tA\t1\t22-0.txt\t{hashlib.sha256(book(22)).hexdigest()}",
        "pg33.txt\tThree\tA",
        "pg55.txt\tFive\tA",
    ]
    rows += ["pg66.txt\tSix\tA", "se_ann-author_tales.epub\tTales\tA", "se_ann-author_torn.epub\tTorn\tA"]
    with pytest.raises(SystemExit) as stop:
        main(arguments(mirror, table(tmp_path, rows), tmp_path / "books"))
    said = capsys.readouterr()
    assert stop.value.code == 2 and "3 books did not come; run the same command" in said.err
    assert "2 books fetched now, 2 of 6" in said.out and "gone, skipped: pg66.txt (Six)" in said.out
    assert "1 are not the catalogue's edition (another checksum, but whole): pg22.txt" in said.out
    assert "failed: pg33.txt (Three): cut short or another page" in said.out
    assert "failed: pg55.txt (Five)" in said.out and said.out.count("cut short") == 2
    assert "failed: se_ann-author_torn.epub (Torn): is no epub, or a damaged one" in said.out
    assert sorted(p.name for p in (tmp_path / "books").iterdir()) == ["pg22.txt", "se_ann-author_tales.epub"]
    # a book that is gone is not a failure
    main(arguments(mirror, table(tmp_path, [rows[0], rows[3]]), tmp_path / "books"))


def test_make_stories_from_an_empty_folder(tmp_path, mirror):
    for name in ("scripts", "lib", "stories", "data.py", "deviation.py", "Makefile", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    mirror.files = {f"/{n}/{n}{n}/{n}{n}-0.txt": book(11 * n) for n in range(1, 5)}
    catalogue = table(tmp_path, [f"pg{n}{n}.txt\tT{n}\tA" for n in range(1, 6)])
    options = f"--catalogue {catalogue} --standard_ebooks= --pause 0"
    settings = [f"PY={sys.executable}", f"MIRROR={mirror.url}", f"FETCH={options}"]
    command = ["make", "stories", "-o", ".venv/.installed", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 books fetched now, 4 of 5" in done.stdout and "gone, skipped: pg55.txt" in done.stdout
    train, held = (
        read_examples(tmp_path / "out/stories.jsonl"),
        read_examples(tmp_path / "out/held_out.jsonl"),
    )
    assert len(held) == 5 and train and "stories from" in done.stdout
    assert not {e.source.split(" | ")[-1] for e in train} & {e.source.split(" | ")[-1] for e in held}


def test_the_catalogue_is_whole():
    rows = fetch.catalogue()
    assert len(rows) == 100 == len({r["name"] for r in rows})
    assert all(fetch.addresses(r, "http://a", "http://b") for r in rows)
    assert all(re.fullmatch(r"[0-9a-f]{64}", r["sha256"]) for r in rows if r["name"].startswith("pg"))
    assert fetch.addresses({"name": "pg2814.txt"}, "http://a/", None)[0] == "http://a/2/8/1/2814/2814-0.txt"
    assert fetch.addresses({"name": "pg2814.txt", "file": "2814-8.txt"}, "http://a", None)[0].endswith(
        "2814-8.txt"
    )
    epub_at = fetch.addresses({"name": "se_saki_short-fiction.epub"}, None, "http://b")[0]
    assert epub_at.startswith("http://b/ebooks/saki/short-fiction/downloads/saki_short-fiction.epub")


def test_no_mirror_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fetch", "--out_dir", str(tmp_path), "--gutenberg", "", "--standard_ebooks", ""])
    assert stop.value.code == 2 and "no mirror" in capsys.readouterr().err


def test_a_mirror_in_the_default_layout_gives_the_books_of_the_default_catalogue(tmp_path, mirror, capsys):
    mirror.files = {
        "/2/8/1/2814/2814-0.txt": gutenberg("Dubliners", 2814).encode(),
        "/1/2/1/1210/1210-h/1210-h.htm": gutenberg("<html><body>Kwaidan", 1210).encode(),
        "/cache/epub/20380/pg20380.txt": gutenberg("Ten Tales", 20380).encode(),  # its last place
        "/ebooks/saki/short-fiction/downloads/saki_short-fiction.epub": epub({"a.xhtml": page("Saki")}),
    }
    where = ["--gutenberg", mirror.url + "/", "--standard_ebooks", mirror.url]
    main(["fetch", "--out_dir", str(tmp_path), *where, "--pause", "0"])
    said = capsys.readouterr().out
    assert "4 books fetched now, 4 of 100" in said and said.count("gone, skipped:") == 96
    names = {"pg2814.txt", "pg1210.htm", "pg20380.txt", "se_saki_short-fiction.epub"}
    assert {p.name for p in tmp_path.iterdir()} == names
    asked = [path for path, _ in mirror.seen if "20380" in path]
    files = [f"/2/0/3/8/20380/20380{end}.txt" for end in ("-8", "-0", "")]
    assert asked == [*files, "/cache/epub/20380/pg20380.txt"], "the catalogue's own file first"
