"""Scripts for whoever cannot wait: what is not known yet is traced aside, one after the other.

Does not know who asks, nor what for.
"""

from __future__ import annotations

import queue
import threading

from autotune.profile.process import known_script_of, script_of
from autotune.profile.script import AllocationScript
from autotune.profile.variant import Recipe
from autotune.question.workload import ModelShape

__all__ = ["ScriptsAhead"]


class ScriptsAhead:
    """Gives at once what is known, and has the rest traced by a process at a time.

    The process ends with this one, whatever it is at.
    """

    def __init__(self) -> None:
        self._asked: set[tuple[str, Recipe, int]] = set()
        self._waiting: queue.SimpleQueue[tuple[ModelShape, Recipe, int]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._trace, daemon=True)

    def __call__(
        self, shape: ModelShape, recipe: Recipe, seq_len: int
    ) -> AllocationScript | str | None:
        """The script, or in words why there is none; None where it is still to be traced."""
        known = known_script_of(shape, recipe, seq_len)
        key = (shape.name, recipe, seq_len)
        if known is None and key not in self._asked:
            self._asked.add(key)
            self._waiting.put((shape, recipe, seq_len))
            if not self._thread.is_alive():
                self._thread.start()
        return known

    def _trace(self) -> None:
        while True:
            script_of(*self._waiting.get())
