"""The rows of the benchmark that have a peer: transformers, TRL, or the textbook's formula."""

import itertools
import tempfile
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import model as qwen
import rollout
import train
from lib import delta, processes
from lib.huggingface import read_json
from lib.logprobs import LogProbs
from lib.optim import adamw
from lib.packed import Packed
from lib.parallel import scorer_of
from lib.rehearsal import rehearsal

BASE = Path(__file__).resolve().parent.parent.parent / "stories" / "tiny-base"
NINE_B = read_json(Path(__file__).resolve().parent.parent / "qwen3.5-9b.json")
TINY = NINE_B | {"architectures": ["Qwen3_5ForCausalLM"], "vocab_size": 4096, "hidden_size": 256}
TINY |= {"intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY |= {"head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 32}
TINY |= {"linear_value_head_dim": 32, "tie_word_embeddings": True, "max_position_embeddings": 32768}
TINY["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


class Pair:
    """The same weights as our model, its replicas, and transformers' model. Made once, used by every row."""

    def __init__(self):
        import transformers

        transformers.logging.set_verbosity_error()
        self.ours = qwen.new(TINY)
        for name, p in self.ours.named_parameters():
            # Larger than at initialisation: the next token depends on the text, and greedy decoding moves.
            if p.dim() > 1 and "conv" not in name:
                p.data *= 3
        self.peer = transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**TINY)).eval()
        self.peer.model.load_state_dict(self.ours.state_dict())
        self.replica, self.compiled = rollout.replica(self.ours), rollout.replica(self.ours, compile=True)

    @torch.inference_mode()
    def hf_generate(self, ids, tokens, **kind):
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        return self.peer.generate(ids, attention_mask=torch.ones_like(ids), **limits, **kind)


def random_ids(*shape, seed=0):
    return torch.randint(0, TINY["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def apart(ours, theirs, most: float) -> str | None:
    """What is wrong with pairs of tensors whose largest relative difference may be `most`."""
    gap = max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))
    return None if gap < most else f"answers differ by {gap:.1e}"


# ---- rows: each returns (ours, peer, what is wrong or None) ------------------------------------------------


def forward(pair):
    ids = random_ids(1, 2048)

    @torch.no_grad()
    def ours():
        return pair.ours.logits(pair.ours(ids))

    @torch.no_grad()
    def peer():
        return pair.peer(ids, use_cache=False).logits

    return ours, peer, apart([ours()], [peer()], 1e-5)


def backward(pair):
    # Each side takes its natural loss of the same value: the mean log-probability of the tokens.
    ids = random_ids(1, 2048)
    names, own = zip(*pair.ours.named_parameters())
    theirs = [pair.peer.get_parameter(f"model.{name}") for name in names]

    def ours():
        logp, _ = pair.ours.token_logprobs(Packed(ids.tolist()))
        return torch.autograd.grad(-logp.mean(), own)

    def peer():
        logits = pair.peer(ids, use_cache=False).logits[:, :-1]
        return torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()), theirs)

    return ours, peer, apart(ours(), peer(), 1e-3)


def delta_rule(_):
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule as theirs

    g = torch.Generator().manual_seed(0)
    T, Hk, Hv, d = 2048, 16, 32, 128  # the 9B's shape
    q, k, v = (torch.randn(1, T, h, d, generator=g) for h in (Hk, Hk, Hv))
    decay, beta = -torch.rand(1, T, Hv, generator=g) * 0.5, torch.rand(1, T, Hv, generator=g)
    inputs = [x.requires_grad_() for x in (q, k, v, decay, beta)]

    def learn(out):
        return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]

    def ours():
        return learn(delta.delta_chunked(delta.l2norm(q) * d**-0.5, delta.l2norm(k), v, decay, beta)[0])

    def peer():
        wide = (x.repeat_interleave(2, 2) for x in (q, k))
        return learn(theirs(*wide, v, g=decay, beta=beta, use_qk_l2norm_in_kernel=True)[0])

    return ours, peer, apart(ours(), peer(), 1e-3)


def logprobs(_):
    ours, peer = partial(logprob_work, "ours"), partial(logprob_work, "naive")
    return ours, peer, apart(ours(), peer(), 1e-4)


def logprob_work(kind: str):
    """Log-probabilities and gradients of 2,048 tokens over 32,768 words: as many logits as memory notices."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(2048, 256, generator=g).requires_grad_()
    W = (torch.randn(32768, 256, generator=g) * 0.05).requires_grad_()
    targets = torch.randint(0, 32768, (2048,), generator=g)
    if kind == "ours":
        logp = LogProbs.apply(h, W, targets, 1.0)[0]
    else:
        everything = (h @ W.t()).log_softmax(-1)
        logp = everything.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():  # both sides also give the entropy of each distribution
            -(everything.exp() * everything).sum(-1)
    return [logp.detach(), *torch.autograd.grad(logp.sum(), [h, W])]


LENGTHS = (1, 7, 20, 33, 64, 65, 90, 128)  # of the prompts that are compared token by token
PROMPTS = [random_ids(n, seed=n).tolist() for n in LENGTHS]


@cache
def peers_greedy(pair, tokens: int) -> list[list[int]]:
    """What transformers writes, prompt by prompt."""
    how = {"do_sample": False, "eos_token_id": None}
    written = [pair.hf_generate(torch.tensor([ids]), tokens, **how)[0].tolist() for ids in PROMPTS]
    return [ids[n:] for n, ids in zip(LENGTHS, written)]


def same_greedy(pair, model, tokens=256) -> str | None:
    """Greedy tokens of one batch of different prompts against transformers' -> what is wrong."""
    ours = rollout.generate(model, PROMPTS, max_new_tokens=tokens, temperature=0)
    wrong = sum(story.ids != ids for story, ids in zip(ours, peers_greedy(pair, tokens)))
    return f"{wrong} of {len(PROMPTS)} greedy stories differ" if wrong else None


def agreement(pair) -> str:
    """How far log-probabilities of decoding are from those of the training path, in fp32."""
    ours = rollout.generate(pair.replica, PROMPTS, max_new_tokens=256, temperature=0)
    rows = [prompt + story.ids for prompt, story in zip(PROMPTS, ours)]
    with torch.no_grad():
        logp, _ = pair.ours.token_logprobs(Packed(rows, list(LENGTHS)))
    gap = (logp - torch.tensor([x for story in ours for x in story.logprobs])).abs().max().item()
    return f"decode against training path: log-probs differ by at most {gap:.1e} (bar 1e-4, goal 2e-5)"


def decode(B: int, prompt=16, tokens=256, compiled=True):
    def row(pair):
        model = pair.compiled if compiled else pair.replica
        ids = random_ids(1, prompt)
        batch = ids.repeat(B, 1)

        def ours():
            rollout.generate(model, ids.tolist() * B, max_new_tokens=tokens, slots=B)

        def peer():
            pair.hf_generate(batch, tokens, do_sample=True, top_k=0)

        return ours, peer, same_greedy(pair, model)

    return row


def prefill(pair):
    ids = random_ids(1, 4096)

    @torch.inference_mode()
    def ours():
        return pair.replica.logits(pair.replica(ids, cache=pair.replica.new_cache(1, 4096))[:, -1])

    @torch.inference_mode()
    def peer():
        return pair.peer(ids, use_cache=True, logits_to_keep=1).logits[:, -1]

    return ours, peer, apart([ours()], [peer()], 1e-5)


# ---- memory ------------------------------------------------------------------------------------------------


def slots_at(model, n: int, context: int, room: int) -> rollout.Slots:
    """Slots whose caches are as full as `context` tokens make them, every page touched."""
    slots = rollout.Slots(model, n, context + room, rollout.Sampling())
    for layer in slots.cache.layers:
        for memory in layer:
            memory.fill_(0.0)
    slots.filled = [context] * n
    slots.cache.lengths.fill_(context)
    return slots


def memory():
    """Yields what both log-probabilities and decoding hold at their peak, storage by storage."""
    peaks, n, tokens = [], 8, 17000
    if torch.distributed.is_initialized():  # by the GRPO row; a rehearsal makes its own
        torch.distributed.destroy_process_group()
    for kind in ("ours", "naive"):
        with rehearsal() as ledger:
            logprob_work(kind)
        peaks.append(ledger.peaks["set-up"].total())
    line = f"log-prob peak memory: {peaks[0] / 1e6:.0f} MB, naive {peaks[1] / 1e6:.0f} MB"
    yield f"{line}, share {peaks[0] / peaks[1]:.2f} (bar 0.50, goal 0.30)"
    with rehearsal() as ledger, torch.inference_mode():
        model = qwen.empty(qwen.ModelConfig.from_hf(TINY), torch.float32, torch.device("cpu"))
        weights = ledger.held.total()
        slots_at(model, n, tokens - 9, 9).run(8)
    used = ledger.peaks["set-up"].total() - weights
    planned = n * (sum(qwen.cache_bytes(model.config, tokens, torch.float32)) + 16 * model.config.vocab_size)
    line = f"decoding in {n} slots of {tokens:,} tokens: peak {used / 1e6:.0f} MB counted"
    yield f"{line}, {planned / 1e6:.0f} MB calculated"


# ---- one whole GRPO step against TRL -----------------------------------------------------------------------

STORIES, TOKENS, LR = 8, 256, 1e-4
REQUEST = "Write a story about a lighthouse keeper who finds a second moon. It should be 150 words long."


def variety(completions: list[str], **_) -> list[float]:
    """The reward of both sides: the share of a story's words that differ."""
    return [len(set(words)) / max(len(words), 1) for words in map(str.split, completions)]


def grpo(pair):
    """8 stories of 256 tokens from one prompt, a reward, one AdamW step; fp32, no checkpointing, no KL."""
    return our_step(deepcopy(pair.ours)), trl_step(deepcopy(pair.peer)), forward(pair)[2]


def our_step(model):
    tokenizer, copy, step = data.load_tokenizer(BASE), rollout.replica(model), itertools.count()
    c = train.Config(max_new_tokens=TOKENS, mismatch_cap=0.0, micro_batch_tokens=1 << 20)
    scorer, example = scorer_of(model, "none", False), data.Example("", REQUEST, 150)
    optimiser, prompt = adamw(scorer, LR, 0.0), tokenizer.encode(REQUEST)
    processes.connect()  # the update sums over processes, though there is one

    def ours():
        rollout.replica(model, last=copy)
        group = [data.Episode(example, prompt, [], None, True, False, "") for _ in range(STORIES)]
        how = {"thinking": False, "slots": 0, "max_new_tokens": TOKENS}
        list(rollout.write_rows(copy, group, tokenizer, next(step), [], **how))
        for row, reward in zip(group, variety([row.story for row in group])):
            row.reward = reward
        train.grpo_advantages([group], normalise_std=True)
        train.update(c, scorer, optimiser, [group])

    return ours


def trl_step(model):
    """TRL's own training step (it writes, rewards, goes backward), then what its loop does: clip, AdamW."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    how = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none"}
    how |= {"per_device_train_batch_size": STORIES, "num_generations": STORIES, "learning_rate": LR}
    how |= {"max_completion_length": TOKENS, "generation_kwargs": {"min_new_tokens": TOKENS}}
    how |= {"beta": 0.0, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    trainer = GRPOTrainer(
        model,
        variety,
        GRPOConfig(output_dir=tempfile.mkdtemp(), **how),
        Dataset.from_dict({"prompt": [REQUEST] * STORIES}),
        processing_class=AutoTokenizer.from_pretrained(BASE),
    )
    optimiser, prompts = trainer.create_optimizer(), next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1

    def peer():
        trainer.training_step(trainer.model, prompts, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        optimiser.step()
        trainer.model.zero_grad()

    return peer
