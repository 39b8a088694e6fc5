"""A model folder whose own code misbehaves in one rank, as a user's model might."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from autotune.question.workload import Workload, load_model_shape

_CODE = '''
import os, signal, subprocess, sys, time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def hang():
    time.sleep(3600)

def exit_at_once():
    os._exit(3)

def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)

def hog_memory():
    held = []
    while True:
        held.append(torch.ones(64 * 2**20))

def run_out_of_device_memory():
    raise torch.OutOfMemoryError("planted")

def run_out_of_host_memory():
    raise MemoryError("planted")

def lose_a_peer():
    raise torch.distributed.DistNetworkError("planted")

def refuse():
    raise ValueError("planted")

def overflow_in_one_step():
    """Make the gradients of rank 1's fifth forward too large for fp16."""
    global num_forwards, loss_factor
    num_forwards += 1
    loss_factor = 1e9 if num_forwards == 5 else 1

num_forwards, loss_factor = 0, 1

def flee():
    """Leave a process behind in a session of its own, then die."""
    code = "import time; time.sleep(3600)"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    os._exit(4)


class PlantedConfig(LlamaConfig):
    model_type = "planted"


class PlantedForCausalLM(LlamaForCausalLM):
    config_class = PlantedConfig

    def __init__(self, config):
        super().__init__(config)
        if config.fault == "refuse" and os.environ["RANK"] == "1":
            refuse()

    def forward(self, *args, **kwargs):
        if os.environ["RANK"] == "1":
            globals()[self.config.fault]()
        output = super().forward(*args, **kwargs)
        if loss_factor != 1:
            output.loss = output.loss * loss_factor
        return output
'''


def planted_workload(folder: Path, fault: str, like: Workload) -> Workload:
    """A workload whose model does `fault` in each of rank 1's forwards.

    Args:
        folder: where to put the model.
        fault: a function of the planted code.
        like: everything but the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(load_model_shape("tiny").config) | {
        "model_type": "planted",
        "fault": fault,
        "auto_map": {
            "AutoConfig": "modeling_planted.PlantedConfig",
            "AutoModelForCausalLM": "modeling_planted.PlantedForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_planted.py").write_text(_CODE)
    # Read without transformers: the tests' own process need not run the planted code.
    shape = replace(
        load_model_shape("tiny"), name=str(folder), model_type="planted", source=str(folder)
    )
    return replace(like, model=shape)
