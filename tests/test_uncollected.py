from __future__ import annotations

import gc

import pytest

from autotune.uncollected import uncollected


@uncollected()
def _raises() -> None:
    assert not gc.isenabled()
    raise KeyError


def test_garbage_is_collected_again_after_the_body_even_if_it_raises() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError):
        _raises()
    assert gc.isenabled()


def test_a_process_without_collections_stays_without_them() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
