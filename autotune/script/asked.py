"""The question that a user's own run has shown: workload, baseline, and what is held fixed.

Does not know how the run was made.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.knob_values import Attention, Precision
from autotune.machine.hardware import Hardware
from autotune.names import plain_name
from autotune.question.command import TrainingCommand
from autotune.question.lengths import Lengths
from autotune.question.own_training import OwnTraining
from autotune.question.unknown_model import unknown_model
from autotune.question.workload import Method, ModelShape, Workload, load_model_shape
from autotune.script.findings import Findings
from autotune.space.compatibility import reference_strategy
from autotune.space.own_training import own_knobs
from autotune.space.strategy import KNOBS, Strategy

__all__ = ["AskedByRun", "asked_by"]

_MOST_DIFFERENCE = 0.001
"""Share of its parameters by which a model may differ from what its configuration says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedByRun:
    """What a run asks."""

    workload: Workload
    baseline: Strategy
    """What the user trains with, as far as knobs can say it."""
    own_training: OwnTraining
    why_unknown: str | None
    """Why the predictor does not know the model, in words; None where it does."""


def asked_by(
    findings: Findings,
    command: TrainingCommand,
    hardware: Hardware,
    folder: Path,
    from_config: dict[str, Any],
) -> AskedByRun:
    """The question of a run.

    Args:
        findings: what the run has shown.
        command: what was run.
        hardware: what it ran on.
        folder: the study's; the model's configuration is kept in it.
        from_config: values of knobs that the run's DeepSpeed configuration says.
    """
    method, shape, why_unknown = _model(findings, folder)
    workload = Workload(
        model=shape,
        seq_len=min(_tokens_of_a_sample(findings), shape.max_position_embeddings),
        global_batch_size=findings.global_batch_size,
        method=method,
        lora_rank=findings.lora_rank or 16,
        lengths=_lengths(findings, is_known=why_unknown is None),
        **_targets(findings, shape, method),
    )
    baseline = _baseline(findings, workload, hardware, from_config, is_known=why_unknown is None)
    rows = findings.rows_per_batch / findings.micro_batch_size
    own = OwnTraining(
        command=command,
        is_predictable=why_unknown is None,
        rows_per_sample=0.0 if findings.is_joined else rows,
        joins_batches=findings.joins_batches and workload.lengths is not None,
        counts_tokens=findings.has_tokens,
        knobs=own_knobs(baseline),
    )
    return AskedByRun(
        workload=workload, baseline=baseline, own_training=own, why_unknown=why_unknown
    )


def _model(findings: Findings, folder: Path) -> tuple[Method, ModelShape, str | None]:
    """How it is trained, its shape, and why the predictor does not know it."""
    name = _name(findings)
    unknown = unknown_model(name, findings.num_parameters)
    method = Method.LORA if findings.lora_rank else Method.FULL
    if findings.is_quantized:
        method = Method.QLORA
    if not findings.has_tokens:
        return Method.FULL, unknown, f"{findings.model_class} is not fed tokens"
    if not findings.is_joined and findings.rows_per_batch != findings.micro_batch_size:
        words = f"it is fed {findings.rows_per_batch} rows for {findings.micro_batch_size} samples"
        return Method.FULL, unknown, words
    is_part = findings.num_trainable_parameters != findings.num_parameters
    if method is Method.FULL and is_part:
        return Method.FULL, unknown, f"only a part of {findings.model_class} is trained"
    try:
        shape = _shape(findings, folder)
    except ConfigError as error:
        # The file that it names is a copy of autotune's.
        return (
            Method.FULL,
            unknown,
            str(error).rpartition("config.json: ")[2].partition(". autotune supports")[0],
        )
    built = findings.num_parameters
    if method is not Method.FULL:
        built -= findings.num_trainable_parameters
    if abs(built - shape.num_parameters) > _MOST_DIFFERENCE * built:
        words = (
            f"{findings.model_class} has {built:,} parameters, and its configuration describes "
        )
        return Method.FULL, unknown, f"{words}{shape.num_parameters:,}"
    return method, replace(shape, name=name), None


def _tokens_of_a_sample(findings: Findings) -> int:
    """Of the longest; a row in which samples are joined is shared out among them."""
    rows = findings.rows_per_batch if findings.is_joined else findings.micro_batch_size
    return max(1, -(-findings.longest * rows // findings.micro_batch_size))


def _name(findings: Findings) -> str:
    try:
        return plain_name(findings.model_name, "the model's name")
    except ConfigError:
        return findings.model_class


def _shape(findings: Findings, folder: Path) -> ModelShape:
    """Read as a folder's config.json is, with all its checks."""
    if not findings.model_config_record:
        raise ConfigError(f"{findings.model_class} is no model of transformers")
    kept = folder / "model"
    kept.mkdir(exist_ok=True)
    record = findings.model_config_record | {"architectures": [findings.model_class]}
    (kept / "config.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return load_model_shape(str(kept))


def _lengths(findings: Findings, *, is_known: bool) -> Lengths | None:
    """Lengths of the samples that were seen; None where all have the same, or nobody asks."""
    if not is_known or findings.is_joined or len(set(findings.lengths)) < 2:
        return None
    return Lengths.of(findings.lengths)


def _targets(findings: Findings, shape: ModelShape, method: Method) -> dict[str, Any]:
    """Names of the linear layers with adapters, where the model's shape knows them."""
    targets = tuple(name.rpartition(".")[2] for name in findings.lora_targets)
    targets = tuple(dict.fromkeys(targets))
    if method is Method.FULL or not targets or shape.unknown_target(targets):
        return {}
    return {"lora_targets": targets}


def _baseline(
    findings: Findings,
    workload: Workload,
    hardware: Hardware,
    from_config: dict[str, Any],
    *,
    is_known: bool,
) -> Strategy:
    """The strategy that stands for the user's own settings."""
    reference = reference_strategy(workload, hardware)
    config = findings.deepspeed_config
    values = {name: getattr(reference, name) for name in KNOBS} | from_config
    values |= {
        "zero_stage": int(config.get("zero_optimization", {}).get("stage", 0)),
        "micro_batch_size": findings.micro_batch_size,
        "precision": _precision(config),
        "tf32": reference.tf32 if _precision(config) is reference.precision else False,
        "checkpoint_interval": int(findings.recomputes),
        "lora_rank": findings.lora_rank if is_known else 0,
    }
    if findings.optimizer_knob is not None:
        values["optimizer"] = findings.optimizer_knob
    if is_known:
        values["fused_kernels"] = findings.has_liger
        if findings.attention in set(Attention):
            values["attention"] = Attention(findings.attention)
    usual = {name: getattr(reference, name) for name in KNOBS}
    plain = {name: values[name] for name in ("zero_stage", "micro_batch_size", "precision")}
    # Of a set of values that no strategy has, the optimizer is left out before all the rest.
    for chosen in (values, values | {"optimizer": reference.optimizer}, usual | plain):
        with contextlib.suppress(ConfigError):
            return Strategy(**chosen)
    return replace(reference, micro_batch_size=findings.micro_batch_size)


def _precision(config: dict[str, Any]) -> Precision:
    for name in (Precision.BF16, Precision.FP16):
        section = config.get(str(name), {})
        if isinstance(section, dict) and section.get("enabled") is True:
            return name
    return Precision.FP32
