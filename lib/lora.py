"""LoRA (arXiv 2106.09685): a trainable low-rank pair beside each frozen linear layer; PEFT's files."""

import json
import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

from lib.parallel import whole


class LoRALinear(nn.Module):
    """y = x W^T + scale * x A^T B^T. W [n_out, n_in] is the replaced layer's parameter and keeps its name."""

    def __init__(self, weight: nn.Parameter, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        n_out, n_in = weight.shape
        # A is uniform as in the paper's code (Kaiming). B = 0, so the model is unchanged at first.
        A = torch.empty(rank, n_in).uniform_(-1, 1, generator=generator) * math.sqrt(1 / n_in) * math.sqrt(3)
        self.weight = weight
        self.lora_A = nn.Parameter(A.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(n_out, rank, device=weight.device))
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, x):
        y = F.linear(x, self.weight)
        # The pair is kept in fp32 and multiplied in the base's dtype: its cast is small beside that of x.
        low = F.linear(x, self.lora_A.to(x.dtype)) * self.scale
        return y.add_(F.linear(low, self.lora_B.to(x.dtype)))


def add_lora(module, rank: int, alpha: float, seed: int = 0) -> list[nn.Parameter]:
    """Freezes `module` and puts a LoRALinear (fp32 pair) in place of each bias-free nn.Linear below it except
    lm_head. Returns the new parameters."""
    module.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    added = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None and name != "lm_head":
                pair = LoRALinear(child.weight, rank, alpha, generator)
                setattr(parent, name, pair)
                added += [pair.lora_A, pair.lora_B]
    return added


@torch.no_grad()
def merged_tensors(module, dtype_of):
    """Yields (name, whole tensor) of every weight: shards gathered, LoRA merged. One tensor exists at a time.
    Where parameters are sharded every process must run through it (gathering is collective).

    dtype_of: name -> dtype of what is yielded. Shards are cast before they are gathered.
    """
    for name, p in module.named_parameters():
        if ".lora_" in name:
            continue
        dtype, owner = dtype_of(name), module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, LoRALinear):
            delta = owner.scale * owner.lora_B.data @ owner.lora_A.data
            yield name, (p.data.float() + delta).to(dtype)
        else:
            yield name, whole(p.data.to(dtype))


@torch.no_grad()
def save_adapter(module, path: Path, base: str, prefix: str, base_class: str | None):
    """Writes the LoRA pairs in PEFT's format (adapter_model.safetensors, adapter_config.json), to lie on top
    of `base`.

    prefix: what the base calls the root of `module`, such as "model.". base_class: the transformers class
    whose names these are, where it is not the one that AutoModelForCausalLM picks. That one would find none
    of the names in a multimodal base, and the adapter would load into nothing.
    """
    pairs = {name: part for name, part in module.named_modules() if isinstance(part, LoRALinear)}
    tensors = {}
    for name, part in pairs.items():
        for side in ("lora_A", "lora_B"):
            tensor = getattr(part, side).detach().cpu().contiguous()
            tensors[f"base_model.model.{prefix}{name}.{side}.weight"] = tensor
    first = next(iter(pairs.values()))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    config |= {"r": first.lora_A.shape[0], "lora_alpha": first.alpha, "lora_dropout": 0.0, "bias": "none"}
    config |= {"target_modules": sorted({name.rpartition(".")[2] for name in pairs})}
    if base_class:  # peft looks at the class only where no task is named
        mapping = {"base_model_class": base_class, "parent_library": "transformers"}
        config |= {"task_type": None, "auto_mapping": mapping}
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(config, indent=1))
