"""A precision for each group of modules, through real engines of two ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunTrial
from engine_facts import engine_facts
from planted_model import planted_workload
from small_models import TIED, build
from torch import nn
from two_ranks import Facts

from autotune.errors import ConfigError
from autotune.knob_values import ModuleGroup
from autotune.question.workload import Method, Workload
from autotune.space.strategy import Strategy
from autotune.techniques.master_weights import MasterWeights
from autotune.techniques.precision import module_groups, parameter_groups, set_precisions

BF16, FP16, FP32 = "torch.bfloat16", "torch.float16", "torch.float32"

SURVEY = {
    "precision": "bf16",
    "embedding_precision": "fp32",
    "mlp_precision": "fp16",
    "norm_precision": "fp32",
}
"""What the survey advises: embedding fp32, attention bf16, feed-forward fp16."""

WIDE = {"embedding_precision": "fp32", "norm_precision": "fp32", "lm_head_precision": "fp32"}

CASES: dict[str, dict[str, Any]] = {
    "fp32": {"knobs": {"precision": "fp32"}},
    "wide, ZeRO-0": {"knobs": WIDE},
    "wide, ZeRO-1": {"knobs": WIDE | {"zero_stage": 1}},
    "wide, ZeRO-2": {"knobs": WIDE | {"zero_stage": 2}},
    "survey, ZeRO-0": {"knobs": SURVEY},
    "survey, ZeRO-1": {"knobs": SURVEY | {"zero_stage": 1}},
    "survey, ZeRO-2": {"knobs": SURVEY | {"zero_stage": 2}},
    "fp16 stream": {
        "knobs": {
            "precision": "fp16",
            "norm_precision": "fp32",
            "attention_precision": "bf16",
            "zero_stage": 1,
        }
    },
    "fp16 stream, ZeRO-0": {
        "knobs": {"precision": "fp16", "norm_precision": "fp32", "attention_precision": "bf16"}
    },
    "fp16 alone, ZeRO-0": {"knobs": {"precision": "fp16"}},
    "fp32 stream": {
        "knobs": {"precision": "fp32", "attention_precision": "bf16", "mlp_precision": "fp16"}
        | {"zero_stage": 2}
    },
    "recomputed": {
        "knobs": WIDE | {"checkpoint_interval": 2, "mlp_tiles": 2, "loss_tiles": 2},
    },
    "exported, ZeRO-0": {"knobs": WIDE, "as_exported": True},
    "exported fp16, ZeRO-0": {"knobs": SURVEY, "as_exported": True},
    "exported, ZeRO-2": {"knobs": SURVEY | {"zero_stage": 2}, "as_exported": True},
    "overflow, ZeRO-0": {"knobs": SURVEY, "loss_scale": 2.0**40},
    "overflow, ZeRO-1": {"knobs": SURVEY | {"zero_stage": 1}, "loss_scale": 2.0**40},
    "one overflow, ZeRO-0": {"knobs": SURVEY, "overflowing_step": 2},
    "one overflow, ZeRO-1": {"knobs": SURVEY | {"zero_stage": 1}, "overflowing_step": 2},
    "overflow, ZeRO-2": {"knobs": SURVEY | {"zero_stage": 2}, "loss_scale": 2.0**40},
}


@pytest.fixture(scope="module")
def facts(tiny: Workload, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """All cases in one pair of ranks."""
    return engine_facts(tmp_path_factory.mktemp("ranks"), tiny, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ZeRO-0", "ZeRO-1", "ZeRO-2"])
def test_weights_and_outputs_of_each_group_have_its_precision(facts: Facts, stage: str) -> None:
    own = {"embedding": FP32, "attention": BF16, "mlp": FP16, "norm": FP32, "lm_head": BF16}
    run = facts[f"survey, {stage}"]
    wrapper = "ScaledMasterWeights" if stage == "ZeRO-0" else "DeepSpeedZeroOptimizer"
    assert run["optimizer"] == wrapper
    assert run["parameters"] == {group: [dtype] for group, dtype in own.items()}
    assert run["raw"] == {group: [dtype] for group, dtype in own.items()}
    # Beyond its border each group's output is the residual stream's.
    assert run["outputs"] == {group: [BF16] for group in own}


@pytest.mark.slow
def test_logits_keep_the_precision_of_the_head(facts: Facts) -> None:
    assert facts["wide, ZeRO-1"]["outputs"]["lm_head"] == [FP32]


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in CASES if name != "fp32"])
def test_what_the_optimizer_updates_is_fp32(facts: Facts, case: str) -> None:
    assert set(facts[case]["masters"]) == {FP32}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [name for name in CASES if name != "fp32" and "overflow" not in name]
)
def test_group_precisions_learn_as_fp32_does(facts: Facts, case: str) -> None:
    losses, plain = facts[case]["losses"], facts["fp32"]["losses"]
    assert losses == pytest.approx(plain, rel=1e-3)
    assert losses != plain
    assert facts[case]["skipped"][-1] == 0


@pytest.mark.slow
def test_the_learning_rate_shows_gradients_of_a_wrong_size(facts: Facts) -> None:
    losses = facts["fp32"]["losses"]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", [n for n in CASES if "survey" in n or n.startswith("fp16")])
def test_the_loss_is_scaled_wherever_a_group_is_fp16(facts: Facts, case: str) -> None:
    assert facts[case]["scale"] == 2**12
    assert facts["wide, ZeRO-2"]["scale"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ZeRO-0", "ZeRO-1", "ZeRO-2"])
def test_an_overflow_skips_the_step_and_lowers_the_scale(facts: Facts, stage: str) -> None:
    run = facts[f"overflow, {stage}"]
    assert run["skipped"] == [1, 2, 3, 4, 5]
    assert run["weights"] == [run["weights"][0]] * 6
    # By half each time, but for the first: DeepSpeed's hysteresis is 2.
    assert run["scale"] == 2.0**36


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ZeRO-0", "ZeRO-1"])
def test_an_overflow_on_one_rank_skips_that_step_on_all(facts: Facts, stage: str) -> None:
    run, plain = facts[f"one overflow, {stage}"], facts[f"survey, {stage}"]
    assert run["skipped"] == [0, 0, 1, 1, 1]
    weights = run["weights"]
    assert weights[:3] == plain["weights"][:3]
    assert weights[3] == weights[2]
    assert weights[4] != weights[3]
    assert run["agrees"]
    # The next steps start from where the third did.
    assert run["losses"][:3] == plain["losses"][:3]


@pytest.mark.slow
def test_fp16_without_zero_learns_as_with_it(facts: Facts) -> None:
    losses = facts["survey, ZeRO-0"]["losses"]
    assert losses == pytest.approx(facts["survey, ZeRO-1"]["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exported", "trial"),
    [
        ("exported, ZeRO-0", "wide, ZeRO-0"),
        ("exported fp16, ZeRO-0", "survey, ZeRO-0"),
        ("exported, ZeRO-2", "survey, ZeRO-2"),
    ],
)
def test_an_export_trains_as_the_trial_did(facts: Facts, exported: str, trial: str) -> None:
    for fact in ("losses", "weights", "parameters", "raw", "outputs", "scale", "optimizer"):
        assert facts[exported][fact] == facts[trial][fact]


@pytest.mark.slow
def test_recomputation_repeats_the_casts(facts: Facts) -> None:
    losses = facts["recomputed"]["losses"]
    assert losses == pytest.approx(facts["wide, ZeRO-0"]["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_an_overflowing_step_is_recorded_and_not_timed(
    run_trial: RunTrial, tiny: Workload, tmp_path: Path, zero_stage: int
) -> None:
    workload = planted_workload(tmp_path / "model", "overflow_in_one_step", tiny)
    outcome = run_trial(workload=workload, folder=tmp_path, zero_stage=zero_stage, **SURVEY)
    assert outcome.measurement is not None, outcome.failure
    assert outcome.measurement.skipped_steps == 1
    # Two steps warm up, the third overflows, the next two are timed.
    assert len(outcome.measurement.losses) == 5
    assert len(outcome.measurement.step_times_s) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        {"optimizer": "adamw", "zero_stage": 0},
        {"optimizer": "adafactor", "zero_stage": 0},
        {"optimizer": "adamw_8bit", "zero_stage": 0},
        {
            "optimizer": "adamw",
            "zero_stage": 2,
            "overlap_comm": False,
            "reduce_bucket_size": 10_000,
        },
        {"optimizer": "lion_8bit", "zero_stage": 1},
        {"optimizer": "adamw", "zero_stage": 0, "mlp_precision": "fp16"},
        {"optimizer": "adafactor", "zero_stage": 0, "precision": "fp16"},
        {"optimizer": "adamw_8bit", "zero_stage": 0, "mlp_precision": "fp16"},
    ],
    ids=str,
)
def test_other_optimizers_take_groups_of_several_precisions(
    run_trial: RunTrial, knobs: dict[str, Any]
) -> None:
    outcome = run_trial(**WIDE, **knobs)
    assert outcome.measurement is not None, outcome.failure


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_adapters_train_beside_norms_and_embeddings_in_fp32(
    run_trial: RunTrial, tiny: Workload, method: Method
) -> None:
    outcome = run_trial(workload=replace(tiny, method=method), lora_rank=8, zero_stage=2, **WIDE)
    assert outcome.measurement is not None, outcome.failure


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_without_zero_adapters_train_in_fp16(
    run_trial: RunTrial, tiny: Workload, method: Method
) -> None:
    outcome = run_trial(workload=replace(tiny, method=method), lora_rank=8, precision="fp16")
    assert outcome.measurement is not None, outcome.failure
    assert outcome.measurement.skipped_steps == 0


@pytest.mark.slow
def test_without_zero_adapters_train_beside_a_frozen_mlp_in_fp16(
    run_trial: RunTrial, tiny: Workload
) -> None:
    knobs = {"lora_rank": 8, "lora_targets": "attention", "mlp_precision": "fp16"}
    outcome = run_trial(workload=replace(tiny, method=Method.LORA), **knobs)
    assert outcome.measurement is not None, outcome.failure


MODELS = ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "mixtral", "opt"]


@pytest.mark.parametrize("model_type", MODELS)
def test_every_parameter_is_in_a_group(model_type: str) -> None:
    model = build(model_type)
    groups = module_groups(model)
    assert all(groups[group] for group in ModuleGroup)
    grouped = {id(p) for modules in groups.values() for m in modules for p in m.parameters()}
    assert all(id(parameter) in grouped for parameter in model.parameters())


@pytest.mark.parametrize("model_type", MODELS)
def test_every_architecture_computes_in_several_precisions(model_type: str) -> None:
    model: Any = build(model_type).bfloat16()
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    head = {"lm_head_precision": "fp32"} if is_tied else {}
    knobs = {"embedding_precision": "fp32", "mlp_precision": "fp16", "norm_precision": "fp32"}
    set_precisions(model, Strategy.from_dict(knobs | head))
    tokens = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    dtypes = Counter(parameter.dtype for parameter in model.parameters())
    assert set(dtypes) == {torch.float32, torch.float16, torch.bfloat16}


def test_norms_inside_an_attention_have_the_precision_of_norms() -> None:
    model: Any = build("qwen3").bfloat16()
    set_precisions(model, Strategy.from_dict({"norm_precision": "fp32"}))
    attention = model.model.layers[0].self_attn
    assert attention.q_norm.weight.dtype is torch.float32
    assert attention.q_proj.weight.dtype is torch.bfloat16
    output = attention.q_norm(torch.ones(1, 1, 8, dtype=torch.bfloat16))
    assert output.dtype is torch.bfloat16


def test_shared_weights_of_two_precisions_are_refused() -> None:
    model = build("llama", **TIED)
    with pytest.raises(ConfigError, match="share their weights"):
        set_precisions(model, Strategy.from_dict({"embedding_precision": "fp32"}))


def test_shared_weights_stay_shared() -> None:
    model: Any = build("llama", **TIED).bfloat16()
    wide = {"embedding_precision": "fp32", "lm_head_precision": "fp32"}
    set_precisions(model, Strategy.from_dict(wide))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_parameters_of_one_precision_are_one_group() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    assert parameter_groups(parameters) == parameters


@pytest.mark.parametrize(
    ("dtypes", "order"),
    [
        ([torch.bfloat16, torch.float32, torch.bfloat16], [torch.float32, torch.bfloat16]),
        (
            [torch.bfloat16, torch.float16, torch.float32],
            [torch.float16, torch.float32, torch.bfloat16],
        ),
    ],
)
def test_the_group_that_zero_looks_at_comes_first(
    dtypes: list[torch.dtype], order: list[torch.dtype]
) -> None:
    groups = parameter_groups(nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in dtypes)
    found = [group["params"][0].dtype for group in groups if isinstance(group, dict)]
    assert found == order


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-4)
    optimizer.step()


def test_masters_hold_what_16_bit_cannot() -> None:
    parameters = [nn.Parameter(torch.ones(2).to(dtype)) for dtype in (torch.bfloat16, torch.float)]
    optimizer = MasterWeights(torch.optim.SGD(parameters, lr=1.0))
    _step(optimizer, parameters)
    # One step is too small for bf16; a hundred together are not.
    assert parameters[0].tolist() == [1, 1]
    for _ in range(99):
        _step(optimizer, parameters)
    assert parameters[0].float().tolist() == pytest.approx([0.99, 0.99], abs=2**-8)
    assert parameters[1].tolist() == pytest.approx([0.99, 0.99], rel=1e-5)


def test_masters_outlive_a_checkpoint() -> None:
    saved, loaded = [[nn.Parameter(torch.ones(2).bfloat16())] for _ in range(2)]
    optimizers = [MasterWeights(torch.optim.AdamW(p, lr=1e-4)) for p in (saved, loaded)]
    _step(optimizers[0], saved)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for parameters, optimizer in zip((saved, loaded), optimizers, strict=True):
        _step(optimizer, parameters)
    masters = [optimizer.param_groups[0]["params"][0] for optimizer in optimizers]
    assert torch.equal(*masters)


@pytest.fixture
def untouched_tf32() -> Iterator[None]:
    """The switch is one for the whole process."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.usefixtures("untouched_tf32")
def test_tf32_is_switched_as_the_strategy_says(tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = not tf32
    set_precisions(build("llama"), Strategy.from_dict({"precision": "fp32", "tf32": tf32}))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
