"""One contract for all pruners, then what each of them prunes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_study import complete

from autotune.pruners import DominancePruner, PredictedMemoryPruner
from autotune.space.strategy import Strategy
from autotune.trials.protocols import Pruner
from autotune.trials.trial import Failure, FailureKind, Phase, Prediction, Trial, TrialState

GIB = 2**30
LIMIT = 76 * GIB
HOST = 128 * GIB


def prediction(peak_gib: float = 40.0, lower_gib: float | None = None) -> Prediction:
    lower = peak_gib * 0.9 if lower_gib is None else lower_gib
    return Prediction(
        peak_memory_bytes=int(peak_gib * GIB),
        peak_memory_lower_bytes=int(lower * GIB),
        peak_memory_upper_bytes=int(peak_gib * 1.2 * GIB),
        step_time_s=1.0,
        tokens_per_second=1000.0,
        moment="optimizer step",
        breakdown_bytes={"weights": 10 * GIB, "optimizer states": 60 * GIB},
    )


def failed(
    kind: FailureKind = FailureKind.DEVICE_OUT_OF_MEMORY,
    phase: Phase | None = Phase.BACKWARD,
    predicted: Prediction | None = None,
    **knobs: Any,
) -> Trial:
    return Trial(
        number=3,
        strategy=strategy(**knobs),
        state=TrialState.FAILED,
        prediction=predicted,
        failure=Failure(kind=kind, message="planted", phase=phase),
        duration_s=5.0,
    )


def strategy(**knobs: Any) -> Strategy:
    return Strategy.from_dict({"zero_stage": 1, "micro_batch_size": 8} | knobs)


def skip(trial: Trial, *, predicted: Prediction | None = None, **knobs: Any) -> str | None:
    return DominancePruner().reason_to_skip(strategy(**knobs), predicted or prediction(), [trial])


@pytest.fixture(
    params=[PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST), DominancePruner()],
    ids=lambda p: type(p).__name__,
)
def pruner(request: pytest.FixtureRequest) -> Pruner:
    chosen: Pruner = request.param
    return chosen


def test_without_trials_what_fits_is_launched(pruner: Pruner) -> None:
    assert pruner.reason_to_skip(strategy(), prediction(), []) is None


def test_a_running_trial_teaches_nothing(pruner: Pruner) -> None:
    running = Trial(number=0, strategy=strategy(), state=TrialState.RUNNING)

    assert pruner.reason_to_skip(strategy(), prediction(), [running]) is None


def test_the_same_question_gets_the_same_answer(pruner: Pruner) -> None:
    trials = [failed(), failed(phase=Phase.INIT)]
    answers = {pruner.reason_to_skip(strategy(), prediction(80.0), trials) for _ in range(3)}

    assert len(answers) == 1


def test_a_reason_is_one_line_of_words(pruner: Pruner) -> None:
    reason = pruner.reason_to_skip(strategy(), prediction(100.0), [failed()])

    assert reason
    assert "\n" not in reason
    assert " " in reason


class TestPredictedMemoryPruner:
    def test_skips_what_is_expected_not_to_fit_and_says_why(self) -> None:
        reason = PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST).reason_to_skip(
            strategy(), prediction(90.0), []
        )

        assert reason == (
            "predicted to need 90.0 GiB; the limit per device is 76.0 GiB; "
            "largest part: optimizer states, 60.0 GiB"
        )

    def test_counts_what_the_device_holds_beside_the_pool(self) -> None:
        on_the_edge = replace(prediction(75.5), device_overhead_bytes=GIB)

        assert PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST).reason_to_skip(
            strategy(), on_the_edge, []
        )

    def test_skips_what_the_host_cannot_hold(self) -> None:
        offloaded = replace(prediction(30.0), host_memory_bytes=146 * GIB)

        assert (
            PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST).reason_to_skip(
                strategy(), offloaded, []
            )
            == "predicted to need 146.0 GiB of host memory; the limit is 128.0 GiB"
        )

    def test_saving_a_checkpoint_counts_for_the_host(self) -> None:
        saved = replace(prediction(30.0), host_memory_bytes=120 * GIB, host_save_bytes=10 * GIB)
        pruner = PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST)

        assert pruner.reason_to_skip(strategy(), saved, []) == (
            "predicted to need 130.0 GiB of host memory (10.0 to save a checkpoint); "
            "the limit is 128.0 GiB"
        )

    def test_the_patient_skip_what_the_host_cannot_hold_at_best(self) -> None:
        patient = PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST, is_patient=True)
        offloaded = replace(prediction(30.0), host_memory_bytes=146 * GIB)

        assert patient.reason_to_skip(strategy(), offloaded, []) is None
        reason = patient.reason_to_skip(
            strategy(), replace(offloaded, host_memory_lower_bytes=140 * GIB), []
        )
        assert reason == (
            "predicted to need at least 140.0 GiB of host memory; the limit is 128.0 GiB"
        )

    def test_skips_what_the_disk_cannot_hold(self) -> None:
        on_disk = replace(prediction(30.0), disk_bytes=104 * GIB)
        pruner = PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST, disk_bytes=100 * GIB)

        assert pruner.reason_to_skip(strategy(), on_disk, []) == (
            "needs 104.0 GiB of disk to offload to; --nvme-path has 100.0 GiB free"
        )

    def test_a_patient_one_launches_what_is_only_expected_not_to_fit(self) -> None:
        patient = PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST, is_patient=True)

        assert patient.reason_to_skip(strategy(), prediction(90.0, lower_gib=76.0), []) is None
        assert patient.reason_to_skip(strategy(), prediction(100.0, lower_gib=95.1), [])


class TestDoubt:
    """Expected to fit, but its upper bound does not: 70 GiB, at worst 84, of 76."""

    IN_DOUBT = replace(prediction(70.0, lower_gib=60.0), tokens_per_second=1000.0)

    def reason(self, *trials: Trial, predicted: Prediction = IN_DOUBT) -> str | None:
        pruner = PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST)
        return pruner.reason_to_skip(strategy(), predicted, trials)

    def test_is_skipped_where_a_trial_is_as_fast_in_no_more_memory(self) -> None:
        reason = self.reason(complete(7, 1101.0, 60.0))

        assert reason == (
            "predicted to need 70.0 GiB, at most 84.0 GiB; the limit is 76.0 GiB; trial 7 "
            "is as fast with no more memory (launch it anyway with --force-pruned)"
        )

    @pytest.mark.parametrize(
        "trial",
        [complete(7, 1099.0, 20.0), complete(7, 5000.0, 60.5), complete(7, 5000.0, 77.0)],
        ids=["slower", "larger than its least", "not fitting"],
    )
    def test_is_launched_while_it_may_reach_the_front(self, trial: Trial) -> None:
        assert self.reason(trial) is None

    def test_the_upper_bound_of_speed_counts_where_it_is_known(self) -> None:
        bounded = replace(self.IN_DOUBT, step_time_lower_s=0.8, step_time_upper_s=1.2)

        assert self.reason(complete(7, 1200.0, 20.0), predicted=bounded) is None
        assert self.reason(complete(7, 1250.0, 20.0), predicted=bounded)

    def test_what_surely_fits_is_launched_whatever_is_known(self) -> None:
        sure = replace(prediction(63.0), tokens_per_second=1.0)

        assert self.reason(complete(7, 5000.0, 1.0), predicted=sure) is None

    def test_a_patient_one_has_no_doubt(self) -> None:
        patient = PredictedMemoryPruner(LIMIT, host_memory_bytes=HOST, is_patient=True)

        assert patient.reason_to_skip(strategy(), self.IN_DOUBT, [complete(7, 2e3, 1.0)]) is None


class TestDominancePruner:
    def test_names_the_trial_and_where_it_failed(self) -> None:
        assert skip(failed(), micro_batch_size=16) == (
            "trial 3 ran out of device memory in backward with micro-batch 8; this strategy needs "
            "at least as much"
        )

    @pytest.mark.parametrize(
        ("out_of_memory", "as_much"),
        [
            ({"micro_batch_size": 8}, {"micro_batch_size": 16}),
            ({"checkpoint_interval": 2}, {"checkpoint_interval": 0}),
            ({"fused_kernels": True}, {"fused_kernels": False}),
            ({"offload_optimizer": "cpu"}, {"offload_optimizer": "none"}),
            ({"master_weights": "bf16"}, {"master_weights": "fp32"}),
            ({"optimizer": "adamw_8bit"}, {"optimizer": "adamw"}),
            (
                {"optimizer": "adamw_8bit", "checkpoint_interval": 1},
                {"optimizer": "adamw", "micro_batch_size": 16},
            ),
        ],
    )
    def test_skips_what_needs_as_much_and_not_the_reverse(
        self, out_of_memory: dict[str, Any], as_much: dict[str, Any]
    ) -> None:
        assert skip(failed(**out_of_memory), **as_much)
        assert skip(failed(**as_much), **out_of_memory) is None

    @pytest.mark.parametrize(
        "other",
        [
            {"zero_stage": 2},
            {"zero_stage": 0},
            {"precision": "fp32"},
            {"lora_rank": 8},
            {"micro_batch_size": 16, "checkpoint_interval": 1},
            {"micro_batch_size": 4, "optimizer": "adamw"},
            {"master_weights": "bf16", "micro_batch_size": 16},
        ],
    )
    def test_what_is_in_no_order_is_launched(self, other: dict[str, Any]) -> None:
        assert skip(failed(), **other) is None

    def test_different_checkpoint_intervals_are_in_no_order(self) -> None:
        assert skip(failed(checkpoint_interval=2), checkpoint_interval=4) is None
        assert skip(failed(checkpoint_interval=4), checkpoint_interval=2) is None

    def test_out_of_memory_in_init_makes_batch_kernels_and_checkpoints_irrelevant(self) -> None:
        trial = failed(phase=Phase.INIT, micro_batch_size=16, optimizer="adamw_8bit")

        reason = skip(trial, micro_batch_size=1, checkpoint_interval=1, fused_kernels=True)
        assert reason == (
            "trial 3 ran out of device memory in init, before any batch; "
            "this strategy holds at least the same states"
        )
        assert skip(trial, micro_batch_size=1, offload_optimizer="cpu") is None
        assert skip(trial, micro_batch_size=1, master_weights="bf16") is None

    def test_host_memory_does_not_order_offloading(self) -> None:
        trial = failed(FailureKind.HOST_OUT_OF_MEMORY, offload_optimizer="cpu")

        assert skip(trial, micro_batch_size=16, offload_optimizer="none") is None
        reason = skip(trial, micro_batch_size=16, offload_optimizer="cpu")
        assert reason is not None
        assert "host memory" in reason

    def test_host_memory_is_a_matter_of_what_is_offloaded_and_how(self) -> None:
        """Fewer checkpoints, other kernels: 13B on two GPUs ran out four times in a row."""
        kind, offloads = FailureKind.HOST_OUT_OF_MEMORY, {"offload_optimizer": "cpu"}
        needs = replace(prediction(), host_memory_bytes=230 * GIB)
        less = replace(prediction(), host_memory_bytes=229 * GIB)
        trial = failed(kind, predicted=needs, zero_stage=2, checkpoint_interval=1, **offloads)
        other = {"zero_stage": 2, "checkpoint_interval": 4, "micro_batch_size": 1} | offloads

        assert skip(trial, predicted=needs, fused_kernels=True, **other) == (
            "trial 3 ran out of host memory in backward; this strategy offloads at least as much, "
            "230.0 GiB"
        )
        assert skip(trial, predicted=less, **other) is None
        assert skip(trial, predicted=needs, **other | {"zero_stage": 3}) is None

    @pytest.mark.parametrize("kind", [kind for kind in FailureKind if not kind.is_out_of_memory])
    def test_other_failures_teach_nothing(self, kind: FailureKind) -> None:
        assert skip(failed(kind), micro_batch_size=64) is None

    def test_a_smaller_prediction_breaks_the_order(self) -> None:
        # Fewer micro-steps may hold no gradients between them, which can outweigh activations.
        trial = failed(predicted=prediction(80.0))

        assert skip(trial, micro_batch_size=16, predicted=prediction(79.0)) is None
        assert skip(trial, micro_batch_size=16, predicted=prediction(81.0))
