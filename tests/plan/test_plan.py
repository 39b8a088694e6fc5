"""The predicted front, and what is said of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from planned import candidate, planned
from rich.console import Console, RenderableType

from autotune.errors import ConfigError
from autotune.knob_values import Offload
from autotune.machine.hardware import GIB
from autotune.plan.explanation import explanation_json, render_explanation
from autotune.plan.export import export_plan
from autotune.plan.plan import Plan
from autotune.plan.report import plan_json, render_plan
from autotune.question.goal import FRONT_PICKS, Goal
from autotune.space.strategy import Strategy
from autotune.space.strategy_file import read_strategy_file


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned("13B", "4xA100-80GB")


@pytest.fixture(scope="module")
def quick() -> Plan:
    return planned("13B", "4xA100-80GB", is_quick=True)


def text_of(answer: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(answer)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_nothing_that_fits_beats_a_strategy_of_the_front(plan: Plan) -> None:
    assert len(plan.front) > 1
    fitting = list(filter(plan.fits, plan.candidates))
    assert len(fitting) == plan.num_fitting
    for chosen in plan.front:
        assert plan.fits(chosen)
        speed, memory = chosen.prediction.tokens_per_second, chosen.prediction.peak_memory_bytes
        assert not any(
            other.prediction.tokens_per_second > speed
            and other.prediction.peak_memory_bytes <= memory
            for other in fitting
        )


def test_a_quick_plan_shows_what_fits_by_its_upper_bound_and_counts_the_rest(quick: Plan) -> None:
    assert quick.is_quick
    assert quick.num_uncertain > 0
    assert quick.num_fitting == quick.num_surely_fitting
    assert all(map(quick.surely_fits, quick.front))
    words = text_of(render_plan(quick))
    assert f"{quick.num_surely_fitting:,} fit by the upper bound of a formula" in words
    assert f"{quick.num_uncertain:,} more may fit" in words


def test_a_quick_plan_in_which_nothing_surely_fits_shows_what_may(quick: Plan) -> None:
    predicted = quick.candidates.predicted
    expected = predicted.peak_device_bytes.min()
    limit = (expected + predicted.peak_device_upper_bytes.min()) / 2
    headroom = 1 - limit / quick.hardware.device_memory_bytes
    tight = replace(quick, question=replace(quick.question, headroom=float(headroom)))
    assert tight.num_surely_fitting == 0
    assert tight.num_fitting == tight.num_uncertain > 0
    assert tight.front
    assert not any(map(tight.surely_fits, tight.front))


def test_rows_by_formula_are_told_from_simulated_ones(quick: Plan) -> None:
    predicted = quick.front[0].prediction
    gib = f"{predicted.peak_memory_bytes / GIB:.1f}"
    assert f"~{gib}" in text_of(render_plan(quick))
    document = plan_json(quick)
    assert document["quick"]
    assert not document["front"][0]["prediction"]["is_simulated"]


def test_picks_are_the_ends_of_the_front_and_one_of_it(plan: Plan) -> None:
    assert plan.picks[Goal.THROUGHPUT] is plan.front[0]
    assert plan.picks[Goal.MEMORY] is plan.front[-1]
    assert plan.picks[Goal.BALANCED] in plan.front


def test_headroom_decides_what_fits(plan: Plan) -> None:
    limit = plan.question.memory_limit_bytes
    assert limit == int(0.95 * 80 * GIB)
    assert all(each.prediction.peak_device_bytes <= limit for each in plan.front)


def test_host_memory_decides_what_fits() -> None:
    offloaded = Strategy(zero_stage=3, offload_optimizer=Offload.CPU, checkpoint_interval=1)
    plan = planned("70B", "1xH100-80GB")
    assert candidate(plan, offloaded).prediction.host_memory_bytes > 700 * GIB
    assert not plan.front


@pytest.mark.slow
def test_nodes_divide_memory_as_more_ranks_do() -> None:
    """Two hosts of four need what one of eight does, and are slower where they talk."""
    two, one = planned("13B", "4xA100-80GB", num_nodes=2), planned("13B", "8xA100-80GB")
    assert [each.strategy for each in two.candidates] == [c.strategy for c in one.candidates]
    for far, near in zip(two.candidates, one.candidates, strict=True):
        assert far.prediction.peak_memory_bytes == near.prediction.peak_memory_bytes
        assert far.prediction.step_time_s >= near.prediction.step_time_s
    assert two.front[0].prediction.tokens_per_second < one.front[0].prediction.tokens_per_second


def test_each_host_holds_its_part_of_what_is_offloaded() -> None:
    offloaded = Strategy(zero_stage=1, offload_optimizer=Offload.CPU)
    two, one = planned("13B", "4xA100-80GB", num_nodes=2), planned("13B", "8xA100-80GB")
    whole = candidate(one, offloaded).prediction.host_memory_bytes
    assert abs(candidate(two, offloaded).prediction.host_memory_bytes - whole // 2) <= 1
    assert two.hardware.host_memory_bytes == one.hardware.host_memory_bytes // 2


def test_parallel_degrees_are_planned_over_all_ranks() -> None:
    plan = planned("70B", "8xH100-80GB", num_nodes=2)
    assert {each.strategy.tensor_parallel_size for each in plan.candidates} == {1, 2, 4, 8}
    assert {each.strategy.pipeline_parallel_size for each in plan.candidates} == {1, 2, 4, 8}


def test_faster_strategies_that_do_not_fit_come_with_the_reason(plan: Plan) -> None:
    chosen = plan.front[0]
    faster = plan.faster_but_too_large(chosen, 3)
    assert 0 < len(faster) <= 3
    speeds = [other.prediction.tokens_per_second for other, _ in faster]
    assert speeds == sorted(speeds)
    assert speeds[0] > chosen.prediction.tokens_per_second
    for other, reason in faster:
        assert not plan.fits(other)
        assert "largest part: " in reason


def test_what_is_faster_than_the_leanest_but_fits_is_not_called_too_large(plan: Plan) -> None:
    for other, _ in plan.faster_but_too_large(plan.front[-1], 10**6):
        assert not plan.fits(other)


def test_a_plan_says_that_nothing_was_measured_and_what_it_assumes(plan: Plan) -> None:
    text = text_of(render_plan(plan))
    assert "Predicted. Nothing was measured." in text
    assert "Assuming 960 GiB host RAM (3× GPU memory, at most 256 GiB per GPU)" in text
    assert "All optional packages are assumed to be installed" in text
    assert "Links between hosts" not in text
    for each in plan.front:
        shown = text_of(render_plan(plan, all_rows=True))
        assert f"{each.prediction.tokens_per_second:,.0f}" in shown


def test_links_between_hosts_are_called_assumed() -> None:
    plan = planned("13B", "4xA100-80GB", num_nodes=2)
    text = text_of(render_plan(plan))
    assert "Links between hosts use assumed rates" in text


@pytest.mark.parametrize("which", FRONT_PICKS)
def test_the_parts_of_an_explanation_sum_up_to_the_device(plan: Plan, which: Goal) -> None:
    told = explanation_json(plan, which)
    prediction = plan.picks[which].prediction
    assert sum(told["breakdown_bytes"].values()) == prediction.peak_device_bytes
    text = text_of(render_explanation(plan, which))
    assert f"reached at: {prediction.moment}." in text
    assert all(name in text for name, size in told["breakdown_bytes"].items() if size)
    assert "█" in text


def test_json_holds_the_front_with_predictions_and_picks(plan: Plan) -> None:
    document = json.loads(json.dumps(plan_json(plan), allow_nan=False))
    assert document["measured"] is False
    assert len(document["front"]) == len(plan.front)
    assert document["picks"]["throughput"] == 0
    first = document["front"][0]
    assert Strategy.from_dict(first["strategy"]) == plan.front[0].strategy
    assert 0 < first["mfu"] < 1
    assert first["prediction"]["breakdown_bytes"]


def test_an_export_is_marked_as_not_measured(plan: Plan, tmp_path: Path) -> None:
    folder = export_plan(plan, Goal.BALANCED, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "ds_config.json",
        "strategy.yaml",
        "launch.sh",
        "README.md",
        "provenance.json",
    }
    chosen = plan.picks[Goal.BALANCED]
    assert read_strategy_file(folder / "strategy.yaml").strategy == chosen.strategy
    readme = (folder / "README.md").read_text()
    assert "NOT MEASURED" in readme
    assert "Measured" not in readme
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["measured"] is False
    assert provenance["note"].startswith("NOT MEASURED")
    config = json.loads((folder / "ds_config.json").read_text())
    assert config["train_micro_batch_size_per_gpu"] == chosen.strategy.micro_batch_size
    assert config["_note"].startswith("NOT MEASURED")
    # What a trial there would have.
    script = (folder / "launch.sh").read_text()
    assert "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,pinned_" in script
    variables = provenance["environment"]["variables"]
    assert all(f"export {name}={value}" in script for name, value in variables.items())


def test_deepspeed_takes_an_export_with_its_note(plan: Plan, tmp_path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    folder = export_plan(plan, Goal.THROUGHPUT, tmp_path / "out")
    config = json.loads((folder / "ds_config.json").read_text())
    # Over a single rank, since there is no group of four here.
    alone = config | {"train_batch_size": config["train_batch_size"] // 4}
    read = DeepSpeedConfig(alone)
    assert read.train_micro_batch_size_per_gpu == config["train_micro_batch_size_per_gpu"]


def test_an_export_writes_over_nothing_else(plan: Plan, tmp_path: Path) -> None:
    folder = export_plan(plan, Goal.THROUGHPUT, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export_plan(plan, Goal.THROUGHPUT, folder)
    with pytest.raises(ConfigError, match="is not empty"):
        export_plan(plan, Goal.MEMORY, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_export_for_several_hosts_is_launched_on_all_of_them(tmp_path: Path) -> None:
    plan = planned("13B", "4xA100-80GB", num_nodes=2)
    folder = export_plan(plan, Goal.THROUGHPUT, tmp_path / "out")
    script = (folder / "launch.sh").read_text()
    assert "--num_gpus 4 --num_nodes 2 --hostfile hostfile" in script


def test_a_plan_and_its_explanation_are_readable_at_80_columns(quick: Plan) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(render_plan(quick, all_rows=True), render_explanation(quick, Goal.THROUGHPUT))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
