"""The pages in a real browser: an evaluation's, a run's, several runs', and one that follows a run."""

import csv
import http.client
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_eval import ROOT, TRAP, Server, code, prompts

import data
import eval as evaluation
import judge as judging
from lib import metrics, pages
from scripts import report as shown
from scripts import watch

TITLES = {d.key: d.title for d in judging.RUBRIC.dimensions}


def look(browser, path, width=1300, height=900, dark=False):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(path.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("SCREENSHOTS"):
        tall = browser.execute_script("return document.documentElement.scrollHeight")
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": min(tall, 3000), "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.save_screenshot(f"{folder}/{path.parent.name}-{width}{'-dark' * dark}.png")


def quiet(browser):
    """No console message, and no request but for the page itself."""
    assert browser.get_log("browser") == []
    sent = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert all(u.startswith(("file:", "data:", "about:")) for u in urls), urls


STORY = (
    "The bell-ringer “Old Tam” climbed at dawn.\n\nHe counted   the steps, and the steps\ncounted him. "
    "It was, in the end, a journey of discovery. "
    "Below, the town slept on.\n\n" + TRAP + " __DATA__ done."
)


def test_the_report_in_a_browser(tmp_path, browser):
    (tmp_path / "report").mkdir()

    def reply(body, number):
        text = body["messages"][-1]["content"]
        if "STORY" not in text:
            return STORY if body["model"] == "poet" else "It rained. " * 20
        answer = {
            d.key: {"why": f"because <i>{d.key}</i>", "quotes": [], "score": d.low}
            for d in judging.RUBRIC.dimensions
        }
        answer["P4"] |= {"quotes": ["Old Tam climbed at dawn"], "score": 12}
        answer["P5"] |= {"quotes": ["counted the steps, and the STEPS counted him."], "score": 11}
        answer["N9"] |= {"quotes": ["a journey of discovery", "never written at all"], "score": 4}
        return json.dumps(answer)

    server = Server(reply)
    file = prompts(tmp_path / "p.jsonl", 3, text=" " + TRAP)
    assert (
        code(
            evaluation.main,
            [
                "--endpoint",
                server.url,
                "--model",
                "poet",
                "rain",
                "--prompts",
                str(file),
                "--lengths",
                "20",
                "40",
                "90",
                "--samples",
                "2",
                "--out",
                str(tmp_path / "report"),
                "--judge_url",
                server.url,
                "--judge_model",
                "reader",
            ],
        )
        == 0
    )
    page = tmp_path / "report" / "report.html"
    assert "<img" not in page.read_text() and page.read_text().count("<script") == 2
    for width, dark in ((390, False), (1300, True), (1300, False)):
        look(browser, page, width, dark=dark)
        assert browser.execute_script("return window.trapped") is None
    assert browser.title == "How good, how long"

    def paper():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = paper()
    look(browser, page, dark=True)
    assert paper() != light

    def find(css):
        return browser.find_elements("css selector", css)

    assert [p.text for p in find(".pane h3")] == ["poet, story 1", "rain, story 1"]
    assert TRAP in find(".story")[0].get_property("textContent") and TRAP in find(".request")[0].get_property(
        "textContent"
    )
    marks = {
        m.get_property("textContent"): (m.get_attribute("class"), m.get_attribute("title"))
        for m in find("mark")
    }
    assert marks == {
        "Old Tam” climbed at dawn": ("good", f"{TITLES['P4']}: because <i>P4</i>"),
        "a journey of discovery": ("bad", f"{TITLES['N9']}: because <i>N9</i>"),
        "counted   the steps, and the steps\ncounted him": ("good", f"{TITLES['P5']}: because <i>P5</i>"),
    }
    find(".pane summary")[0].click()
    lost = find(".pane:first-child q.lost")
    assert [q.get_property("textContent") for q in lost] == ["never written at all"]
    assert (
        len(find("figure")) == 2
        and find("figure svg polyline")
        and not find(".pane img, .story b, .request b, main script, .pane i")
    )
    find("button.side")[5].click()
    assert [p.text for p in find(".pane h3")] == ["poet, story 1", "rain, story 1"]
    find("button.side")[2].click()
    assert [p.text for p in find(".pane h3")] == ["poet, story 2", "rain, story 1"]
    before = find(".request")[0].text
    find("button[aria-label='next prompt']")[0].click()
    assert find(".request")[0].text != before
    browser.execute_script(
        "const s = document.getElementById('step'); s.selectedIndex = 2; s.dispatchEvent(new Event('change'))"
    )
    assert "90 words long" in find(".request")[0].text
    quiet(browser)


def test_stories_are_found_sorted_and_linked(tmp_path, browser):
    def reply(body, number):
        words = int(re.search(r"(\d+) words long", body["messages"][0]["content"])[1])
        return f"Story {number}. " + ("The lighthouse fell silent. " if number == 3 else "It rained on. ") * (
            words // number
        )

    server = Server(reply)
    argv = [
        "--endpoint",
        server.url,
        "--model",
        "m",
        "--prompts",
        str(prompts(tmp_path / "p.jsonl", 4)),
        "--in_flight",
        "1",
    ]
    assert code(evaluation.main, [*argv, "--lengths", "40", "80", "--out", str(tmp_path / "o")]) == 0
    page = tmp_path / "o" / "report.html"
    look(browser, page)

    def find(css):
        return browser.find_elements("css selector", css)

    def panes():
        return [p.text.split("\n")[0] + p.text.split("\n\n")[0][-9:] for p in find(".pane .story")]

    shown = len(find("#group option"))
    find("#search")[0].send_keys("lighthouse")
    assert shown == 4 and len(find("#group option")) == 1 and "lighthouse" in find("main")[0].text
    assert find(".pick .notes")[0].text == "1 of 4 prompts"
    find("#search")[0].clear()
    find("#search")[0].send_keys(" ")
    assert len(find("#group option")) == 4
    names = [o.get_attribute("value") for o in find("#sort option")]
    choose(browser, "sort", names.index("words, lowest first"))
    words = [int(tr.find_elements("tag name", "td")[3].text) for tr in find(".request + .scroll tbody tr")]
    assert words == sorted(words)
    choose(browser, "step", 1)
    choose(browser, "group", 2)
    find("button.side")[3].click()
    there, link = (find(".request")[0].text, panes()), browser.current_url
    assert "#part=80+words&text=2" in link
    browser.get("about:blank")
    browser.get(link)
    assert (find(".request")[0].text, panes()) == there
    quiet(browser)


def test_the_words_of_the_verdict_are_those_of_the_intervals():
    def figure(mean, low, high):
        return {"mean": mean, "interval": [low, high], "prompts": 40}

    def model(change):
        return {
            "ratio": {"300": figure(1, 0.9, 1.1), "900": figure(0.72, 0.6, 0.8)},
            "quality": {"900": figure(40, 35, 45), "change": change},
        }

    report = {"buckets": {"300": 300.0, "900": 900.0}, "judged": "quality"}
    nothing = {"mean": None, "interval": None, "prompts": 0}
    changes = {"a": figure(-13, -17, -9), "b": figure(3, -2, 8), "c": nothing}
    report["figures"] = {name: model(change) for name, change in changes.items()}
    said = "writes 0.72 [0.60, 0.80] of what is asked, with a quality of 40.0 [35.0, 45.0]"
    where = "At 900 words, 3 x the shortest length"
    assert shown.sentences(report) == [
        f"{where}, a {said}; it changes against 300 words (-13.0 [-17.0, -9.0]).",
        f"{where}, b {said}; it does not clearly change against 300 words (3.0 [-2.0, 8.0]).",
        f"{where}, c {said}.",
    ]


def test_figures_as_csv_and_rows_of_zeros_folded(tmp_path):
    server = Server(lambda body, number: "It rained. " * (number + 3))
    argv = [
        "--endpoint",
        server.url,
        "--model",
        "m",
        "--prompts",
        str(prompts(tmp_path / "p.jsonl", 3)),
        "--out",
        str(tmp_path / "o"),
    ]
    assert code(evaluation.main, [*argv, "--lengths", "20", "40"]) == 0
    report = json.loads((tmp_path / "o/report.json").read_text())
    with open(tmp_path / "o/report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(shown.METRICS) * len(report["columns"])
    for row in rows:
        figure = report["figures"][row["model"]][row["metric"]][row["words requested"]]
        assert row["mean"] == ("" if figure["mean"] is None else str(figure["mean"]))
        assert [row["low"], row["high"]] == [str(x) for x in figure["interval"] or ("", "")]
    [table] = [t for t in shown.page_of(report, {})["tables"] if t["title"] == "m"]
    assert table["caption"].startswith("0 at every length: ") and "truncated" in table["caption"]
    assert not {"truncated", "empty"} & {row[0] for row in table["rows"]}


def a_run(folder, steps=14):
    """What train.py leaves, with a trap in a story and one row whose judge failed."""
    metrics = []
    for step in range(steps):
        rng, episodes = random.Random(step), []
        for p in range(3):
            example = data.Example(
                f"p{p}", f"Write about a lamp {p}. It should be 60 words long.", 60, story="A human story."
            )
            for g in range(6):
                human = g == 5
                text = (
                    "A lamp by a person."
                    if human
                    else f"Lamp {g} at step {step}. " * rng.randint(2, 9) + (TRAP if g == 0 else "")
                )
                reward = None if (step, p, g) == (3, 1, 1) else rng.gauss(0.2 + step / 30, 0.2)
                verdict = {
                    "scores": {"P1": 9.0, "N3": 2.0},
                    "score": 20.0,
                    "why": {"N3": "generic"},
                    "quotes": {"N3": ["at step"]},
                }
                episodes.append(
                    data.Episode(
                        example,
                        [1],
                        [2],
                        None,
                        True,
                        human,
                        text,
                        {"quality": 0.3, "length": 0.1} if reward is not None else {},
                        reward,
                        0.0 if reward is None else reward - 0.3,
                        verdict if reward is not None else None,
                    )
                )
        data.write_examples(folder / "rollouts" / f"step_{step:06d}.jsonl", episodes)
        metrics.append(
            {
                "step": step,
                "reward/mean": 0.2 + step / 30 + rng.gauss(0, 0.05),
                "reward/quality": 0.3,
                "hri/weight": 0.4 * min(1, step / 10),
                "hri/advantage": None if step == 0 else 0.5,
                "deviation/mean": rng.random(),
                "judge/failed": 0,
                "length/ratio": 1 - step / 100,
                "length/in_band": 0.5,
                "mismatch/mean": 1e-5 * rng.random(),
                "loss": -0.01,
                "grad_norm": math.nan if step == 2 else 1.0,
                "judge/evidence": rng.random(),
            }
        )
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(m) + "\n" for m in metrics) + '{"step": 14, "rew'
    )
    return folder


def test_watch_in_a_browser(tmp_path, browser, capsys):
    folder = a_run(tmp_path / "run")
    assert code(evaluation.main, ["watch", str(folder)]) == 0
    page = folder / "report.html"
    assert str(page) in capsys.readouterr().out and page.read_text().count("<script") == 2
    for width, dark in ((390, False), (1300, True), (1300, False)):
        look(browser, page, width, dark=dark)

    def find(css):
        return browser.find_elements("css selector", css)

    cards = [c.text for c in find(".card")]
    assert [c.split("\n")[0] for c in cards] == [
        *list(watch.FIRST.values())[:2],
        "Quality / 100",
        "Failed verdicts",
    ]
    assert (
        cards[3].split("\n")[1] == "0 in 14 steps" and "from 0." in cards[0]
    )  # fourteen steps: first and last five
    charts = [f.text for f in find("figcaption")]
    assert charts == list(watch.FIRST.values())  # the rest is folded
    for fold in find("details.fold > summary"):
        fold.click()
    folded = {"hri/weight", "mismatch/mean", "length/ratio", "judge/evidence", "loss"}
    for _ in range(50):  # a fold draws its charts after the click
        if folded <= {f.text for f in find("figcaption")}:
            break
        time.sleep(0.1)
    assert folded <= {f.text for f in find("figcaption")}
    assert len(find("#step option")) == 14 and len(find("#group option")) == 3
    choose(browser, "step", 3)
    choose(browser, "group", 1)
    rows = [
        [td.text for td in tr.find_elements("tag name", "td")] for tr in find(".request + .scroll tbody tr")
    ]
    advantages = [float(row[2]) for row in rows]
    assert len(rows) == 6 and advantages == sorted(advantages, reverse=True)
    assert sum(row[0] == "reference" for row in rows) == 1
    assert sum(row[3] == "-" for row in rows) == 1  # the failed judge is no score
    find(".side")[2 * [row[3] != "-" and row[0] != "reference" for row in rows].index(True)].click()
    assert browser.execute_script("return window.trapped") is None and find("mark.bad")
    quiet(browser)


def choose(browser, name, index):
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.selectedIndex = arguments[1]; "
        "s.dispatchEvent(new Event('change'))",
        name,
        index,
    )


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def test_several_runs_by_keyboard_alone(tmp_path, browser):
    from selenium.webdriver.common.keys import Keys

    runs = [a_run(tmp_path / name) for name in ("plain", "<b>with<b>")]
    for run, hri in zip(runs, ("off", "polaris")):
        (run / "config.json").write_text(json.dumps({"hri": hri, "lr": 1e-3, "note": TRAP}))
    assert code(evaluation.main, ["watch", *map(str, runs)]) == 0
    assert (runs[0] / "runs.png").read_bytes().startswith(b"\x89PNG") and not (runs[1] / "runs.png").exists()
    look(browser, runs[0] / "report.html")

    def find(css):
        return browser.find_elements("css selector", css)

    assert [s.text for s in find("figure")[0].find_elements("css selector", ".legend span")] == [
        "plain",
        "<b>with<b>",
    ]
    differ = [
        [td.text for td in tr.find_elements("tag name", "td")] for tr in find("section table tbody tr")
    ][0]
    assert differ == ["hri", "off", "polaris"]
    reached, lines = set(), lambda: find("figure polyline")[1].get_attribute("points")
    before = lines()
    for _ in range(60):
        press(browser, Keys.TAB)
        at = browser.switch_to.active_element
        if at.get_attribute("id") == "log" and ("input", "log") in reached:
            break  # once around
        reached.add((at.tag_name, at.get_attribute("id")))
        if at.get_attribute("id") == "smooth":
            press(browser, Keys.ARROW_RIGHT)
            assert lines() != before
        elif at.get_attribute("id") == "log":
            press(browser, Keys.SPACE)
            assert browser.execute_script("return document.getElementById('log').checked")
        elif at.tag_name == "svg":
            press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
            [tip] = [t.text for t in find(".tip") if t.text]
            assert tip.startswith("step 12") and "plain" in tip and "<b>with<b>" in tip
        elif at.tag_name == "summary" and at.text.startswith("Settings"):
            press(browser, Keys.ENTER)
            assert TRAP in find("main")[0].text
    controls = {
        (None, "smooth"),
        (None, "log"),
        (None, "step"),
        (None, "group"),
        (None, "sort"),
        (None, "search"),
    }
    assert {name for _, name in controls} <= {name for _, name in reached}
    assert {"svg", "summary", "button"} <= {tag for tag, _ in reached}
    assert browser.execute_script("return window.trapped") is None and not find(
        "main b b, main img, .legend b"
    )
    quiet(browser)


def test_four_steps_have_no_first_and_last_five(tmp_path):
    page = watch.page_of([a_run(tmp_path / "run", steps=4)], [])
    assert all(v["more"] in ("step 3", "in 4 steps") for card in page["cards"] for v in card["values"])
    assert not any("last five" in note for note in page["notes"])


def test_who_wrote_the_reference_is_what_the_data_say(tmp_path):
    rows = []
    for uid, source in (("a", "The Lamp | Ada Byron | pg1.txt"), ("b", "written for this repository")):
        rows.append(
            data.Episode(data.Example(uid, uid, 1, "s", source=source), [], [], None, True, True, "s")
        )
    data.write_examples(tmp_path / "rows.jsonl", rows)
    labels = [group["items"][0]["label"] for group in watch.groups_of(tmp_path / "rows.jsonl", "", "form")]
    assert labels == ["reference, human: Ada Byron", "reference"]


# ---- a run that goes on


def served(process) -> str:
    line = process.stdout.readline()
    return re.match(r"(http://127\.0\.0\.1:\d+/) ", line)[1]


def start_following(run, port=0):
    command = [sys.executable, "-m", "scripts.watch", str(run), "--follow", "--port", str(port)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_is_followed_over_a_restart_of_the_server(tmp_path, browser):
    run = a_run(tmp_path / "run", steps=12)
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    (run / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    process = start_following(run)
    try:
        url = served(process)
        browser.get(url)

        def shows(text):
            for _ in range(100):
                if text in browser.find_element("id", "main").text:
                    return True
                time.sleep(0.1)
            return False

        assert shows("3 steps, 0 to 2") and shows("following")
        browser.execute_script("window.same = 1; document.getElementById('smooth').focus()")
        (run / "metrics.jsonl").write_text("\n".join(lines[:7]) + "\n")
        assert shows("7 steps, 0 to 6")
        process.kill()
        process.wait()
        assert shows("the server does not answer")
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        process = start_following(run, int(url.rstrip("/").rpartition(":")[2]))
        assert served(process) == url and shows("12 steps, 0 to 11")
        assert browser.execute_script("return window.same") == 1  # never reloaded: smoothing and place stay
        assert browser.switch_to.active_element.get_attribute("id") == "smooth"
        assert browser.execute_script("return window.trapped") is None
        browser.get("about:blank")
        browser.get_log("browser"), browser.get_log("performance")
    finally:
        process.kill()
        process.wait()


def test_what_is_followed_is_reachable_from_this_machine_alone(tmp_path):
    process = start_following(a_run(tmp_path / "run", steps=2))
    try:
        port = int(served(process).rstrip("/").rpartition(":")[2])
        listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
        bound = [
            line.split()[1]
            for line in listening.splitlines()[1:]
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        ]
        assert bound == [f"0100007F:{port:04X}"]
        for address in {
            info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        } - {"127.0.0.1"}:
            with pytest.raises(OSError):
                socket.create_connection((address, port), timeout=2).close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data?seen=") as answer:
            stamp = json.loads(answer.read())["stamp"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data?seen={stamp}") as answer:
            assert answer.status == 204
        line = http.client.HTTPConnection("127.0.0.1", port)
        line.request(
            "GET", "/", headers={"Host": f"elsewhere.example:{port}"}
        )  # a name that was made to point here
        assert line.getresponse().status == 403
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/../config.json")
    finally:
        process.kill()
        process.wait()


def test_watch_thins_what_does_not_fit_and_names_missing_steps(tmp_path, capsys, monkeypatch):
    folder = a_run(tmp_path / "run", steps=8)
    monkeypatch.setattr(watch, "PAGE_BYTES", 3 * (folder / "rollouts/step_000000.jsonl").stat().st_size)
    page = watch.page_of([folder], [])
    steps = list(dict.fromkeys(g["step"] for g in page["reader"]["groups"]))
    assert (
        2 <= len(steps) <= 4
        and steps[0] == "step 0"
        and steps[-1] == "step 7"
        and "--steps N" in page["notes"][-1]
    )
    assert {g["step"] for g in watch.page_of([folder], [4])["reader"]["groups"]} == {"step 4"}
    assert (
        code(evaluation.main, ["watch", str(folder), "--steps", "99"]) == 2
        and "no stories of step 99; there are those of steps 0 to 7" in capsys.readouterr().err
    )


def test_nothing_in_a_page_ends_its_script(tmp_path):
    pages.write_page(
        tmp_path / "x.html",
        {
            "title": TRAP + "<!--<script>\ud800",
            "notes": [],
            "warnings": [],
            "charts": [],
            "tables": [],
            "reader": {"groups": []},
        },
    )
    html = (tmp_path / "x.html").read_text()
    blob = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1]
    assert "<" not in blob and json.loads(blob)["title"].startswith(TRAP)
    assert (
        not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
        and "@import" not in html
        and "url(" not in html
    )


# ---- pictures


def test_runs_in_one_picture_are_smoothed_alike_and_named_beside_the_lines(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    long = [{"step": i, "b": float(i % 7)} for i in range(80)]
    short = [{"step": i, "a": 1.0 + i, "b": float(i * i)} for i in range(24)]
    metrics.plot({"long": long, "ax": short}, tmp_path / "x.png", {"a": "A", "b": "B"})
    [fig] = kept
    fig.canvas.draw()
    one, two, three = fig.axes
    for lines, line in ((long, two.lines[1]), (short, two.lines[3])):  # each pale, then its running mean
        y = [m["b"] for m in lines]
        assert list(line.get_ydata()) == pytest.approx(
            [np.mean(y[max(0, i - 9) : i + 1]) for i in range(len(y))]
        )
    [legend] = [ax.get_legend() for ax in fig.axes if ax.get_legend()]
    assert {text.get_text() for text in legend.get_texts()} == {"long", "ax"}
    box = legend.get_window_extent()
    assert all(box.x0 >= ax.get_window_extent().x1 for ax in fig.axes) and box.x1 <= fig.bbox.x1


def test_a_chart_names_its_lines_beside_them_and_shows_the_intervals_there_are(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    points = [pages.point(x, x * x, [x * x - 1, x * x + 1] if x > 1 else None) for x in (1, 2, 3)]
    ticks = {"ticks": [[1, "1"], [3, "3"]], "beyond": 2}
    pages.draw(tmp_path / "x.png", [pages.chart("n", "T", "x", {"m": points, "n": points[:2]}, **ticks)])
    kept[0].canvas.draw()
    [ax] = kept[0].axes
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1
    drawn = [[ends[:, 1].tolist() for ends in c.get_segments() if len(ends)] for c in ax.collections[:2]]
    assert drawn == [[[3, 5], [8, 10]], [[3, 5]]]
    grey = ax.patches[0]
    assert (grey.get_x(), grey.get_x() + grey.get_width()) == (2, 3)


# ---- every control of an evaluation's page, without a mouse


def test_the_report_by_keyboard_alone(tmp_path, browser):
    from selenium.webdriver.common.keys import Keys

    server = Server(lambda body, number: f"Story {number}. It rained on. " + TRAP)
    argv = ["--endpoint", server.url, "--model", "a", "b", "--prompts", str(prompts(tmp_path / "p.jsonl", 2))]
    assert code(evaluation.main, [*argv, "--lengths", "20", "40", "--out", str(tmp_path / "o")]) == 0
    look(browser, tmp_path / "o/report.html")
    for _ in range(80):
        press(browser, Keys.TAB)
        at = browser.switch_to.active_element
        if at.tag_name == "body" or at.get_attribute("data-reached"):
            break  # once around
        browser.execute_script("arguments[0].dataset.reached = 1", at)
        name = at.get_attribute("aria-label") or at.text.split("\n")[0]
        if at.tag_name == "summary" and name in ("All figures", "What the words mean"):
            press(browser, Keys.ENTER)
            assert browser.execute_script("return arguments[0].parentNode.open", at)
        elif name == "next prompt":
            before = browser.find_element("css selector", ".request").text
            press(browser, Keys.ENTER)
            assert browser.find_element("css selector", ".request").text != before
    what = "svg[role=img], select, input, button, summary, .scroll"
    seen = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length)"
        ".map(e => [e.outerHTML.slice(0, 80), !!e.dataset.reached])",
        what,
    )
    assert len(seen) > 15 and [html for html, reached in seen if not reached] == []
    assert browser.execute_script("return window.trapped") is None
    quiet(browser)
