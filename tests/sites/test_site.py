"""What every site promises, of this machine and of a Ray cluster alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from autotune.cli.options import MOST_DEVICES
from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.errors import ConfigError
from autotune.sites import Site, SiteOptions, open_site
from autotune.trials.trial import Outcome, Trial, TrialSpec

SITES = [
    pytest.param(None, id="this machine", marks=pytest.mark.slow),
    pytest.param("local", id="Ray", marks=[pytest.mark.ray, pytest.mark.slow]),
]


class _Silent:
    """Progress that shows nothing."""

    def __getattr__(self, _: str) -> object:
        return lambda *_: None


class _NothingLeft:
    """A study with nothing to run."""

    trials: Sequence[Trial] = ()
    num_asked = 0

    def ask(self, remaining_s: float) -> Trial | None:
        self.num_asked += 1
        return None

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        raise AssertionError("no trial was handed out")


def _no_spec(trial: Trial) -> TrialSpec:
    raise AssertionError("no trial was handed out")


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with closing(open_site(SiteOptions(ray=request.param))) as opened:
        yield opened


@pytest.mark.parametrize("site", SITES, indirect=True)
def test_a_site_runs_a_study_to_its_end_and_leaves_no_process(site: Site, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    assert site.hardware.num_devices >= 1
    assert site.hardware.device_memory_bytes > 0
    assert site.trials_side_by_side >= 1
    assert site.build_s >= 0
    for line in (site.loading, *site.introduction):
        assert line.isprintable()
    seconds = site.start(
        folder=tmp_path, study_name="study", model_type="llama", reason_to_stop=lambda: None
    )
    assert seconds is not None
    study = _NothingLeft()
    context = DriverContext(
        budget=Budget(60.0),
        spec_of=_no_spec,
        folder_of=lambda number: tmp_path,
        progress=_Silent(),  # type: ignore[arg-type]
        is_interrupted=lambda: False,
        trial_timeout_s=10.0,
    )
    site.driver(context).run(study)
    assert study.num_asked
    site.close()
    site.close()
    _, alive = psutil.wait_procs(
        set(psutil.Process().children(recursive=True)) - before, timeout=10
    )
    assert alive == []


_VALUES = {"device_kind": "H100-80GB", "nvme_path": Path("/nowhere")}


@pytest.mark.parametrize(
    ("address", "not_taken"),
    [
        (None, {"nodes_per_trial", "max_concurrent", "device_kind"}),
        # No cluster is asked before the options are right.
        ("127.0.0.1:1", {"devices"}),
    ],
)
def test_an_option_that_a_site_does_not_take_is_refused_by_its_flag(
    address: str | None, not_taken: set[str]
) -> None:
    refused = set()
    for option in {field.name for field in fields(SiteOptions)} - {"ray"}:
        typed = {option: _VALUES.get(option, MOST_DEVICES)}
        flag = f"--{option.replace('_', '-')} "
        with pytest.raises(ConfigError) as caught:
            open_site(SiteOptions(ray=address, **typed)).close()  # type: ignore[arg-type]
        if str(caught.value).startswith(flag) and "cluster" in str(caught.value):
            refused.add(option)
    assert refused == not_taken
