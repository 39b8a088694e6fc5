"""What a search begins with."""

from __future__ import annotations

from planned import planned

from autotune.samplers.predicted_first import most_promising


def test_the_best_of_each_micro_batch_and_the_next_fastest_are_chosen_the_sure_ones_first() -> (
    None
):
    plan = planned("13B", "4xA100-80GB")
    rows = plan.candidates
    fitting = sorted(filter(plan.fits, rows), key=lambda each: -each.prediction.tokens_per_second)
    best = {each.strategy.micro_batch_size: each for each in reversed(fitting)}.values()
    first = [each for each in fitting if each in best]
    expected = [*first, *(each for each in fitting if each not in best)][:40]
    assert len(first) > 3
    sure, in_doubt = (
        [each.strategy for each in expected if plan.surely_fits(each) == is_sure]
        for is_sure in (True, False)
    )
    assert sure
    assert in_doubt
    chosen = most_promising(rows.table, rows.predicted, limits=plan.question.limits, num=40)
    assert chosen == sure + in_doubt


def test_nothing_is_promising_where_nothing_fits() -> None:
    plan = planned("70B", "1xH100-80GB")
    rows = plan.candidates
    assert not most_promising(rows.table, rows.predicted, limits=plan.question.limits, num=8)
