"""Training state on disk: written by any number of processes, read by any other number, whole or absent.

A checkpoint is a folder step_N. It is written under a hidden name and appears by rename; what an interrupted
save leaves behind stays hidden and is removed by the next one.
"""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from lib import processes
from lib.files import lock, replace_folder, set_aside, write_json

# Names, not positions, so that another number of processes or another way to shard reads the state.
STATE = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)


class Stop(Exception):
    """A run ends early with its state saved; the message says why."""


@contextmanager
def new(folder: Path, step: int, keep: int):
    """Yields the hidden folder to fill, on all processes alike; then it becomes folder/step_N and older
    checkpoints beyond the last `keep` (0: all stay) are removed. ValueError: failed, nothing changed."""
    final, partial = folder / f"step_{step:06d}", folder / f".step_{step:06d}.saving"
    try:
        yield partial
        if processes.MAIN:
            replace_folder(partial, final)
            for old in sorted(folder.glob("step_*"))[:-keep] if keep else []:
                old.rename(folder / f".{old.name}.pruned")  # hidden first: a kill must not leave half of it
    except (OSError, SafetensorError, CheckpointException) as error:
        cure = "the checkpoints before it are whole: make room, then --resume auto"
        raise ValueError(f"could not save {final} ({error}); {cure}") from None
    finally:
        for rest in folder.glob(".*step_*") if processes.MAIN else ():
            shutil.rmtree(rest, ignore_errors=True)
    dist.barrier()


def open_run(folder: Path, resume: str) -> Path | None:
    """Reserves the folder of a run for this process -> the checkpoint to go on from, None for a new run; then
    an earlier run of that name is set aside. resume: "auto", a checkpoint or "". ValueError: in use."""
    checkpoints = folder / "checkpoints"
    if processes.MAIN:
        processes.ENDING.enter_context(lock(folder))
        if not resume and folder.exists():
            processes.say(f"{folder} holds an earlier run; it is kept as {set_aside(folder)}")
        for old in checkpoints.glob(".step_*.old"):  # a kill came while it was being replaced
            if not (whole := old.with_name(old.name[1:-4])).exists():
                old.rename(whole)
    dist.barrier()
    return Path(resume) if resume not in ("", "auto") else max(checkpoints.glob("step_*"), default=None)


def read_about(folder: Path) -> dict:
    """What `save_state` was told about the checkpoint. FileNotFoundError, ValueError: no training state."""
    if not folder.exists():
        raise FileNotFoundError(f"no checkpoint {folder}; --resume auto takes the newest one of this run")
    if not (folder / "state").exists():
        raise ValueError(f"{folder} holds weights but no training state; pass it as --model to start anew")
    return json.loads((folder / "trainer.json").read_text())


def save_state(folder: Path, model, optimiser, about: dict):
    """Weights that are trained, and the optimiser's state, under folder/state; `about` in trainer.json. All
    processes call it; each writes its shards."""
    dist.barrier()  # the folder is there
    fresh = not optimiser.state
    optimiser.zero_grad(set_to_none=True)
    weights, optim = get_state_dict(model, optimiser, options=STATE)
    for s in optimiser.state.values() if fresh else ():
        s["step"].zero_()  # asking for the state made one, and counted that as a step
    dcp.save({"model": weights, "optim": optim}, checkpoint_id=folder / "state")
    if processes.MAIN:
        write_json(folder / "trainer.json", about)


def load_state(folder: Path, model, optimiser):
    """What `save_state` wrote, into model and optimiser; the optimiser's own settings (lr, weight decay)
    stay. ValueError: it belongs to another model."""
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimiser.param_groups]
    weights, optim = get_state_dict(model, optimiser, options=STATE)
    try:
        dcp.load({"model": weights, "optim": optim}, checkpoint_id=folder / "state")
    except CheckpointException as error:
        why = next(iter(error.failures.values()))[0]
        raise ValueError(f"{folder} does not fit this model ({why}); it was trained from another") from None
    options = replace(STATE, strict=False)
    set_state_dict(model, optimiser, model_state_dict=weights, optim_state_dict=optim, options=options)
    for group, own in zip(optimiser.param_groups, settings):
        group.update(own)
