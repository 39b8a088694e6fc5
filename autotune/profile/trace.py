"""Traces forward and backward of a model without memory, and reads the tape into a profile.

Runs the code of transformers, PEFT and Liger that a trial runs, with the kernels of a GPU, on two
samples: what is there once for all samples counts half. Needs a process in which
`stand_in_for_triton` was called, for variants with Liger.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.knob_values import Experts
from autotune.profile.gpu_kernels import attention_workspace_bytes, gpu_kernels
from autotune.profile.liger import launches_told_to
from autotune.profile.model_profile import ModelProfile
from autotune.profile.reading import Reading
from autotune.profile.skeleton import build_skeleton, layer_kinds, shortened
from autotune.profile.tape import Tape
from autotune.profile.variant import Variant
from autotune.question.workload import ModelShape
from autotune.techniques.blocks import causal_model, decoder_layers, is_attention
from autotune.techniques.precision import is_norm

__all__ = ["trace"]

_NUM_SAMPLES = 2


def trace(shape: ModelShape, variant: Variant, seq_len: int) -> ModelProfile:
    """The profile of one variant.

    Raises:
        Exception: of any kind, where the model's code cannot be followed without values.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        tape = Tape(attention_workspace_bytes)
        tape.enter((-1, "embedding"))
        tape.has_expert_loop = variant.experts is Experts.EAGER
        stack.enter_context(gpu_kernels())
        stack.enter_context(launches_told_to(tape.launch))
        whole = build_skeleton(shape, variant)
        kinds = layer_kinds(whole, shape.num_hidden_layers)
        short, counts = shortened(shape, kinds)
        model = build_skeleton(short, variant)
        tape.know([*model.parameters(), *model.buffers()])
        reading = Reading(tape, num_tokens=_NUM_SAMPLES * seq_len, counts=counts)
        _label_modules(model, short.num_hidden_layers, tape, reading)
        ids = torch.zeros(_NUM_SAMPLES, seq_len, dtype=torch.long)
        tape.know([ids])
        with tape:
            with torch.autograd.graph.saved_tensors_hooks(tape.pack, tape.unpack):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            tape.is_backward = True
            loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return reading.profile({tape.number(gradient) for gradient in gradients})


def _label_modules(model: nn.Module, num_layers: int, tape: Tape, reading: Reading) -> None:
    """Have the tape say in which part of which layer it is."""
    causal: Any = causal_model(model)
    for index, layer in enumerate(decoder_layers(model, num_layers)):
        layer.register_forward_pre_hook(_note_input(tape, reading, index), with_kwargs=True)
        _label(layer, tape, (index, "rest"), after=(-1, "final"))
        for name, child in layer.named_children():
            _label_child(name, child, tape, reading, index)
    decoder = getattr(causal, causal.base_model_prefix)
    decoder.register_forward_hook(lambda *_: tape.enter((-1, "loss")))
    head = causal.get_output_embeddings()
    if head is not None:
        _label(head, tape, (-1, "lm_head"), after=(-1, "loss"))


def _label_child(name: str, child: nn.Module, tape: Tape, reading: Reading, index: int) -> None:
    part = _part(name, child)
    _label(child, tape, (index, part), after=(index, "rest"))
    if part in ("attention", "mlp"):
        child.register_forward_pre_hook(
            lambda _, args, kwargs: reading.enter(index, part, _numbers(tape, args, kwargs)),
            with_kwargs=True,
        )


def _part(name: str, module: nn.Module) -> str:
    if is_attention(name) and not is_norm(module):
        return "attention"
    if is_norm(module):
        return "norm"
    return "mlp" if any(True for _ in module.parameters()) else "rest"


def _label(module: nn.Module, tape: Tape, label: Any, *, after: Any) -> None:
    module.register_forward_pre_hook(lambda *_: tape.enter(label), prepend=True)
    module.register_forward_hook(lambda *_: tape.enter(after))


def _note_input(tape: Tape, reading: Reading, index: int) -> Any:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        reading.start(index, tape.number(hidden))

    return hook


def _numbers(tape: Tape, args: Any, kwargs: Any) -> Iterable[int]:
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    return {tape.number(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)}
