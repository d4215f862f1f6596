"""The rows of the benchmark that have a peer: transformers, TRL, or the textbook's formula."""

from __future__ import annotations

import itertools
import re
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing as mp
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

BASE = Path(__file__).resolve().parent.parent.parent / "stories" / "tiny-base"
NINE_B = read_json(Path(__file__).resolve().parent.parent / "qwen3.5-9b.json")
TINY = NINE_B | {"architectures": ["Qwen3_5ForCausalLM"], "vocab_size": 4096, "hidden_size": 256}
TINY |= {"intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY |= {"head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 32}
TINY |= {"linear_value_head_dim": 32, "tie_word_embeddings": True, "max_position_embeddings": 32768}
TINY["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


class Pair:
    """The same weights as our model, its replica, and transformers' model. Made once, used by every row."""

    def __init__(self):
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.ours = qwen.new(TINY)
        for name, p in self.ours.named_parameters():
            # Larger than at initialisation: the next token depends on the text, and greedy decoding moves.
            if p.dim() > 1 and "conv" not in name:
                p.data *= 3
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name, "model")
        qwen.save(self.ours, self.folder)
        data.load_tokenizer(BASE).save(self.folder)
        self.peer = transformers.Qwen3_5ForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.replica, self.compiled = rollout.replica(self.ours), rollout.replica(self.ours, compile=True)

    def hf_generate(self, ids, mask, tokens, **kind):
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        with torch.inference_mode():
            return self.peer.eval().generate(ids, attention_mask=mask, **limits, **kind)[:, ids.shape[1] :]


def random_ids(*shape, seed=0):
    return torch.randint(0, TINY["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def apart(ours, theirs) -> float:
    """The largest relative difference among pairs of tensors."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs))


def fault(what: str, gap: float, most: float) -> str | None:
    return None if gap < most else f"{what} differ by {gap:.1e}"


# ---- rows: each returns (ours, peer, what is wrong or None) ------------------------------------------------


def forward(pair):
    ids = random_ids(1, 2048)

    @torch.no_grad()
    def ours():
        return pair.ours.logits(pair.ours(ids))

    @torch.no_grad()
    def peer():
        return pair.peer(ids, use_cache=False).logits

    return ours, peer, fault("logits", (ours() - peer()).abs().max().item(), 1e-4)


def backward(pair):
    # Each side takes its natural loss of the same value: the mean log-probability of the tokens.
    ids = random_ids(1, 2048)

    def ours():
        pair.ours.zero_grad(set_to_none=True)
        logp, _ = pair.ours.token_logprobs(Packed(ids.tolist()))
        (-logp.mean()).backward()

    def peer():
        pair.peer.train().zero_grad(set_to_none=True)
        logits = pair.peer(ids, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

    ours()
    peer()
    theirs = {name.removeprefix("model."): p.grad for name, p in pair.peer.named_parameters()}
    own = {name: p.grad for name, p in pair.ours.named_parameters()}
    return ours, peer, fault("gradients", apart(own.values(), [theirs[name] for name in own]), 1e-3)


def delta_rule(_):
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule as theirs

    g = torch.Generator().manual_seed(0)
    T, Hk, Hv, d = 2048, 16, 32, 128  # the 9B's shape
    q, k, v = (torch.randn(1, T, h, d, generator=g) for h in (Hk, Hk, Hv))
    decay, beta = -torch.rand(1, T, Hv, generator=g) * 0.5, torch.rand(1, T, Hv, generator=g)
    inputs = [x.requires_grad_() for x in (q, k, v, decay, beta)]

    def learn(out):
        for x in inputs:
            x.grad = None
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in inputs)]

    def ours():
        return learn(delta.delta_chunked(delta.l2norm(q) * d**-0.5, delta.l2norm(k), v, decay, beta)[0])

    def peer():
        wide = (x.repeat_interleave(2, 2) for x in (q, k))
        return learn(theirs(*wide, v, g=decay, beta=beta, use_qk_l2norm_in_kernel=True)[0])

    return ours, peer, fault("output or gradients", apart(ours(), peer()), 1e-3)


def logprobs(_):
    ours, peer = partial(logprob_work, "ours"), partial(logprob_work, "naive")
    return ours, peer, fault("values or gradients", apart(ours(), peer()), 1e-4)


LENGTHS = (1, 7, 20, 33, 64, 65, 90, 128)  # of the prompts that are compared token by token


def greedy(model, tokens: int) -> tuple[list[list[int]], list[rollout.Completion]]:
    prompts = [random_ids(n, seed=n).tolist() for n in LENGTHS]
    return prompts, rollout.generate(model, prompts, max_new_tokens=tokens, temperature=0)


def same_greedy(pair, model, tokens=256) -> str | None:
    """Greedy tokens of one batch of different prompts against transformers', left-padded -> what is wrong."""
    prompts, ours = greedy(model, tokens)
    pads = [max(LENGTHS) - n for n in LENGTHS]
    ids = torch.tensor([[0] * pad + prompt for pad, prompt in zip(pads, prompts)])
    mask = torch.tensor([[0] * pad + [1] * n for pad, n in zip(pads, LENGTHS)])
    theirs = pair.hf_generate(ids, mask, tokens, do_sample=False, eos_token_id=None).tolist()
    wrong = sum(story.ids != ids for story, ids in zip(ours, theirs))
    return f"{wrong} of {len(prompts)} greedy stories differ" if wrong else None


def agreement(pair) -> str:
    """Log-probabilities that decoding gives, against those of the training path, in fp32."""
    prompts, ours = greedy(pair.replica, 256)
    rows = [prompt + story.ids for prompt, story in zip(prompts, ours)]
    with torch.no_grad():
        logp, _ = pair.ours.token_logprobs(Packed(rows, [len(prompt) for prompt in prompts]))
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
            pair.hf_generate(batch, torch.ones_like(batch), tokens, do_sample=True, top_k=0)

        return ours, peer, same_greedy(pair, model)

    return row


def prefill(pair):
    ids = random_ids(1, 4096)

    @torch.inference_mode()
    def ours():
        return pair.replica(ids, cache=pair.replica.new_cache(1, 4096))[:, -1]

    @torch.inference_mode()
    def peer():
        return pair.peer(ids, use_cache=True, logits_to_keep=1).logits[:, -1]

    with torch.inference_mode():
        gap = (pair.replica.logits(ours()) - peer()).abs().max().item()
    return ours, peer, fault("last logits", gap, 2e-4)


# ---- memory ------------------------------------------------------------------------------------------------


def peak(work) -> int:
    """Bytes by which the peak of this process exceeds what it held before `work`."""

    def high_water() -> int:  # not getrusage, which inherits the peak of the process that started this one
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    before = high_water()
    work()
    return high_water() - before


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
    logp.sum().backward()
    return logp.detach(), h.grad, W.grad


def peak_logprobs(kind: str) -> int:
    torch.set_flush_denormal(True)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the buffers of the matrix library exist before the first look
    return peak(lambda: logprob_work(kind))


@torch.inference_mode()
def peak_decode(n: int, tokens: int) -> tuple[int, int]:
    """Peak of decoding in n slots of `tokens`, beside what `slot_bytes` calculates."""
    model = rollout.replica(qwen.new(TINY))
    rollout.generate(model, [[1, 2]] * n, max_new_tokens=8, slots=n)
    used = peak(lambda: slots_at(model, n, tokens - 9, 9).run(8))
    return used, n * rollout.slot_bytes(model.config, tokens, 4)


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
    """Yields what both log-probabilities and decoding take at their peak, each in a process of its own."""
    if not Path("/proc/self/status").exists():
        yield "memory: skipped, it reads /proc, which only Linux has"
        return
    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        ours, naive = (pool.apply(peak_logprobs, (kind,)) for kind in ("ours", "naive"))
        used, planned = pool.apply(peak_decode, (8, 17000))
    line = f"log-prob peak memory: {ours / 1e6:.0f} MB, naive {naive / 1e6:.0f} MB, share {ours / naive:.2f}"
    yield f"\n{line} (bar 0.50, goal 0.30)"
    line = f"decoding in 8 slots of 17,000 tokens: peak {used / 1e6:.0f} MB measured, {planned / 1e6:.0f} MB"
    yield f"{line} calculated"


# ---- one whole GRPO step against TRL -----------------------------------------------------------------------

STORIES, TOKENS, LR = 8, 256, 1e-4
PROMPT = "Write a story about a lighthouse keeper who finds a second moon. It should be 150 words long."


def variety(text: str) -> float:
    return len(set(text.split())) / max(len(text.split()), 1)


def grpo(pair):
    """8 stories of 256 tokens from one prompt, a reward, one AdamW step; fp32, no checkpointing, no KL."""
    lengths = []
    ours, peer = our_step(pair.folder), trl_step(pair.folder, lengths)
    ids = random_ids(4, 64)
    with torch.no_grad():
        theirs = pair.peer(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten()
        gap = (pair.ours.token_logprobs(Packed(ids.tolist()))[0] - theirs).abs().max().item()
    peer()
    written = None if set(lengths) == {TOKENS} else f"TRL wrote {set(lengths)} tokens"
    return ours, peer, fault("log-probs", gap, 1e-4) or written


def our_step(folder: Path):
    tokenizer, model = data.load_tokenizer(BASE), qwen.load(folder, torch.float32)
    prompt, copy, step = tokenizer.encode(PROMPT), rollout.replica(model), itertools.count()
    settings = {"group": STORIES, "max_new_tokens": TOKENS, "checkpointing": False, "mismatch_cap": 0.0}
    c = train.Config(model=str(folder), judge="offline", micro_batch_tokens=1 << 20, **settings)
    scorer, example = scorer_of(model, "none", False), data.Example("", PROMPT, 150)
    optimiser = adamw(scorer, LR, 0.0)
    how = {"thinking": False, "slots": 0, "max_new_tokens": TOKENS}
    processes.connect()  # the update sums over processes, though there is one

    def ours():
        rollout.replica(model, last=copy)
        group = [data.Episode(example, prompt, [], None, True, False, "") for _ in range(STORIES)]
        for i in rollout.write_rows(copy, group, tokenizer, next(step), [], **how):
            group[i].reward = variety(group[i].story)
        train.grpo_advantages([group], normalise_std=True)
        train.update(c, scorer, optimiser, [group])

    return ours


def trl_step(folder: Path, lengths: list[int]):
    """TRL's own training step (it writes, rewards and goes backward), then what its loop does: clip, AdamW.
    lengths: gets the tokens of each story."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    def rewards(completions, completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return list(map(variety, completions))

    off = {"bf16": False, "fp16": False, "gradient_checkpointing": False, "disable_tqdm": True, "beta": 0.0}
    off |= {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
    size = {"per_device_train_batch_size": STORIES, "num_generations": STORIES}
    size |= {"max_completion_length": TOKENS, "generation_kwargs": {"min_new_tokens": TOKENS}}
    learn = {"learning_rate": LR, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    asked = {"args": GRPOConfig(output_dir=str(folder.parent / "trl"), **off, **size, **learn)}
    asked |= {"model": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)}
    asked |= {"train_dataset": Dataset.from_dict({"prompt": [PROMPT] * STORIES}), "reward_funcs": rewards}
    trainer = GRPOTrainer(processing_class=AutoTokenizer.from_pretrained(folder), **asked)
    optimiser, prompts = trainer.create_optimizer(), next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1

    def peer():
        trainer.training_step(trainer.model, prompts, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        optimiser.step()
        trainer.model.zero_grad()

    return peer
