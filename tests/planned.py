"""Plans for tests, made as the command line makes them."""

from __future__ import annotations

from dataclasses import replace

from autotune.machine.hardware_spec import read_hardware
from autotune.plan.plan import ASSUMED_SOFTWARE, Candidate, Plan, make_plan
from autotune.predictor import AnalyticPredictor
from autotune.question.question import Question
from autotune.question.workload import Method, Workload, load_model_shape
from autotune.space.space_file import load_search_space
from autotune.space.strategy import Strategy


def planned(
    model: str,
    hardware: str,
    *,
    global_batch: int = 32,
    space: str = "default",
    method: Method = Method.FULL,
    num_nodes: int = 1,
    is_quick: bool = False,
) -> Plan:
    """By formula alone; unless it is quick, what is expected to fit counts as fitting."""
    spec = read_hardware(hardware, num_nodes=num_nodes)
    workload = Workload(
        model=load_model_shape(model),
        seq_len=1024,
        global_batch_size=global_batch,
        method=method,
    )
    search_space = load_search_space(space, workload, spec.all_ranks, ASSUMED_SOFTWARE)
    question = Question(
        workload=workload,
        hardware=spec.all_ranks,
        space_name=search_space.name,
        space_text=search_space.text,
    )
    return replace(make_plan(question, spec, search_space), is_quick=is_quick)


def candidate(plan: Plan, strategy: Strategy) -> Candidate:
    predictor = AnalyticPredictor(plan.workload, plan.hardware)
    return Candidate(strategy=strategy, prediction=predictor.predict(strategy))
