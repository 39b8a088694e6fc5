"""Expected improvements against their definitions, by drawing."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.samplers.improvement import (
    Front,
    Normal,
    expected_excess,
    hypervolume,
    hypervolume_gain,
    probability,
)

LIMIT = 60.0
FRONT = Front.of(np.array([30.0, 20.0, 50.0, 40.0]), np.array([10.0, 5.0, 14.0, 9.0]))
SPEED = Normal(mean=np.array([12.0, 4.0, 15.0, 30.0]), deviation=np.array([2.0, 1.0, 0.5, 1.0]))
MEMORY = Normal(mean=np.array([35.0, 18.0, 58.0, 70.0]), deviation=np.array([4.0, 3.0, 2.0, 2.0]))


def test_a_front_has_no_step_that_is_slower_in_more_memory() -> None:
    assert FRONT.memory.tolist() == [20.0, 30.0, 50.0]
    assert FRONT.speed.tolist() == [5.0, 10.0, 14.0]


def test_hypervolume_is_the_area_below_the_steps_up_to_the_limit() -> None:
    assert hypervolume(FRONT, LIMIT) == 5 * 10 + 10 * 20 + 14 * 10
    assert hypervolume(FRONT, 25.0) == 5 * 5
    assert hypervolume(Front.of(np.zeros(0), np.zeros(0)), LIMIT) == 0


def test_the_gain_of_the_front_is_the_mean_of_drawn_gains() -> None:
    draw = np.random.default_rng(0)
    drawn = [
        np.mean(
            [
                hypervolume(
                    Front.of(np.append(FRONT.memory, memory), np.append(FRONT.speed, speed)), LIMIT
                )
                for memory, speed in zip(
                    draw.normal(MEMORY.mean[row], MEMORY.deviation[row], 4000),
                    draw.normal(SPEED.mean[row], SPEED.deviation[row], 4000),
                    strict=True,
                )
            ]
        )
        - hypervolume(FRONT, LIMIT)
        for row in range(4)
    ]
    assert hypervolume_gain(FRONT, LIMIT, SPEED, MEMORY) == pytest.approx(drawn, rel=0.06, abs=0.2)


def test_expected_excess_is_the_mean_of_what_is_above() -> None:
    drawn = np.random.default_rng(0).normal(12.0, 2.0, 200_000)
    expected = np.maximum(drawn - 13.0, 0).mean()
    assert expected_excess(SPEED, 13.0)[0] == pytest.approx(expected, rel=0.01)


def test_what_is_far_above_exceeds_by_its_distance_and_what_is_far_below_by_nothing() -> None:
    certain = Normal(mean=np.array([20.0, 5.0]), deviation=np.array([0.01, 0.01]))
    assert expected_excess(certain, 12.0) == pytest.approx([8.0, 0.0])


def test_probability_is_that_of_being_no_more() -> None:
    assert probability(MEMORY, 70.0)[3] == pytest.approx(0.5)
    assert probability(MEMORY, 66.08)[3] == pytest.approx(0.025, rel=0.01)
