"""What is wrong with a user's command, found out while it runs, with the remedy."""

from __future__ import annotations

from autotune.errors import AutotuneError

__all__ = ["EndedEarlyError", "IgnoredBatchError", "NoEngineError", "ScriptError", "explained"]

_OFFLINE = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "gaierror")
"""Names of exceptions that say that a network was wanted, wherever they come from."""


class ScriptError(AutotuneError):
    """The user's program does not do what a trial needs."""


class NoEngineError(ScriptError):
    """It ended and never made an engine that trains."""

    def __init__(self, status: object) -> None:
        ended = "ended" if status in (None, 0) else f"ended with exit status {status}"
        super().__init__(
            f"the command {ended} and never called deepspeed.initialize for a model that trains; "
            "give its script a DeepSpeed configuration, such as --deepspeed ds.json"
        )


class EndedEarlyError(ScriptError):
    """It ended before enough steps were timed."""

    def __init__(self, num_steps: int, status: object) -> None:
        ended = "ended" if status in (None, 0) else f"ended with exit status {status}"
        super().__init__(
            f"the command {ended} after {num_steps} optimizer steps, and a trial needs 4 or more; "
            "give it more samples, epochs or steps"
        )


class IgnoredBatchError(ScriptError):
    """It trains other batches than it was told."""

    @classmethod
    def micro_batch(cls, seen: int, told: int) -> IgnoredBatchError:
        """Micro-batches have another size."""
        return cls(
            f"the command feeds micro-batches of {seen} rows where {told} were asked for; pass "
            "the size on in the command, such as --batch-size {micro_batch_size}"
        )

    @classmethod
    def accumulation(cls, seen: int, told: int) -> IgnoredBatchError:
        """Optimizer steps have another number of micro-batches."""
        return cls(
            f"the command takes an optimizer step after {seen} micro-batches where {told} were "
            "asked for; pass the number on, such as --accumulation {gradient_accumulation_steps}, "
            "or train within accelerator.accumulate(model)"
        )


def explained(error: BaseException) -> str | None:
    """What ended a program, with the remedy, where more is known than the exception says.

    Args:
        error: with the exceptions that led to it.
    """
    if isinstance(error, ScriptError):
        return str(error)
    if isinstance(error, EOFError):
        return "the command reads from a terminal, and trials have none; pass it as an argument"
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(type(each).__name__ in _OFFLINE for each in chain):
        return (
            "the command loads something over the network, which cannot be reached; load it once "
            "before, or give a folder"
        )
    return None
