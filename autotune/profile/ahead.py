"""Traces scripts in the background, one after the other, for callers that cannot wait.

Does not know who asks, nor what for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from autotune.profile.process import known_script_of, script_of
from autotune.profile.script import AllocationScript
from autotune.profile.variant import Recipe, digest
from autotune.question.workload import ModelShape

__all__ = ["ScriptsAhead"]


class ScriptsAhead:
    """Gives at once what is known, and has the rest traced by a process at a time.

    The process ends with this one, whatever it is at.
    """

    def __init__(self) -> None:
        self._asked: set[str] = set()
        self._failed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting: queue.SimpleQueue[tuple[ModelShape, Recipe, int]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._trace, daemon=True)

    def __call__(
        self, shape: ModelShape, recipe: Recipe, seq_len: int
    ) -> AllocationScript | str | None:
        """The script, or in words why there is none; None where it is still to be traced."""
        known = known_script_of(shape, recipe, seq_len)
        if known is None:
            self._ask(shape, recipe, seq_len)
        return known

    def _ask(self, shape: ModelShape, recipe: Recipe, seq_len: int) -> None:
        name = digest(shape.config, seq_len, recipe)
        if name in self._asked:
            return
        self._asked.add(name)
        self._waiting.put((shape, recipe, seq_len))
        if not self._thread.is_alive():
            self._thread.start()

    def failures(self) -> Iterator[str]:
        """Why scripts could not be had that were asked for, each once."""
        while not self._failed.empty():
            yield self._failed.get()

    def _trace(self) -> None:
        told: set[str] = set()
        while True:
            found = script_of(*self._waiting.get())
            if isinstance(found, str) and found not in told:
                told.add(found)
                self._failed.put(found)
