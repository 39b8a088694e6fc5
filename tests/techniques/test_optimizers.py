"""Optimizers in real engines of two ranks: they train, and keep the states they should."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import RunTrial
from one_batch import TOKENS
from optimizer_facts import optimizer_facts
from small_models import TIED, build
from two_ranks import Facts

from autotune.knob_values import Optimizer
from autotune.machine.hardware import DeviceType, Hardware, detect_hardware
from autotune.predictor.memory.states import StatesModel
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import deepspeed_config, is_client_optimizer
from autotune.space.strategy import Strategy
from autotune.techniques.optimizers import build_optimizer

ON_ALL_STAGES = ("adamw", "adamw_8bit", "lion", "lion_8bit", "sgd", "muon")
BYTE_AND_ABSMAX = 1 + 4 / 256
"""Of one 8-bit moment: the absmax is fp32, for each block of 256."""

STAGES_AND_PRECISIONS = (
    *((stage, "bf16") for stage in (0, 1, 2, 3)),
    # In fp32 the optimizer updates the weights themselves at stage 0, a copy of them at others.
    (0, "fp32"),
    (1, "fp32"),
)

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
"""With weights that bitsandbytes thinks worth 8 bits."""

Cases = dict[str, tuple[Workload, dict[str, Any]]]


def _name(**knobs: Any) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(knobs.items()))


@pytest.fixture(scope="module")
def facts(tiny: Workload, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """A few steps over one batch, of every optimizer in every way in which it runs."""
    cases: Cases = {}

    def add(workload: Workload = tiny, label: str = "", **knobs: Any) -> None:
        cases[label + _name(**knobs)] = (workload, knobs)

    for optimizer in ON_ALL_STAGES:
        for stage, precision in STAGES_AND_PRECISIONS:
            add(optimizer=optimizer, zero_stage=stage, precision=precision)
        for stage in (1, 2, 3):
            add(optimizer=optimizer, zero_stage=stage, master_weights="bf16")
    for stage in (2, 3):
        for optimizer in ("muon", "sgd"):
            add(optimizer=optimizer, zero_stage=stage, precision="fp32")
    for precision in ("bf16", "fp32"):
        add(optimizer="adafactor", zero_stage=0, precision=precision)
    if detect_hardware().supports_fp16:
        for stage in (1, 2, 3):
            add(optimizer="muon", zero_stage=stage, precision="fp16")
    for stage in (0, 1, 3):
        lora = replace(tiny, method=Method.LORA)
        add(lora, "lora ", optimizer="muon", zero_stage=stage, lora_rank=8)
    return optimizer_facts(tmp_path_factory.mktemp("optimizers"), cases)


slow = pytest.mark.slow


@slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("zero_stage", "precision"), STAGES_AND_PRECISIONS)
@pytest.mark.parametrize("optimizer", ON_ALL_STAGES)
def test_an_optimizer_learns_under_every_zero_stage(
    facts: Facts, optimizer: str, zero_stage: int, precision: str
) -> None:
    _learns(facts[_name(optimizer=optimizer, zero_stage=zero_stage, precision=precision)])


@slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ON_ALL_STAGES)
def test_an_optimizer_learns_with_bf16_master_weights(
    facts: Facts, optimizer: str, zero_stage: int
) -> None:
    _learns(facts[_name(optimizer=optimizer, zero_stage=zero_stage, master_weights="bf16")])


@slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_adafactor_learns_without_zero(facts: Facts, precision: str) -> None:
    _learns(facts[_name(optimizer="adafactor", zero_stage=0, precision=precision)])


def _learns(found: Facts) -> None:
    losses = found["losses"]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("knobs", "bytes_per_parameter"),
    [
        # Two moments in the master's precision.
        ({"optimizer": "adamw", "precision": "bf16"}, 8.0),
        ({"optimizer": "adamw", "master_weights": "bf16"}, 4.0),
        # bitsandbytes' have a precision of their own, whatever the master's.
        ({"optimizer": "adamw_8bit", "precision": "bf16"}, 2 * BYTE_AND_ABSMAX),
        ({"optimizer": "adamw_8bit", "master_weights": "bf16"}, 2 * BYTE_AND_ABSMAX),
        ({"optimizer": "lion", "precision": "bf16"}, 4.0),
        ({"optimizer": "lion", "master_weights": "bf16"}, 4.0),
        ({"optimizer": "lion_8bit", "precision": "bf16"}, BYTE_AND_ABSMAX),
        ({"optimizer": "sgd", "precision": "bf16"}, 4.0),
        ({"optimizer": "sgd", "master_weights": "bf16"}, 2.0),
    ],
    ids=str,
)
def test_states_of_one_partition_have_the_expected_size(
    facts: Facts, zero_stage: int, knobs: dict[str, str], bytes_per_parameter: float
) -> None:
    found = facts[_name(zero_stage=zero_stage, **knobs)]
    owned = found["num_trainable_parameters"] / 2
    assert found["bytes"] / owned == pytest.approx(bytes_per_parameter, rel=0.01)


@slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"), [("adamw", 8), ("lion", 4), ("sgd", 4)]
)
def test_without_zero_states_are_fp32_and_whole(
    facts: Facts, optimizer: str, bytes_per_parameter: int, precision: str
) -> None:
    found = facts[_name(optimizer=optimizer, zero_stage=0, precision=precision)]
    expected = bytes_per_parameter * found["num_trainable_parameters"]
    assert found["bytes"] == pytest.approx(expected, rel=0.01)


@slow
@pytest.mark.parametrize(
    ("precision", "zero_stage", "wrapper"),
    [
        ("fp32", 0, "AdamW"),
        ("bf16", 0, "FP16_UnfusedOptimizer"),
        ("bf16", 1, "DeepSpeedZeroOptimizer"),
        ("bf16", 2, "DeepSpeedZeroOptimizer"),
        ("bf16", 3, "DeepSpeedZeroOptimizer_Stage3"),
    ],
)
def test_adamw_is_torchs_under_every_wrapper_of_deepspeed(
    facts: Facts, precision: str, zero_stage: int, wrapper: str
) -> None:
    found = facts[_name(optimizer="adamw", zero_stage=zero_stage, precision=precision)]
    assert (found["wrapper"], found["optimizer"]) == (wrapper, "AdamW")
    assert found["fused"] == [False]


def test_adamw_is_fused_on_a_gpu(tiny: Workload) -> None:
    config = deepspeed_config(tiny, Strategy(), num_devices=1, device_type=DeviceType.CUDA)
    assert config["optimizer"]["params"]["torch_adam"] is True
    assert config["optimizer"]["params"]["fused"] is True


@slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_adafactor_keeps_a_row_and_a_column_of_each_matrix(facts: Facts, precision: str) -> None:
    found = facts[_name(optimizer="adafactor", zero_stage=0, precision=precision)]
    kept = dict(zip(found["names"], found["states"], strict=True))
    states = kept["model.layers.0.mlp.up_proj.weight"]
    assert states["row_var"] == [[256, 1], "torch.float32"]
    assert states["col_var"] == [[1, 96], "torch.float32"]
    assert "variance" not in states
    assert kept["model.norm.weight"]["variance"][0] == [96]
    assert found["bytes"] / found["num_trainable_parameters"] < 0.1


def test_adafactor_over_a_flat_partition_keeps_the_whole_second_moment() -> None:
    """Why ZeRO is refused: what torch's Adafactor makes of a matrix without its shape."""

    def kept(*shape: int) -> dict[str, int]:
        parameter = torch.nn.Parameter(torch.ones(shape))
        parameter.grad = torch.ones(shape)
        optimizer = torch.optim.Adafactor([parameter])
        optimizer.step()
        states = optimizer.state[parameter].items()
        return {key: state.numel() for key, state in states if key != "step"}

    assert kept(16, 8) == {"row_var": 16, "col_var": 8}
    assert kept(16 * 8) == {"variance": 16 * 8}


@slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("optimizer", "moments"), [("adamw_8bit", ("state1", "state2")), ("lion_8bit", ("state1",))]
)
def test_without_zero_8_bit_optimizers_keep_the_embedding_in_32_bit(
    facts: Facts, optimizer: str, moments: tuple[str, ...], precision: str
) -> None:
    found = facts[_name(optimizer=optimizer, zero_stage=0, precision=precision)]
    kept = dict(zip(found["names"], found["states"], strict=True))
    for moment in moments:
        assert kept["model.embed_tokens.weight"][moment] == [[512, 96], "torch.float32"]
        assert kept["lm_head.weight"][moment] == [[512, 96], "torch.uint8"]
        assert kept["model.layers.0.mlp.up_proj.weight"][moment][1] == "torch.uint8"
        # bitsandbytes' own rule: fewer than 4096 elements are not worth it.
        assert kept["model.norm.weight"][moment][1] == "torch.float32"
    embedding, norms = 512 * 96, 9 * 96
    rest = found["num_trainable_parameters"] - embedding - norms
    expected = len(moments) * (4 * (embedding + norms) + BYTE_AND_ABSMAX * rest)
    assert found["bytes"] == pytest.approx(expected, rel=0.01)


@slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_under_zero_8_bit_optimizers_see_one_partition_all_in_8_bit(
    facts: Facts, zero_stage: int
) -> None:
    found = facts[_name(optimizer="adamw_8bit", zero_stage=zero_stage, precision="bf16")]
    (partition,) = found["states"]
    assert partition["state1"][1] == partition["state2"][1] == "torch.uint8"


def test_an_embedding_that_is_the_head_too_stays_in_32_bit() -> None:
    model: Any = build("llama", **WIDE, **TIED)
    optimizer = build_optimizer(model, Strategy(optimizer=Optimizer.ADAMW_8BIT), 1e-3)
    assert optimizer is not None
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    assert optimizer.state[model.lm_head.weight]["state1"].dtype is torch.float32
    assert optimizer.state[model.model.layers[0].mlp.up_proj.weight]["state1"].dtype is torch.uint8


def test_the_32_bit_embedding_of_one_optimizer_is_not_taken_for_anothers_partition() -> None:
    model = build("llama", **WIDE)
    build_optimizer(model, Strategy(optimizer=Optimizer.ADAMW_8BIT), 1e-3)
    flat = Strategy(optimizer=Optimizer.ADAMW_8BIT, zero_stage=1)
    optimizer = build_optimizer(model, flat, 1e-3)
    assert optimizer is not None
    partition = torch.nn.Parameter(torch.ones(8192))
    partition.grad = torch.ones(8192)
    optimizer.param_groups[0]["params"] = [partition]  # as DeepSpeed does
    optimizer.step()
    assert optimizer.state[partition]["state1"].dtype is torch.uint8


@slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_muon_learns_alike_under_every_zero_stage(facts: Facts, zero_stage: int) -> None:
    plain, divided = (
        facts[_name(optimizer="muon", zero_stage=stage, precision="fp32")]["losses"]
        for stage in (0, zero_stage)
    )
    assert divided == pytest.approx(plain, rel=1e-4)


@slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_muon_moves_a_matrix_alike_in_all_directions(facts: Facts, zero_stage: int) -> None:
    def evenness(optimizer: str) -> float:
        """1 where all singular values of the first step are equal; near 0 where one is large."""
        found = facts[_name(optimizer=optimizer, zero_stage=zero_stage, precision="fp32")]
        values = torch.tensor(found["singular_values"])
        return float(values.sum() ** 2 / (len(values) * values.square().sum()))

    assert evenness("muon") > 0.9
    assert evenness("sgd") < 0.5


@slow
@pytest.mark.parametrize(
    ("zero_stage", "knobs", "momentum", "moment"),
    [
        # Without ZeRO, Muon works on fp32 copies; under it, on gradients, and in their precision.
        (0, {"precision": "bf16"}, 4, 4),
        (0, {"precision": "fp32"}, 4, 4),
        (1, {"precision": "bf16"}, 2, 4),
        (2, {"precision": "bf16"}, 2, 4),
        (3, {"precision": "bf16"}, 2, 4),
        (1, {"precision": "fp32"}, 4, 4),
        (2, {"precision": "fp32"}, 4, 4),
        (3, {"precision": "fp32"}, 4, 4),
        (1, {"master_weights": "bf16"}, 2, 2),
        (3, {"master_weights": "bf16"}, 2, 2),
    ],
    ids=str,
)
def test_muon_keeps_one_moment_of_matrices_and_adamws_two_of_all_else(
    facts: Facts,
    tiny: Workload,
    cpu_hardware: Hardware,
    zero_stage: int,
    knobs: dict[str, str],
    momentum: int,
    moment: int,
) -> None:
    found = facts[_name(optimizer="muon", zero_stage=zero_stage, **knobs)]
    others = 2 * 512 * 96 + 9 * 96  # embedding, head, norms
    matrices = found["num_trainable_parameters"] - others
    expected = momentum * matrices + 2 * moment * others
    if zero_stage:
        expected /= 2
    if zero_stage in (1, 2):
        # The matrix at the border of two partitions has its whole momentum on both ranks: by
        # shape, the largest first, eight of 256 x 96 and a quarter of the next of 96 x 256.
        expected += momentum * 256 * 96 * 3 / 4
    assert found["bytes"] == pytest.approx(expected, rel=1e-4)
    strategy = Strategy.from_dict(
        {"micro_batch_size": 2, "optimizer": "muon", "zero_stage": zero_stage} | knobs
    )
    predicted = StatesModel(tiny, cpu_hardware).of(strategy)
    assert predicted.optimizer_states == pytest.approx(found["bytes"], rel=1e-4)


@slow
@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_muon_learns_lora_adapters(facts: Facts, zero_stage: int) -> None:
    found = facts["lora " + _name(optimizer="muon", zero_stage=zero_stage, lora_rank=8)]
    _learns(found)
    assert all(set(states) == {"momentum_buffer"} for states in found["states"])


@slow
@pytest.mark.skipif(not detect_hardware().supports_fp16, reason="DeepSpeed refuses fp16 here")
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_muon_learns_in_fp16_under_zero(facts: Facts, zero_stage: int) -> None:
    _learns(facts[_name(optimizer="muon", zero_stage=zero_stage, precision="fp16")])


@slow
@pytest.mark.timeout(600)
def test_muons_kernels_compile_in_a_trial(run_trial: RunTrial) -> None:
    outcome = run_trial(zero_stage=1, optimizer="muon", timeout_s=500.0)
    assert outcome.measurement is not None, outcome.failure


# Importing DeepSpeed's Muon imports all of inductor.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_muon_leaves_embeddings_of_any_name_to_adamw() -> None:
    model = build("gpt2")
    optimizer = build_optimizer(model, Strategy(optimizer=Optimizer.MUON), 1e-3)
    assert optimizer is not None
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        group["use_muon"]: {names[parameter] for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    assert {"transformer.wte.weight", "transformer.wpe.weight"} < groups[False]
    assert all(".h." in name and name.endswith("weight") for name in groups[True])
    assert groups[True] | groups[False] == set(names.values())


def test_the_paged_optimizer_is_bitsandbytes_own() -> None:
    strategy = Strategy(optimizer=Optimizer.PAGED_ADAMW_8BIT)
    assert is_client_optimizer(strategy)
    optimizer: Any = build_optimizer(build("llama", **WIDE), strategy, 1e-3)
    assert type(optimizer).__name__ == "PagedAdamW8bit"
    assert optimizer.is_paged
    assert optimizer.args.optim_bits == 8


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_no_flat_tensor_is_larger_than_the_8_bit_kernels_take(
    monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    monkeypatch.setattr("autotune.techniques.optimizers.BITSANDBYTES_MOST_ELEMENTS", 10_000)
    model = build("llama")
    strategy = Strategy(optimizer=Optimizer.ADAMW_8BIT, zero_stage=zero_stage)
    optimizer = build_optimizer(model, strategy, 1e-3)
    assert optimizer is not None
    groups = [group["params"] for group in optimizer.param_groups]
    assert [p for members in groups for p in members] == list(model.parameters())
    if zero_stage:
        assert len(groups) > 1
        assert all(sum(p.numel() for p in members) <= 10_000 for members in groups)
    else:
        assert len(groups) == 1
