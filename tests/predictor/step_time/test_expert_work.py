"""The work of routed experts is that which transformers' code does."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.knob_values import Attention, Experts
from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.predictor import AnalyticPredictor
from autotune.predictor.step_time.expert_work import (
    _OPERATIONS,
    RoutedExperts,
    active_share,
    expert_work,
)
from autotune.profile.gpu_kernels import attention_workspace_bytes, gpu_kernels
from autotune.profile.skeleton import build_skeleton
from autotune.profile.tape import Kernel, Tape
from autotune.profile.variant import Variant
from autotune.question.workload import Method, ModelShape, Workload, load_model_shape
from autotune.space.strategy import Strategy
from autotune.techniques.blocks import decoder_layers, mlp_blocks
from autotune.techniques.kernels import choose_experts

TOKENS = 64
SIZES = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "vocab_size": 1024,
}
"""A layer of Qwen3-30B-A3B with a quarter of its experts."""

H200 = Hardware(
    device_type=DeviceType.CUDA,
    device_kind="H200",
    num_devices=1,
    device_memory_bytes=DEVICE_KINDS["H200"].memory_bytes,
    host_memory_bytes=2**40,
    flops_per_s=DEVICE_KINDS["H200"].flops_per_s,
    memory_bytes_per_s=DEVICE_KINDS["H200"].memory_bytes_per_s,
    compute_capability=(9, 0),
)


@cache
def mixture() -> ModelShape:
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SIZES))
        return load_model_shape(folder)


@cache
def dispatched(experts: Experts, *, is_trained: bool) -> list[Kernel]:
    """The kernels of one layer's router and experts, forward and backward."""
    rank, targets = (0, ()) if is_trained else (4, ("attention",))
    variant = Variant(
        attention=Attention.SDPA,
        element_bytes=2,
        experts=experts,
        lora_rank=rank,
        lora_targets=targets,
    )
    with FakeTensorMode(), gpu_kernels():
        tape = Tape(attention_workspace_bytes)
        tape.has_expert_loop = experts is Experts.EAGER
        model = build_skeleton(mixture(), variant)
        experts_of_one: nn.Module = mlp_blocks(decoder_layers(model, 2))[0]
        tape.know([*model.parameters(), *model.buffers()])
        rows = torch.zeros(1, TOKENS, 2048, dtype=torch.bfloat16, requires_grad=True)
        tape.know([rows])
        tape.enter("experts")
        with tape:
            out = experts_of_one(rows)
            out = out[0] if isinstance(out, tuple) else out
            tape.is_backward = True
            out.backward(rows.detach())
    return tape.kernels[:]


IS_PRODUCT = ("mm", "bmm", "_grouped_mm")


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("experts", Experts)
def test_as_many_kernels_are_launched_as_are_counted(experts: Experts, is_trained: bool) -> None:
    kernels = dispatched(experts, is_trained=is_trained)
    for work, is_backward in zip(
        expert_work(mixture(), experts, is_trained=is_trained), (False, True), strict=True
    ):
        num = sum(kernel.is_backward is is_backward for kernel in kernels)
        assert work.num_kernels == pytest.approx(num, rel=0.06)


@pytest.mark.parametrize("experts", [Experts.GROUPED_MM, Experts.BATCHED_MM])
def test_as_many_bytes_are_moved_as_are_counted(experts: Experts) -> None:
    shape = mixture()
    # Copies of weights are counted as written, read from the memory, and read by the products.
    copied = 8 * 2 * 3 * shape.hidden_size * shape.intermediate_size
    for work, is_backward in zip(
        expert_work(shape, experts, is_trained=False), (False, True), strict=True
    ):
        moved = sum(
            kernel.moved_bytes
            for kernel in dispatched(experts, is_trained=False)
            if kernel.is_backward is is_backward
            and kernel.name not in IS_PRODUCT
            and len(kernel.shapes[0] if kernel.shapes else ()) < 3 + (kernel.name != "index")
        )
        counted = work.token_bytes
        if experts is Experts.BATCHED_MM:
            counted -= copied * (1 if is_backward else 3)
        assert counted * TOKENS == pytest.approx(moved, rel=0.05)


def test_the_loop_adds_up_gradients_of_all_weights_for_each_expert() -> None:
    _, backward = expert_work(mixture(), Experts.EAGER, is_trained=True)
    kernels = dispatched(Experts.EAGER, is_trained=True)
    moved = sum(
        kernel.moved_bytes
        for kernel in kernels
        if kernel.name in ("select_backward", "add") and kernel.is_backward
    )
    assert backward.fixed_bytes == pytest.approx(moved, rel=0.15)


class _Counter(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.num += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("experts", Experts)
def test_as_many_operations_are_dispatched_as_are_counted(experts: Experts) -> None:
    small = SIZES | {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
    small |= {"moe_intermediate_size": 32, "intermediate_size": 32, "num_experts": 16}
    fields = {name: value for name, value in small.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen3_moe", **fields), dtype=torch.bfloat16
    )
    model.requires_grad_(False)
    choose_experts(model, experts)
    block: nn.Module = mlp_blocks(decoder_layers(model, 2))[0]
    rows = torch.randn(1, TOKENS, 64, dtype=torch.bfloat16, requires_grad=True)
    # The first call of all may do more.
    block(rows)
    with _Counter() as forward:
        out = block(rows)
    out = out[0] if isinstance(out, tuple) else out
    gradient = torch.ones_like(out)
    with _Counter() as backward:
        out.backward(gradient)
    counted = [num * 16 + rest for num, rest in _OPERATIONS[experts]]
    assert counted == pytest.approx([forward.num, backward.num], abs=2)


def test_shared_weights_are_for_every_token() -> None:
    shape = mixture()
    assert shape.census is not None
    routed = shape.expert_parameters / shape.census.mlp
    assert active_share(shape) == pytest.approx(1 - routed + routed * 8 / 32)
    alone = replace(shape, census=None)
    assert active_share(alone) == 8 / 32


@pytest.mark.parametrize("num_samples", [1, 16])
def test_small_groups_have_products_of_more_rows_than_there_are(num_samples: int) -> None:
    workload = Workload(model=mixture(), seq_len=256, global_batch_size=16)
    strategy = Strategy(micro_batch_size=num_samples)
    rows = RoutedExperts(workload, strategy).matmul_flops(6) / 6
    mean = num_samples * 256 * 8 / 32
    assert rows == pytest.approx(1 + (32 if mean <= 128 else 64) / mean)


def test_grouped_products_are_predicted_to_be_the_fastest() -> None:
    workload = Workload(
        model=mixture(), seq_len=1024, global_batch_size=8, method=Method.LORA, lora_rank=8
    )
    predictor = AnalyticPredictor(workload, H200, traces=False)
    times = {
        experts: predictor.predict(
            Strategy(micro_batch_size=4, lora_rank=8, experts_implementation=experts)
        ).step_time_s
        for experts in Experts
    }
    assert min(times, key=lambda one: times[one]) is Experts.GROUPED_MM
