"""Activations that are described lie between the events of weights as real ones do."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune.predictor.memory.activations import TokenBytes
from autotune.predictor.reserved.described_step import Described, described
from autotune.profile.script import Event, MicroStep, Weight

NUM_TOKENS = 10
TOKEN = TokenBytes(
    layer_input=2, layer=20, recomputed=3, layer_backward=7, head=5, loss=100, host_layer=0
)


def frame(num_weights: int) -> MicroStep:
    """Products, and gradients in the order of backward."""
    ready = [(int(Event.READY), -1, number) for number in reversed(range(num_weights))]
    product = (int(Event.MATMUL), -1, 0)
    return MicroStep(
        events=[product, product, *ready],
        weights=num_weights * (Weight(size_bytes=8, is_trained=True),),
    )


def what(num_layers: int, interval: int = 0) -> Described:
    return Described(
        token=TOKEN,
        num_tokens=NUM_TOKENS,
        num_layers=num_layers,
        checkpoint_interval=interval,
        head_gradient_bytes=11,
    )


def live(events: list[tuple[int, int, int]]) -> list[int]:
    """Bytes behind each event; a block that is freed twice, or never made, is a KeyError."""
    blocks: dict[int, int] = {}
    found = []
    for kind, which, size in events:
        if kind == Event.ALLOCATE:
            blocks[which] = size
        elif kind == Event.FREE:
            del blocks[which]
        found.append(sum(blocks.values()))
    assert not blocks
    return found


@settings(max_examples=60, deadline=None)
@example(num_weights=0, num_layers=2, interval=1)
@given(num_weights=st.integers(0, 30), num_layers=st.integers(1, 9), interval=st.integers(0, 12))
def test_whatever_is_kept_is_given_back(num_weights: int, num_layers: int, interval: int) -> None:
    step = described(frame(num_weights), what(num_layers, interval))
    assert max(live(step.events)) >= NUM_TOKENS * (TOKEN.head + TOKEN.loss) + 11
    told = [event for event in step.events if event[0] in (Event.READY, Event.MATMUL)]
    assert told == frame(num_weights).events


def test_around_the_loss_all_layers_are_held() -> None:
    step = described(frame(8), what(4))
    assert max(live(step.events)) == NUM_TOKENS * (4 * TOKEN.layer + TOKEN.head + TOKEN.loss) + 11


def test_checkpoints_keep_inputs_and_compute_a_span_again() -> None:
    step = described(frame(8), what(4, interval=2))
    turn = [at for at, event in enumerate(step.events) if event[0] == Event.MATMUL][1]
    found = live(step.events)
    kept = NUM_TOKENS * 2 * TOKEN.layer_input
    assert max(found[:turn]) == kept + NUM_TOKENS * (TOKEN.head + TOKEN.loss) + 11
    again = NUM_TOKENS * 2 * TOKEN.layer
    assert max(found[turn:]) == kept + again + NUM_TOKENS * TOKEN.head + 11
