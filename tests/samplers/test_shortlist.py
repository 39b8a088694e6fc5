"""Which rows are looked at."""

import numpy as np
import pytest

from autotune.samplers.shortlist import Shortlist


@pytest.fixture
def shortlist(monkeypatch: pytest.MonkeyPatch) -> Shortlist:
    monkeypatch.setattr("autotune.samplers.shortlist._NUM_ROWS", 4)
    shortlist = Shortlist()
    rows, are_all = shortlist.rows(np.ones(10, bool), num_observed=100)
    assert are_all
    assert rows.tolist() == list(range(10))
    shortlist.keep(rows[::-1])
    return shortlist


def test_the_best_are_looked_at_until_there_is_news(shortlist: Shortlist) -> None:
    rows, are_all = shortlist.rows(np.ones(10, bool), num_observed=104)
    assert not are_all
    assert rows.tolist() == [9, 8, 7, 6]
    rows, are_all = shortlist.rows(np.ones(10, bool), num_observed=105)
    assert are_all
    assert len(rows) == 10


def test_what_was_tried_is_looked_at_no_more(shortlist: Shortlist) -> None:
    is_left = np.ones(10, bool)
    is_left[[9, 6]] = False
    rows, are_all = shortlist.rows(is_left, num_observed=100)
    assert not are_all
    assert rows.tolist() == [8, 7]


def test_a_list_that_is_half_used_up_is_made_anew(shortlist: Shortlist) -> None:
    is_left = np.ones(10, bool)
    is_left[[9, 8, 7]] = False
    rows, are_all = shortlist.rows(is_left, num_observed=100)
    assert are_all
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_it_can_be_made_to_forget(shortlist: Shortlist) -> None:
    shortlist.forget()
    assert shortlist.rows(np.ones(10, bool), num_observed=100)[1]
