"""The blinded study: statistics against independent computations, refusals, the page in a real browser."""

import itertools
import json
import random
import re
import shutil
import time

import numpy as np
import pytest

from lib import stats
from scripts import blind, calibrate

BASE, TUNED = "zephyr-base", "quokka-tuned"
TRAP = "</script><script>window.trapped = 1</script><img src=x onerror='window.trapped = 1'><b>bold</b>"


def run(argv) -> int:
    """The code with which `python -m scripts.blind` ends."""
    try:
        return blind.main(argv) or 0
    except SystemExit as end:
        return end.code


WORDS = "rain fell over the harbour while Marta counted boats and “waited”; nobody — nobody! — came"


def stories(path, prompts=14, per_prompt=1, text="", target=lambda i: (300, 900, 1500, 3000)[i % 4]):
    rng, rows = random.Random(path.name), []
    for i, _ in itertools.product(range(prompts), range(per_prompt)):
        body = "\n\n".join(" ".join(rng.choices(WORDS.split(), k=30)) for _ in range(4))
        prompt = f"Prompt {i}: a story of {target(i)} words.{text}"
        rows.append({"uid": f"u{i}", "prompt": prompt, "target_words": target(i), "story": body + text})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(out, pairs, names="x", more="") -> list[str]:
    return f"--out {out} --annotators {names} --pairs {pairs} {more}".split()


@pytest.fixture
def study(tmp_path):
    """study(...) -> (folder, key), made through the command line."""

    def build(pairs=12, checks=2, per_prompt=1, text="", more=()):
        files, out = [tmp_path / f"{name}.jsonl" for name in (BASE, TUNED)], tmp_path / "study"
        files = [str(stories(file, per_prompt=per_prompt, text=text)) for file in files]
        flags = arguments(out, pairs, "ann1 ann2", f"--checks {checks}")
        assert run(["make", *files, *flags, *more]) == 0
        return out, json.loads((out / "key.json").read_text())

    return build


def page_data(path):
    data = r'<script type="application/json" id="data">(.*?)</script>'
    return json.loads(re.search(data, path.read_text(), re.S).group(1))


def answer(path, key, name, choose, ratings=lambda sides: {}, skip=(), seconds=60):
    """Writes what the page would download; choose(pair, sides) gives A, tie or B."""
    items = page_data(path.parent / f"{name}.html")["items"]
    secret, answers = key["pages"][name]["items"], []
    for i in (item["id"] for item in items if item["id"] not in skip):
        said = {"id": i, "choice": choose(key["pairs"][i], secret[i]), "ratings": ratings(secret[i]["sides"])}
        answers.append(said | {"reason": "because “é” 🦘", "ms": 1000 * seconds})
    body = {"study": key["study"], "annotator": name, "page": blind.digest(items), "answers": answers}
    path.write_text(json.dumps({**body, "sha256": blind.digest(body)}, indent=1))
    return path


def prefer(model, tie_uids=()):
    def choose(pair, item):
        if "expected" in item:
            return item["expected"]
        return "tie" if pair["uid"] in tie_uids else "AB"[item["sides"].index(model)]

    return choose


def reported(out, *files):
    code = run(f"report --key {out}/key.json --out {out}/report.json".split() + [str(file) for file in files])
    return code, json.loads((out / "report.json").read_text()) if code == 0 else None


def judgements(out):
    return [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]


# ---- statistics against independent computations


def test_bootstrap_covers_95_percent_in_simulation():
    rng, hits, runs, truth = np.random.default_rng(0), 0, 500, 0.4 + 0.5 * 0.2
    for run in range(runs):  # 60 prompts, wins 40 %, ties 20 %
        scores = rng.choice([1.0, 0.5, 0.0], p=[0.4, 0.2, 0.4], size=60)
        found = stats.bootstrap({str(i): [s] for i, s in enumerate(scores)}, resamples=1000, seed=run)
        hits += found["interval"][0] <= truth <= found["interval"][1]
    assert 0.925 <= hits / runs <= 0.975  # 95 % within 2.6 standard errors


def test_bootstrap_takes_prompts_as_units():
    many = {f"u{i}": [i % 2] * 50 for i in range(10)}  # 500 judgements are still 10 prompts
    few = {f"u{i}": [i % 2] for i in range(10)}
    assert stats.bootstrap(many) == stats.bootstrap(few)
    loop, rng = [], random.Random(1)  # the same interval from plain Python
    for _ in range(4000):
        loop.append(sum(rng.choice([0, 1]) for _ in range(10)) / 10)
    loop.sort()
    assert stats.bootstrap(few)["interval"] == pytest.approx([loop[100], loop[3899]], abs=0.1)
    assert stats.bootstrap({"u": [1.0]}) == {"mean": 1.0, "prompts": 1, "interval": None}
    assert stats.bootstrap({})["mean"] is None


def test_sign_test_against_all_sign_patterns():
    for wins, losses in [(7, 1), (5, 5), (0, 6), (3, 0), (0, 0)]:
        n, least = wins + losses, abs(wins - losses)
        extreme = sum(abs(2 * sum(signs) - n) >= least for signs in itertools.product([0, 1], repeat=n))
        assert stats.sign_test(wins, losses) == pytest.approx(extreme / 2**n)


def test_sign_test_against_scipy():
    scipy = pytest.importorskip("scipy.stats", reason="no scipy; the enumeration above stands alone")
    for wins, losses in [(40, 20), (9, 2)]:
        assert stats.sign_test(wins, losses) == pytest.approx(scipy.binomtest(wins, wins + losses).pvalue)


def test_cohen_against_confusion_matrix():
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randint(2, 30)
        a, b = ([rng.choice([0.0, 0.5, 1.0]) for _ in range(n)] for _ in range(2))
        table = np.zeros((3, 3))
        for x, y in zip(a, b):
            table[int(2 * x), int(2 * y)] += 1 / n
        chance = float(table.sum(0) @ table.sum(1))
        if chance < 1:
            assert stats.cohen(a, b) == pytest.approx((np.trace(table) - chance) / (1 - chance))
    by_hand = (0.7 - 0.5) / (1 - 0.5)
    assert stats.cohen(list("YYYYYNNNNN"), list("YYYNNYNNNN")) == pytest.approx(by_hand)
    assert stats.cohen(["tie"] * 4, ["tie"] * 4) is None and stats.cohen([], []) is None


def alpha_by_pairs(units, distance):
    """Definition: 1 - mean disagreement within units / mean disagreement over all pairs of values."""
    units = [u for u in units if len(u) > 1]
    values = [v for u in units for v in u]
    within = 0
    for u in units:
        pairs = itertools.permutations(u, 2)
        within += sum(distance(a, b) for a, b in pairs) / (len(u) - 1) / len(values)
    everywhere = [distance(a, b) for a, b in itertools.permutations(values, 2)]
    return 1 - within / (sum(everywhere) / len(everywhere)) if any(everywhere) else None


def test_krippendorff_against_definition_and_published_example():
    rng = random.Random(0)
    for _ in range(40):
        units = [[rng.randint(1, 5) for _ in range(rng.randint(0, 4))] for _ in range(12)]
        for interval, distance in [(False, lambda a, b: a != b), (True, lambda a, b: (a - b) ** 2)]:
            assert stats.krippendorff(units, interval) == pytest.approx(alpha_by_pairs(units, distance))
    # Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E: 0.743 and 0.849
    coders = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[int(c[i]) for c in coders if c[i] != "."] for i in range(12)]
    assert stats.krippendorff(units) == pytest.approx(0.743, abs=5e-4)
    assert stats.krippendorff(units, interval=True) == pytest.approx(0.849, abs=5e-4)
    assert stats.krippendorff([[1, 1], [1, 1]]) is None and stats.krippendorff([[1], []]) is None


# ---- make


def test_pages_are_blind_balanced_and_repeatable(study, tmp_path):
    out, key = study(pairs=12, checks=2)
    assert {p.name for p in out.iterdir()} == {"ann1.html", "ann2.html", "key.json"}
    orders = []
    for name in ("ann1", "ann2"):
        html, items = (out / f"{name}.html").read_text(), page_data(out / f"{name}.html")["items"]
        assert "zephyr" not in html.lower() and "quokka" not in html.lower()
        assert not re.search(r"https?://|src=|@import|url\(", html.split("</style>")[0])
        sides = [key["pages"][name]["items"][i["id"]]["sides"][0] for i in items]
        assert abs(sides.count(BASE) - sides.count(TUNED)) <= 1
        orders.append([i["id"] for i in items])
        for item in items:  # the key tells the truth: each side's text is that of the model the key names
            pair = key["pairs"][item["id"]]
            for side, model in zip("AB", key["pages"][name]["items"][item["id"]]["sides"]):
                rows = [json.loads(x) for x in (tmp_path / f"{model}.jsonl").read_text().splitlines()]
                original = {r["uid"]: r["story"] for r in rows}[pair["uid"]]
                note = re.search(r"\n\n\[A note to the reader.*?\]", item[side][0])
                assert item[side][0].replace(note.group(0) if note else "\0", "") == original
                assert not note or pair["check"]
            expected = key["pages"][name]["items"][item["id"]].get("expected")
            assert (expected is not None) == pair["check"]
            assert not expected or blind.CHOICES[expected] in item["A"][0] + item["B"][0]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    real, checks = ([p["uid"] for p in key["pairs"].values() if p["check"] is c] for c in (False, True))
    assert len(real) == len(set(real)) == 12 and not set(real) & set(checks)  # two prompts were spare
    first = {p.name: p.read_text() for p in out.iterdir()}
    shutil.rmtree(out)
    study(pairs=12, checks=2)
    assert first == {p.name: p.read_text() for p in out.iterdir()}


def test_sets_of_three_models(tmp_path):
    files = [stories(tmp_path / f"{n}.jsonl", prompts=6, per_prompt=3) for n in ("one", "two", "three")]
    assert run(["make", *map(str, files), *arguments(tmp_path / "s", 18, more="--stories 2")]) == 0
    key = json.loads((tmp_path / "s/key.json").read_text())
    real = [tuple(p["models"]) for p in key["pairs"].values() if not p["check"]]
    assert {d: real.count(d) for d in real} == {("one", "two"): 6, ("one", "three"): 6, ("two", "three"): 6}
    items = page_data(tmp_path / "s/x.html")["items"]
    assert all(len(i["A"]) == len(i["B"]) == 2 for i in items)
    reported(tmp_path / "s", answer(tmp_path / "s/1.json", key, "x", lambda pair, item: "A"))
    sides = {item["id"]: (item["A"], item["B"]) for item in items}
    for row in calibrate.read_pairs(str(tmp_path / "s/report.jsonl")):  # the very stories of each side
        read, other = sides[row["pair"]][:: 1 if row["preferred"] == "1" else -1]  # "A" was preferred
        assert sorted(row["story_1"]) == sorted("\n\n".join(read))
        assert sorted(row["story_2"]) == sorted("\n\n".join(other))


def test_half_a_character_pair_does_not_break_the_hashes(tmp_path):
    files = [stories(tmp_path / f"{n}.jsonl", prompts=2, text="\ud800") for n in ("one", "two")]
    assert run(["make", *map(str, files), *arguments(tmp_path / "s", 2, more="--checks 0")]) == 0
    key = json.loads((tmp_path / "s/key.json").read_text())
    assert blind.digest(page_data(tmp_path / "s/x.html")["items"]) == key["pages"]["x"]["sha256"]
    assert reported(tmp_path / "s", answer(tmp_path / "s/1.json", key, "x", prefer("two")))[0] == 0


def test_any_prefix_of_the_prompts_covers_the_lengths():
    prompts = {f"u{i}": {"target_words": (300, 900, 1500, 3000)[i % 4]} for i in range(40)}
    order = blind.spread(prompts, random.Random(0))
    assert sorted(order) == sorted(prompts)
    for n in range(4, 41, 4):
        lengths = [prompts[uid]["target_words"] for uid in order[:n]]
        assert [lengths.count(t) for t in (300, 900, 1500, 3000)] == [n // 4] * 4


NEW = '{"uid": "new", "prompt": "p", "target_words": 9, "story": "%s"}'


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("not json", "line 15: not JSON"),
        ("[1]", "line 15: a list, not an object"),
        ('{"uid": "u0", "prompt": "p"}', "line 15: 'target_words' is missing"),
        (NEW % " \\n", "the story of new is empty in the file of one"),
        ('{"uid": "u0", "prompt": "other", "target_words": 300, "story": "s"}', "uid u0 had another prompt"),
        (NEW % "s", "answer different prompts: 1 uids"),
    ],
)
def test_bad_lines_get_one_sentence(tmp_path, capsys, line, sentence):
    one, two = stories(tmp_path / "one.jsonl"), stories(tmp_path / "two.jsonl")
    for file in (one, two) if "empty" in sentence else (one,):
        file.write_text(file.read_text() + line + "\n")
    assert run(["make", str(one), str(two), *arguments(tmp_path / "s", 5)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("--pairs 15", "give at most 14 pairs"),
        ("--pairs 0", "at least 1"),
        ("--stories 2", "only 1 for some prompt"),
        ("--annotators x x", "--annotators x"),
        ("--annotators one", "none a model's"),
        ("--annotators a/b", "use different names"),
    ],
)
def test_bad_options_get_one_sentence(tmp_path, capsys, change, sentence):
    files = [str(stories(tmp_path / f"{n}.jsonl")) for n in ("one", "two")]
    assert run(["make", *files, *arguments(tmp_path / "s", 5, more=change)]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_models_with_other_prompts_or_one_name_are_refused(tmp_path, capsys):
    one = stories(tmp_path / "one.jsonl")
    two = stories(tmp_path / "two.jsonl", text=" Changed.")
    for files, sentence in [
        ([two], "one and two differ in its prompt"),
        ([f"one={two}"], "two files are named one"),
        ([], "two models or more"),
        ([tmp_path / "none.jsonl"], "there is no file"),
    ]:
        assert run(["make", str(one), *map(str, files), *arguments(tmp_path / "s", 5)]) == 2
        assert sentence in capsys.readouterr().err


def test_a_key_is_never_overwritten_and_a_signed_story_is_noted(study, capsys):
    out, _ = study(text=" Written by Zephyr-Base.")
    assert f"'{BASE}', a model's name, is in" in capsys.readouterr().out
    before = (out / "key.json").read_bytes()
    assert run(["make", "a", "b", "--out", str(out), "--annotators", "x"]) == 2
    assert "choose another --out" in capsys.readouterr().err and (out / "key.json").read_bytes() == before


# ---- report


def test_report_of_two_annotators(study, tmp_path, capsys):
    out, key = study(pairs=12)
    uids = sorted({p["uid"] for p in key["pairs"].values() if not p["check"]})
    one = answer(out / "1.json", key, "ann1", prefer(TUNED, uids[:3]))
    two = answer(out / "2.json", key, "ann2", prefer(TUNED, uids[2:4]))
    code, report = reported(out, one, two)
    [c] = report["comparisons"]
    assert code == 0 and c["models"] == [BASE, TUNED] and (c["won"], c["tied"], c["lost"]) == (0, 5, 19)
    assert c["win_rate"]["mean"] == pytest.approx(2.5 / 24) and c["win_rate"]["prompts"] == 12
    assert c["win_rate"]["interval"][0] < 2.5 / 24 < c["win_rate"]["interval"][1]
    # uids[2] is a tie for both; the other ties of one annotator leave a net vote for the tuned model
    assert c["sign_test"] == {
        "prompts_won": 0,
        "prompts_tied": 1,
        "prompts_lost": 11,
        "p": pytest.approx(2 / 2**11),
    }
    assert sum(b["judgements"] for b in c["by_length"].values()) == 24
    assert list(c["by_length"]) == ["300", "900", "1,500", "3,000"]
    labels = [[0.5 if u in uids[:3] else 0.0 for u in uids], [0.5 if u in uids[2:4] else 0.0 for u in uids]]
    alpha, kappa = report["agreement"]
    assert kappa["agreement"] == pytest.approx(stats.cohen(*labels)) and kappa["cases"] == 12
    assert alpha["agreement"] == pytest.approx(alpha_by_pairs(list(zip(*labels)), lambda a, b: a != b))
    reader = report["annotators"]["ann1"]
    assert reader["checks_passed"] == reader["checks_answered"] == 2
    assert judgements(out)[0]["reason"] == "because “é” 🦘" and report["ratings"] == {}
    asked = str(out / "report.jsonl")
    preferred = [row["preferred"] for row in calibrate.read_pairs(asked)]  # no checks
    assert (preferred.count("2"), preferred.count("tie"), len(preferred)) == (19, 5, 24)
    out = capsys.readouterr().out
    assert calibrate.main(["agree", "--judge", "offline", "--modes", "story", "--pairs", asked]) == 0
    assert "19 pairs of 11 prompts; 5 ties of people left out" in capsys.readouterr().out
    assert any("only 12 prompts" in w for w in report["warnings"]) and "win rate in %: 10.4 [" in out
    assert f"| ann1 and ann2, Cohen's kappa | 12 | {kappa['agreement']:.2f} |\n" in out and "warning: " in out


def test_a_prompt_at_several_lengths_is_one_prompt(tmp_path):
    files = [stories(tmp_path / f"{n}.jsonl", prompts=8) for n in (BASE, TUNED)]
    for file in files:  # four subjects at two lengths
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for i, r in enumerate(rows):
            r["target_words"] = (300, 2000)[i % 2]
            subject = ("fog", "rain", "snow", "hail")[i // 2]
            r["prompt"] = f"A story {r['target_words']:,} words long about {subject}."
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "s"
    assert run(["make", *map(str, files), *arguments(out, 8, "ann1", "--checks 0")]) == 0
    key = json.loads((out / "key.json").read_text())
    _, report = reported(out, answer(out / "1.json", key, "ann1", prefer(TUNED)))
    [c] = report["comparisons"]
    assert c["judgements"] == 8 and c["win_rate"]["prompts"] == 4 and c["sign_test"]["prompts_lost"] == 4


def test_ratings_of_sets_go_to_the_right_model(study):
    out, key = study(pairs=8, per_prompt=2)

    def ratings(sides):  # the base is good and dull, the tuned one poor and varied
        values = {BASE: {"quality": 4, "diversity": 1}, TUNED: {"quality": 2, "diversity": 5}}
        return {f"{s}_{scale}": values[m][scale] for s, m in zip("AB", sides) for scale in values[m]}

    code, report = reported(out, answer(out / "1.json", key, "ann1", prefer(BASE), ratings))
    found = {m: {s: f["mean"] for s, f in v.items()} for m, v in report["ratings"].items()}
    assert found == {BASE: {"quality": 4, "diversity": 1}, TUNED: {"quality": 2, "diversity": 5}}
    assert report["ratings_by_length"]["300"][BASE]["quality"]["prompts"] == 2
    assert report["absent"] == ["ann2"] and any("no answers from ann2" in w for w in report["warnings"])


def test_half_answered_hasty_and_inattentive_files_are_named(study):
    out, key = study(pairs=12)
    checks = [i for i, p in key["pairs"].items() if p["check"]]
    real = [i for i in key["pairs"] if i not in checks]

    def careless(pair, item):
        return "tie" if item.get("expected") != "tie" else "A"

    one = answer(out / "1.json", key, "ann1", careless, seconds=1)
    two = answer(out / "2.json", key, "ann2", prefer(BASE), skip=real[:6])
    _, report = reported(out, one, two)
    assert report["annotators"]["ann2"]["answered"] == 6 and report["comparisons"][0]["judgements"] == 18
    assert report["agreement"][1]["cases"] == 6
    text = "\n".join(report["warnings"])
    assert "ann2 answered 6 of 12 pairs; the rest is missing, not tied" in text
    assert "ann1 passed only 0 of 2 answered attention checks" in text and "too fast" in text


def test_foreign_altered_and_double_answers_are_refused(study, tmp_path, capsys):
    out, key = study(pairs=12)
    good = answer(out / "1.json", key, "ann1", prefer(BASE))

    def refused(sentence, *files):
        assert reported(out, *files)[0] == 2 and sentence in capsys.readouterr().err
        assert not (out / "report.json").exists()

    def changed(sign=True, **changes):
        body = {**json.loads(good.read_text()), **changes}
        old = body.pop("sha256")
        (out / "bad.json").write_text(json.dumps({**body, "sha256": blind.digest(body) if sign else old}))
        return out / "bad.json"

    answers = json.loads(good.read_text())["answers"]
    refused("a second file of one annotator", good, good)
    refused("altered since it was downloaded", changed(sign=False, answers=answers[:-1]))
    refused("answers of another study", changed(study="0" * 64))
    refused("or to other texts", changed(page="0" * 64))
    refused("or to other texts", changed(annotator="ann2"))
    refused("nothing to report", changed(answers=[]))
    (out / "cut.json").write_text(good.read_text()[:100])
    refused("was the download cut short?", out / "cut.json")
    refused("not an answers file", out / "key.json")
    altered = json.loads((out / "key.json").read_text())
    altered["pairs"][answers[0]["id"]]["models"].reverse()
    (out / "key.json").write_text(json.dumps(altered))
    refused("altered since it was made", good)


# ---- the page in a real browser


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def shown(browser, name):
    return browser.find_element("id", name).text


def downloaded(browser, folder, name="ann1"):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    press(browser, "d")
    file = folder / f"answers-{name}.json"
    for _ in range(100):
        if file.exists():
            return file
        time.sleep(0.1)
    raise AssertionError(f"nothing was downloaded into {folder}")


def quiet(browser):
    """No console message, and no request but for the page itself and what it made."""
    assert browser.get_log("browser") == []
    sent = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert all(u.startswith(("file:", "data:", "blob:", "chrome:", "about:")) for u in urls), urls


def test_twelve_pairs_by_keyboard_with_a_reload_in_the_middle(study, browser):
    from selenium.webdriver.common.keys import Keys

    out, key = study(pairs=12, checks=2, text=TRAP)
    html = (out / "ann1.html").read_text()
    assert "zephyr" not in html.lower() and "quokka" not in html.lower() and "<img" not in html
    browser.get((out / "ann1.html").as_uri())
    items = page_data(out / "ann1.html")["items"]
    choices = prefer(TUNED)
    press(browser, Keys.ENTER)
    for n, item in enumerate(items):
        assert shown(browser, "where") == f"Pair {n + 1} of 14"
        assert shown(browser, "request") == item["prompt"]
        assert TRAP in browser.find_element("id", "A").get_property("textContent")  # shown as text
        if n == 0:
            press(browser, Keys.ENTER)  # nothing chosen yet: stays, and says why
            assert "Which is better?" in shown(browser, "status")
            assert shown(browser, "where") == "Pair 1 of 14"
        choice = choices(key["pairs"][item["id"]], key["pages"]["ann1"]["items"][item["id"]])
        press(browser, {"A": "a", "tie": "t", "B": "b"}[choice])
        if n == 6:
            # Letters in the field are not choices.
            press(browser, "r", "a better “ending” é 🦘\n<b>1</b>")
            press(browser, Keys.ESCAPE)
            time.sleep(1.2)
            browser.refresh()
            assert shown(browser, "where") == "Pair 7 of 14" and shown(browser, "count") == "7 answered"
            assert browser.find_element("id", "reason").get_property("value").startswith("a better")
            button = browser.find_element("css selector", f"[data-choice={choice}]")
            assert button.get_attribute("aria-pressed") == "true"
        press(browser, Keys.ENTER)
    assert shown(browser, "thanks") == "Thank you, that was the last pair"
    file = downloaded(browser, out)
    code, report = reported(out, file)
    [c] = report["comparisons"]
    assert code == 0 and (c["won"], c["tied"], c["lost"]) == (0, 0, 12) and c["win_rate"]["prompts"] == 12
    assert c["sign_test"]["p"] == pytest.approx(2 / 2**12)
    reader = report["annotators"]["ann1"]
    assert reader["checks_passed"] == 2 and reader["answered"] == 12
    reasons = {j["pair"]: j for j in judgements(out) if j["reason"]}
    assert [j["reason"] for j in reasons.values()] == ["a better “ending” é 🦘\n<b>1</b>"]
    assert 1 < reasons[items[6]["id"]]["seconds"] < 60
    assert browser.execute_script("return window.trapped") is None
    assert not browser.find_elements("css selector", "#pair img, #pair b + b, .pane b")
    quiet(browser)


def test_sets_are_rated_by_keyboard_and_an_open_pair_stays_open(study, browser):
    from selenium.webdriver.common.keys import Keys

    out, key = study(pairs=3, checks=0, per_prompt=2, text='\ud83e\udd98\u2028\u0007 \\ "')
    browser.get((out / "ann1.html").as_uri())
    press(browser, Keys.ENTER, "b", "5", "1", "2", Keys.ENTER)
    assert "Ratings are missing" in shown(browser, "status")
    press(browser, "3", Keys.ENTER, Keys.ENTER, Keys.ENTER)  # the second pair is left open on purpose
    press(browser, "t", *"4444", Keys.BACKSPACE, "2", "1", Keys.ENTER)
    assert shown(browser, "thanks") == "Not quite done" and shown(browser, "left").startswith("1 of 3 pairs")
    answers = json.loads(downloaded(browser, out).read_text())["answers"]
    assert [(a["choice"], a["ratings"]) for a in answers] == [
        ("B", {"A_quality": 5, "A_diversity": 1, "B_quality": 2, "B_diversity": 3}),
        ("tie", {"A_quality": 4, "A_diversity": 4, "B_quality": 2, "B_diversity": 1}),
    ]
    code, report = reported(out, out / "answers-ann1.json")
    assert code == 0 and report["annotators"]["ann1"]["answered"] == 2
    assert any("2 of 3 pairs" in w for w in report["warnings"])
    quiet(browser)


def test_consent_comes_first_and_enter_alone_is_no_consent(study, tmp_path, browser):
    from selenium.webdriver.common.keys import Keys

    text = tmp_path / "consent.txt"
    text.write_text("You may stop at any time.\n" + TRAP + " word" * 600)
    out, key = study(pairs=2, checks=0, more=["--consent", str(text)])
    assert key["consent"].startswith("You may stop")
    phone = {"width": 390, "height": 664, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get((out / "ann1.html").as_uri())
        begin = browser.find_element("id", "begin")
        assert begin.rect["y"] + begin.rect["height"] <= 664  # above the fold
        assert TRAP in browser.find_element("id", "consent").get_property("textContent")
        press(browser, Keys.ENTER)
        assert shown(browser, "where") == "Reading study"
        assert begin.text == "I have read this and agree: begin"
        press(browser, Keys.TAB, Keys.TAB, Keys.ENTER)  # the text, then the button
        assert shown(browser, "where") == "Pair 1 of 2"
        assert browser.execute_script("return window.trapped") is None
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    quiet(browser)


def test_results_have_a_page(study, browser):
    out, key = study(pairs=12, text=TRAP)
    one = answer(out / "1.json", key, "ann1", prefer(TUNED))
    two = answer(out / "2.json", key, "ann2", prefer(TUNED))
    assert reported(out, one, two)[0] == 0
    browser.get((out / "report.html").as_uri())
    text = browser.find_element("id", "main").text
    said = f"win rate in %: 0.0 [0.0, 0.0], n = 12 prompts; readers prefer {TUNED}."
    assert f"{BASE} against {TUNED}, {said}" in text
    assert "3,000" in text and "Cohen's kappa" in text and "2 of 2" in text
    assert browser.execute_script("return window.trapped") is None
    quiet(browser)


def test_an_edited_page_is_noticed(study, browser, capsys):
    from selenium.webdriver.common.keys import Keys

    out, _ = study(pairs=1, checks=0)
    page = out / "ann1.html"
    page.write_text(page.read_text().replace("harbour", "airport", 1))
    browser.get(page.as_uri())
    press(browser, Keys.ENTER, "a")
    file = downloaded(browser, out)
    assert run(["report", "--key", str(out / "key.json"), str(file), "--out", str(out / "r.json")]) == 2
    assert "or to other texts" in capsys.readouterr().err


@pytest.mark.parametrize("width, height, phone", [(1360, 850, False), (390, 844, True)])
def test_layout_on_desktop_and_phone(study, browser, width, height, phone):
    from selenium.webdriver.common.keys import Keys

    out, _ = study(pairs=2, checks=0, per_prompt=2, text="\n\n" + "w" * 400)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        paper = []
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.get((out / "ann1.html").as_uri())
            press(browser, Keys.ENTER)
            paper.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
            for tab in ("request", "A", "B", "answer"):
                if phone:
                    browser.find_element("css selector", f"nav [data-tab={tab}]").click()
                assert browser.execute_script(
                    "return document.documentElement.scrollWidth <= innerWidth "
                    "&& [...document.querySelectorAll('.pane')].every(p => p.scrollWidth <= p.clientWidth)"
                )
            visible = [
                browser.find_element("css selector", s).is_displayed() for s in ("#A", "#B", "nav", "#next")
            ]
            assert visible == ([False, False, True, True] if phone else [True, True, False, True])
        assert paper[0] != paper[1]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
