"""The seam between a search and the place where its trials run, and the options that name one.

A new kind of place is a file beside this one and a line in `open_site`. Does not know which
kinds there are, nor what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autotune.drivers.context import DriverContext
from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.trials.protocols import Driver

__all__ = ["OF_ANY_MODEL", "Site", "SiteOptions"]

OF_ANY_MODEL = "auto"
"""The `model_type` of a user's own program, whose model is not known before it runs: the part of
transformers that all models have in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteOptions:
    """The options of a search that say where its trials run; None where one is left out."""

    ray: str | None = None
    """A cluster's address; trials run on this machine where there is none."""
    devices: int | None = None
    devices_per_trial: int | None = None
    nodes_per_trial: int | None = None
    max_concurrent: int | None = None
    device_kind: str | None = None
    nvme_path: Path | None = None

    def refuse(self, not_taken: Mapping[str, str]) -> None:
        """Refuse options that mean nothing at a site.

        Args:
            not_taken: why, in words, by the option's name here.

        Raises:
            ConfigError: one of them is given; the message names its flag.
        """
        for name, why in not_taken.items():
            value = getattr(self, name)
            if value is not None:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: {why}")


class Site(Protocol):
    """A place where trials run. It is opened with its options, started once, and closed."""

    @property
    def hardware(self) -> Hardware:
        """What each trial has, with the limits that were found there."""
        ...

    @property
    def introduction(self) -> Sequence[str]:
        """What there is, and what of it is not used: a line each, for people."""
        ...

    @property
    def trials_side_by_side(self) -> int:
        """How many trials divide the devices of this machine between them."""
        ...

    @property
    def num_gpus_here(self) -> int:
        """GPUs of this machine that trials may be given; 0 where they run elsewhere."""
        ...

    @property
    def build_s(self) -> float:
        """Seconds that the first trial with CPU Adam compiles it; 0 where that is not known."""
        ...

    @property
    def loading(self) -> str:
        """What happens before the first trial starts, in words."""
        ...

    def start(
        self,
        *,
        folder: Path,
        study_name: str,
        model_type: str,
        reason_to_stop: Callable[[], str | None],
    ) -> float | None:
        """Make ready what launches trials; may be called again, which keeps what is ready.

        Args:
            folder: the study's, for logs.
            study_name: for the names of folders elsewhere.
            model_type: Hugging Face's name of the architecture, or `OF_ANY_MODEL`.
            reason_to_stop: asked while libraries load; a sentence ends the wait.

        Returns:
            Seconds that loading took, 0 where trials load by themselves; None where it was
            stopped.

        Raises:
            LaunchError: trials cannot be started there.
        """
        ...

    def driver(self, context: DriverContext) -> Driver:
        """Who owns the loop there; asked for once, after `start`."""
        ...

    def close(self) -> None:
        """Leave no process behind, and print nothing any more. May be called twice."""
        ...
