"""What one rank holds beside activations: weights, masters, states, gradients, buffers, in bytes.

Does not know how they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["States"]


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes on the device of one rank, by how long they are held."""

    weights: int
    """Weights of the model, frozen ones included."""
    second_weights: int
    """ZeRO++'s second copy, divided over fewer ranks."""
    master_weights: int
    optimizer_states: int
    paged_states: int
    """The part of the optimizer states in managed memory, which moves to the host if the device is
    full."""
    staged_states: int
    """Muon's next momentum, beside the current one."""
    has_early_states: bool
    """Whether optimizer states exist before the first step: stages 1 and 2 create them in it."""
    offload_buffers: int
    """Staging buffers for copies between device and host."""
    accumulated_gradients: int
    """Gradients held from one micro-step to the next, and so together with activations."""
    buckets: int
    """Reduction buckets, from the first gradient of a micro-step on."""
    buckets_in_forward: int
    """The part of the buckets that exists already in forward."""
    received_gradients: int
    """Buffer for all gradients of this rank's partition, on a stream of its own, from the first
    bucket that is reduced during backward; 0 if none is."""
    final_gradients: int
    """Gradients that are held when backward ends."""
    first_gradient: int
    """Gradient of the output projection: the first and largest of backward."""
    gathered_weights: int
    """Most bytes of whole weights that ZeRO-3 has gathered at once."""
    span_weights: int
    """Whole weights that stay while several layers are recomputed together, beside them."""
    beside_at_most: int
    """More bytes for the upper bound. Stage 3: prefetched weights, in a common buffer. Stages
    1 and 2: a flat copy of gradients for several ranks (`allreduce_bucket`)."""
    late_bucket: int
    """ZeRO-3's gradients of one bucket, and the weights gathered for them: freed by the host; in
    use until other streams finish."""
    step_buffers: int
    """Gradients in the optimizer step, and the copies of them that it makes."""
    offload_copies: int
    """Copies of the largest gradient when it is moved to the host: this rank's partition of it,
    also in another precision."""
    first_copies: int
    """The part of `offload_copies` that exists together with the gradient itself."""
    buckets_in_step: int
    """The part of the buckets that exists in the optimizer step."""
    init_weights: int
    """Weights while the engine is built."""
    init_buffers: int
    """Copies made while the engine is built, in addition to the weights."""
    init_beside: int
    """One more copy while the engine is built, which freed weights leave no room for."""
