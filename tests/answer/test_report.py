from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from sample_study import (
    HARDWARE,
    LAPTOP,
    WORKLOAD,
    complete,
    failed,
    prediction,
    pruned,
    summary,
)

from autotune.answer.figures import format_interval
from autotune.answer.front_table import pareto_table
from autotune.answer.report import render_report
from autotune.answer.report_document import report_json
from autotune.knob_values import LossClass, Optimizer
from autotune.machine.hardware import GIB
from autotune.nothing_fits.shortfall import (
    Alternative,
    Shortfall,
    render_shortfall,
    shortfall_json,
)
from autotune.question.goal import PICKS, Goal
from autotune.question.limits import Limits
from autotune.space.strategy import Strategy
from autotune.study.summary import StudySummary
from autotune.trials.interval import Interval
from autotune.trials.trial import FailureKind, Trial, TrialState

STRATEGY = Strategy(zero_stage=3, micro_batch_size=16, checkpoint_interval=2, fused_kernels=True)


def printed(renderable: RenderableType, width: int = 120) -> str:
    """As it comes out of a pipe."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


@pytest.fixture
def study() -> StudySummary:
    return summary(
        complete(0, 45_000, 60, strategy=STRATEGY, predicted_gib=54),
        complete(1, 30_000, 20, strategy=Strategy(zero_stage=1, optimizer=Optimizer.ADAMW_8BIT)),
        complete(2, 50_000, 78),
        failed(3, FailureKind.DEVICE_OUT_OF_MEMORY),
        failed(4, FailureKind.CRASH, "signal [bold]11[/bold]"),
        pruned(5, "predicted 90.1 GiB is more than 76.0 GiB"),
        pruned(6, "predicted 95.7 GiB is more than 76.0 GiB"),
    )


def test_counts_name_every_state(study: StudySummary) -> None:
    assert study.counts == {
        TrialState.RUNNING: 0,
        TrialState.COMPLETE: 3,
        TrialState.PRUNED: 2,
        TrialState.FAILED: 2,
        TrialState.INTERRUPTED: 0,
    }


def test_interrupted_trials_are_said_and_are_no_failed_ones() -> None:
    stopped = replace(failed(1, FailureKind.INTERRUPTED, "Ctrl-C"), state=TrialState.INTERRUPTED)
    study = summary(complete(0, 45_000, 60), stopped)
    assert (study.num_launched, study.counts[TrialState.FAILED]) == (1, 0)
    text = printed(render_report(study), width=200)
    assert "1 complete, 1 interrupted" in text
    assert "Interrupted from outside: trial 1." in text
    assert "Failed trials" not in text


def test_a_busy_machine_and_a_tie_are_said_once_each() -> None:
    trials = [complete(0, 45_000, 60), complete(1, 44_000, 20)]
    busy = [
        replace(t, measurement=replace(t.measurement, disturbance=0.4))
        for t in trials
        if t.measurement is not None
    ]
    text = printed(render_report(summary(*busy)), width=200)
    assert text.count("The machine was busy during 2 trials: other processes took 40% to 40%") == 1
    assert text.count("Tie: trial 1 may be as fast as trial 0") == 1


def test_what_others_hold_of_a_gpu_is_said() -> None:
    trial = complete(0, 45_000, 60)
    assert trial.measurement is not None
    crowded = replace(trial.measurement, others_device_bytes=3 * 2**30)
    text = printed(render_report(summary(replace(trial, measurement=crowded))), width=200)
    assert "Other processes held up to 3.00 GiB of a GPU during 1 trial." in text
    assert "Other processes held" not in printed(render_report(summary(trial)), width=200)


def test_a_tie_stands_beside_the_pick_in_the_table() -> None:
    # A busy machine widens intervals: 0 and 1 overlap, 2 is far from both.
    busy = [
        replace(
            t,
            measurement=replace(
                t.measurement, step_times_s=(1.0, 1.001, 0.999, 1.0), disturbance=0.05
            ),
        )
        for t in (complete(0, 45_000, 60), complete(1, 44_000, 20), complete(2, 100, 10))
        if t.measurement is not None
    ]
    study = summary(*busy)
    table = pareto_table(study)
    cells = [str(cell) for cell in table.columns[1].cells]
    for cell, trial in zip(cells, study.front, strict=True):
        is_pick = trial in study.picks.values()
        assert ("tie: " in cell) == (is_pick and trial.number < 2), cell
    assert any("tie: trial 1" in cell for cell in cells)


def test_out_of_memory_fraction_is_of_launched_trials(study: StudySummary) -> None:
    assert study.num_launched == 5
    assert study.out_of_memory_fraction == pytest.approx(1 / 5)


def test_trials_per_minute_counts_launched_trials(study: StudySummary) -> None:
    assert study.trials_per_minute == pytest.approx(2.5)


def test_prediction_errors_are_medians_and_95th_percentiles_of_complete_trials() -> None:
    trials = [complete(n, 100, 10, predicted_gib=10 + n) for n in range(3)]
    errors = summary(*trials, failed(3, FailureKind.CRASH)).prediction_errors
    assert list(errors) == ["allocated", "reserved", "step time"]
    assert errors["reserved"].median == pytest.approx(0.1)
    assert errors["reserved"].p95 == pytest.approx(0.19)
    assert errors["reserved"].num_trials == 3
    # 1 s predicted, 1.1 s measured.
    assert errors["step time"].median == pytest.approx(0.1 / 1.1)


def test_the_report_states_the_error_and_its_json_that_of_each_trial() -> None:
    study = summary(complete(0, 100, 10, predicted_gib=11))
    text = printed(render_report(study), width=200)
    assert (
        "Prediction error, median / 95th percentile (1 trial): allocated 10% / 10%; reserved"
        in text
    )
    document = report_json(study)
    assert document["prediction_errors"]["reserved"]["median"] == pytest.approx(0.1)
    assert document["trials"][0]["prediction_errors"]["reserved"] == pytest.approx(0.1)


def test_live_tensors_on_the_cpu_are_not_compared() -> None:
    assert "allocated" not in summary(complete(0, 100, 10), hardware=LAPTOP).prediction_errors


def test_what_is_best_depends_on_the_objective_and_is_the_pick_of_that_name() -> None:
    fast, lean, thrifty = complete(0, 300, 60), complete(1, 100, 10), complete(2, 250, 65)
    knee = complete(3, 280, 20)
    assert fast.measurement is not None
    assert thrifty.measurement is not None
    study = summary(
        replace(fast, measurement=replace(fast.measurement, energy_j_per_token=0.03)),
        lean,
        replace(thrifty, measurement=replace(thrifty.measurement, energy_j_per_token=0.02)),
        knee,
    )
    numbers = {goal: trial.number for goal in Goal if (trial := study.best_for(goal))}
    assert numbers == {
        Goal.FRONT: 0,
        Goal.THROUGHPUT: 0,
        Goal.MEMORY: 1,
        Goal.ENERGY: 2,
        Goal.BALANCED: 3,
    }
    assert {which: trial.number for which, trial in study.picks.items()} == {
        which: numbers[which] for which in PICKS
    }
    for goal, number in numbers.items():
        asked = replace(study, goal=goal)
        assert asked.best is not None
        assert asked.best.number == number
        words = f"Best for --objective {goal}: trial {number} ({goal.words})"
        assert f"{words}, exported to there." in " ".join(
            printed(render_report(asked, Path("there"))).split()
        )
        best = report_json(asked, Path("there"))["best"]
        assert best == {"trial": number, "pick": goal.pick, "folder": "there"}
    # What is best may lie behind the front.
    assert "--pick energy  # trial 2" in printed(render_report(study))


def test_where_no_device_counts_energy_the_fastest_is_best_and_that_is_said() -> None:
    study = replace(summary(complete(0, 300, 60), complete(1, 100, 10)), goal=Goal.ENERGY)
    assert study.best is study.front[0]
    words = "Fastest: trial 0 (no trial measured --objective energy)."
    assert words in " ".join(printed(render_report(study)).split())
    assert report_json(study)["best"] == {"trial": 0, "pick": "throughput", "folder": None}


def test_least_energy_is_unknown_where_none_is_counted() -> None:
    lean = complete(1, 100, 10)
    assert summary(lean).best_for(Goal.ENERGY) is None


def test_the_report_names_what_was_reused_and_why_the_search_ended() -> None:
    reused = replace(complete(4, 100, 10), reused_from="trial 7 of results/a", duration_s=0.0)
    study = replace(summary(reused, complete(5, 90, 9)), end_reason="the budget is used up")
    text = printed(render_report(study), width=200)
    assert "The search ended: the budget is used up." in text
    assert "Reused from earlier studies, not launched: 1 trial." in text
    assert "reused: trial 7 of results/a" in text
    assert study.num_launched == 1
    document = report_json(study)
    assert document["end_reason"] == "the budget is used up"
    assert [trial["reused_from"] for trial in document["trials"]] == ["trial 7 of results/a", None]


def test_the_report_names_trials_that_were_forced() -> None:
    forced = replace(complete(4, 100, 10), is_forced=True)
    text = printed(render_report(summary(forced, complete(5, 90, 9))), width=200)
    assert "(--force-pruned): trial 4. 1 of 1 fit." in text


def test_a_study_without_trials_has_no_shares() -> None:
    empty = summary()
    assert empty.out_of_memory_fraction is None
    assert empty.prediction_errors == {}
    assert empty.picks == {}


def test_energy_has_a_column_only_where_it_was_measured() -> None:
    metered, unmetered = complete(0, 1000.0, 10.0), complete(1, 500.0, 5.0)
    assert metered.measurement is not None
    measurement = replace(metered.measurement, energy_j_per_token=0.00934)
    study = summary(replace(metered, measurement=measurement), unmetered)
    assert "mJ/token" in printed(render_report(study))
    assert "9.34" in printed(render_report(study))
    energies = [t["measurement"]["energy_j_per_token"] for t in report_json(study)["trials"]]
    assert energies == [0.00934, None]
    assert "mJ/token" not in printed(render_report(summary(metered, unmetered)))


def test_mfu_follows_palm_for_full_fine_tuning() -> None:
    study = summary(complete(0, 40_000, 20))
    model = WORKLOAD.model
    weights = model.num_parameters - model.embedding_parameters
    flops = 6 * weights + 12 * 22 * 2048 * 1024
    expected = 40_000 * flops / (2 * HARDWARE.flops_per_s)
    assert study.mfu(study.trials[0]) == pytest.approx(expected, rel=1e-3)


def test_mfu_is_unknown_where_the_peak_rate_is_a_guess() -> None:
    study = summary(complete(0, 40_000, 20), hardware=LAPTOP)
    assert study.mfu(study.trials[0]) is None
    assert "MFU" not in printed(render_report(study))


def test_report_has_measured_and_predicted_memory_side_by_side(study: StudySummary) -> None:
    row = next(line for line in printed(render_report(study)).splitlines() if "45,000" in line)
    assert "60.0" in row
    assert "54.0" in row
    assert "25%" in row
    assert "neutral" in row


def test_report_names_the_picks(study: StudySummary) -> None:
    text = printed(render_report(study))
    assert "pick: throughput, balanced" in text
    assert "pick: memory" in text
    assert "autotune export results/llama --pick throughput  # trial 0" in text


def test_report_marks_strategies_that_change_the_loss(study: StudySummary) -> None:
    row = next(line for line in printed(render_report(study)).splitlines() if "30,000" in line)
    assert "changing" in row


def test_report_counts_complete_trials_that_do_not_fit(study: StudySummary) -> None:
    assert "does not count as fitting: 1 trial." in printed(render_report(study), width=200)


def test_report_shows_failures_by_kind_and_keeps_their_text_as_it_is(study: StudySummary) -> None:
    text = printed(render_report(study))
    assert "device out of memory" in text
    assert "signal [bold]11[/bold]" in text


def test_reasons_that_differ_in_figures_only_are_counted_together(study: StudySummary) -> None:
    text = printed(render_report(study))
    assert "2  predicted 90.1 GiB is more than 76.0 GiB" in text
    assert "95.7" not in text


@pytest.mark.parametrize("width", [72, 80, 120])
def test_report_loses_no_word_of_a_strategy_at_any_width(study: StudySummary, width: int) -> None:
    text = printed(render_report(study), width)
    letters = "".join(character for character in text if character.isalnum())
    assert max(len(line) for line in text.splitlines() if "autotune export" not in line) <= width
    assert "…" not in text
    for word in ("Z3", "mb16", "ckpt2", "liger", "adamw8bit"):
        assert word in letters


def test_report_without_a_terminal_has_no_control_codes(study: StudySummary) -> None:
    assert "\x1b" not in printed(render_report(study))


def test_report_of_a_study_where_nothing_fits_says_so() -> None:
    text = printed(render_report(summary(failed(0, FailureKind.DEVICE_OUT_OF_MEMORY))))
    assert "No trial fits" in text


def test_report_json_is_strict_json_with_the_front_and_picks(study: StudySummary) -> None:
    document = json.loads(json.dumps(report_json(study), allow_nan=False))
    assert document["front"] == [0, 1]
    assert document["picks"] == {"throughput": 0, "memory": 1, "balanced": 0}
    assert document["counts"]["pruned"] == 2
    assert document["trials"][0]["loss_class"] == "neutral"
    assert document["trials"][0]["measurement"]["losses"] == [10.5, None]


def test_report_json_documents_each_of_its_keys(study: StudySummary) -> None:
    document = report_json(study)
    assert report_json.__doc__ is not None
    for key in (*document, *document["trials"][0]):
        assert f"`{key}`" in report_json.__doc__


LIMITS = Limits(device_bytes=76 * GIB, host_bytes=512 * GIB)
LORA = Alternative(
    words="LoRA: train adapters only",
    command="autotune plan --model 7B --method lora --hardware 2xH100-80GB",
    strategy=STRATEGY,
    prediction=prediction(30),
    loss_class=LossClass.CHANGING,
)


def test_nothing_fits_says_how_much_is_missing_and_of_what() -> None:
    found = Shortfall(
        closest=[(STRATEGY, prediction(100))],
        limits=LIMITS,
        hardware=HARDWARE,
        alternatives=[LORA],
    )
    text = printed(render_shortfall(found), width=200)
    assert "24.0 GiB of each device's memory are missing" in text
    assert "optimizer states 50.0 GiB, activations 25.0 GiB" in text
    assert "LoRA: train adapters only: 30.0 GiB on a device" in text


def test_a_shortage_of_the_host_is_told_from_one_of_the_devices() -> None:
    offloaded = [(STRATEGY, replace(prediction(40), host_memory_bytes=600 * GIB))]
    found = Shortfall(closest=offloaded, limits=LIMITS, hardware=HARDWARE, alternatives=[])
    text = printed(render_shortfall(found), width=200)
    assert "Nothing fits: 88.0 GiB of host memory are missing." in text
    assert shortfall_json(found)["missing_by_place"] == {"device": 0, "host": 88 * GIB, "disk": 0}


def test_a_front_with_every_column_fits_a_terminal_of_80() -> None:
    trial = complete(0, 76_233.0, 57.2, strategy=STRATEGY)
    assert trial.prediction is not None
    assert trial.measurement is not None
    trial = replace(
        trial,
        prediction=replace(
            trial.prediction,
            tokens_per_second=75_967.0,
            step_time_lower_s=0.95,
            step_time_upper_s=1.06,
        ),
        measurement=replace(trial.measurement, energy_j_per_token=0.0153),
    )
    front = printed(pareto_table(summary(trial)), width=80)
    assert max(map(len, front.splitlines())) <= 80
    for words in ("75,967", "71.7k-80.0k", "57.2", "15.3", "neutral"):
        assert words in front


def test_the_report_says_what_running_the_best_again_has_shown() -> None:
    def again(trial: Trial, *speeds: float) -> Trial:
        assert trial.measurement is not None
        runs = [replace(trial.measurement, tokens_per_second=speed) for speed in speeds]
        return replace(trial, confirmations=tuple(runs))

    study = summary(
        again(complete(0, 1300, 40), 1000, 1010, 990),
        again(complete(1, 1200, 39), 1003, 1008, 991),
        again(complete(2, 500, 10), 500, 501, 502),
    )
    text = printed(render_report(study), width=200)
    assert "interleaved runs: trial 0 (3×), trial 1 (3×), trial 2 (3×)." in text
    assert "1,001" in text
    assert "± 22" in text
    assert "Trials 1 and 0 are tied: the difference is 0.1% ± 0.6%." in text
    assert re.search(r"Trial 0 is faster than trial 2 by 99\.\d% ± \d\.\d%\.", text)
    document = report_json(study)
    assert [c["verdict"] for c in document["comparisons"]] == ["tie", "faster"]
    assert document["picks"]["throughput"] == 1


def test_the_fastest_is_the_fastest_and_a_confirmed_trial_that_may_be_as_fast_is_named() -> None:
    confirmed = complete(0, 990, 40)
    assert confirmed.measurement is not None
    speeds = (980.0, 990.0, 1000.0)
    runs = tuple(replace(confirmed.measurement, tokens_per_second=speed) for speed in speeds)
    study = summary(replace(confirmed, confirmations=runs), complete(1, 1000, 41))
    text = printed(render_report(study), width=200)
    assert "Best for --objective front: trial 1 (the fastest)" in text
    assert (
        "Trial 1 is the fastest, but ran only once. Trial 0 may be as fast: it has 3 confirming "
        "runs." in text
    )
    assert report_json(study)["picks"]["throughput"] == 1

    far = summary(replace(confirmed, confirmations=runs), complete(1, 1100, 41))
    assert "confirming runs" not in printed(render_report(far), width=200)


def test_an_interval_as_wide_as_its_mean_says_nothing() -> None:
    assert format_interval(Interval(mean=1887.0, half_width=8343.0)) == "1,887"
    assert format_interval(Interval(mean=76233.4, half_width=410.2)) == "76,233\n± 410"
