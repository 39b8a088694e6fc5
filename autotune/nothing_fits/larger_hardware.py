"""Larger hardware that a question would fit, and the options that ask for it.

The nearest first: more of the same devices, more memory of the host, other devices. Does not know
what is trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from autotune.machine.hardware import DEVICE_KINDS, GIB, DeviceType
from autotune.machine.hardware_spec import HardwareSpec, read_hardware
from autotune.nothing_fits.alternatives import Larger, LargerKind
from autotune.nothing_fits.command_line import CommandLine
from autotune.question.question import Question
from autotune.question.workload import Method, Vision

__all__ = ["larger_than_planned", "larger_than_searched"]

_MOST_DEVICES = 8
"""Devices of one host."""

_MOST_NODES = 16

_HOST_MARGINS = (1.02, 1.1, 1.25)
"""More of the host's memory than what is offloaded needs: part of it stays free."""


def larger_than_planned(
    spec: HardwareSpec,
    needed_host_bytes: int | None,
    *,
    text: str,
    host_memory_gib: float | None,
    nvme_gib: float | None,
) -> Iterator[Larger]:
    """What a plan may ask for instead.

    Args:
        spec: the hosts that nothing fits.
        needed_host_bytes: the least host memory with which something would; None where none helps.
        text: --hardware, as the user named it.
        host_memory_gib: --host-memory.
        nvme_gib: --nvme.
    """

    def read(name: str, nodes: int) -> HardwareSpec:
        return read_hardware(
            name, num_nodes=nodes, host_memory_gib=host_memory_gib, nvme_gib=nvme_gib
        )

    kind, count, nodes = spec.host.device_kind, spec.host.num_devices, spec.num_nodes
    is_named = kind in DEVICE_KINDS and not Path(text).is_file()
    names = [(count, text)]
    while is_named and 2 * count <= _MOST_DEVICES:
        count *= 2
        names.append((count, f"{count}x{kind}"))
    for _, name in names[1:]:
        more = read(name, nodes)
        yield Larger(words=str(more), hardware=more.all_ranks, options={"--hardware": name})
    name = names[-1][1]
    while 2 * nodes <= _MOST_NODES:
        nodes *= 2
        more = read(name, nodes)
        options = {"--hardware": name, "--nodes": str(nodes)}
        yield Larger(words=str(more), hardware=more.all_ranks, options=options)
    yield from _with_host_memory(spec, needed_host_bytes)
    yield from _other_devices(spec, read)


def _with_host_memory(spec: HardwareSpec, needed_bytes: int | None) -> Iterator[Larger]:
    """The hardware on a host with more memory."""
    sizes = [-(-int(margin * (needed_bytes or 0)) // GIB) for margin in _HOST_MARGINS]
    for gib in sizes:
        # What is short of the host's memory by what must stay free asks for little more.
        if gib * GIB <= spec.host.host_memory_bytes:
            continue
        yield Larger(
            kind=LargerKind.HOST_MEMORY,
            words=f"{gib:,} GiB of memory on each host",
            hardware=replace(spec.all_ranks, host_memory_bytes=gib * GIB),
            options={"--host-memory": str(gib)},
        )


def _other_devices(
    spec: HardwareSpec, read: Callable[[str, int], HardwareSpec]
) -> Iterator[Larger]:
    """As many devices of a kind with more memory."""
    memory_bytes = spec.host.device_memory_bytes
    kinds = [kind for kind in DEVICE_KINDS.values() if kind.memory_bytes > memory_bytes]
    for kind in sorted(kinds, key=lambda kind: kind.memory_bytes):
        name = f"{spec.host.num_devices}x{kind.name}"
        other = read(name, spec.num_nodes)
        yield Larger(
            kind=LargerKind.OTHER_DEVICES,
            words=str(other),
            hardware=other.all_ranks,
            options={"--hardware": name},
        )


def larger_than_searched(
    question: Question, *, command: CommandLine, space_name: str, num_gpus_here: int
) -> Iterator[Larger]:
    """What a search may ask for instead: more of this machine's devices, or a plan for others.

    Args:
        question: what nothing fits.
        command: as the user typed it.
        space_name: --space, as the user named it.
        num_gpus_here: GPUs of this machine that trials may be given.
    """
    hardware = question.hardware
    if hardware.device_type is not DeviceType.CUDA:
        return
    flag = "--devices-per-trial" if command.has("--devices-per-trial") else "--devices"
    flag = "--gpus-per-trial" if command.has("--gpus-per-trial") else flag
    count = hardware.num_devices
    while 2 * count <= num_gpus_here:
        count *= 2
        more = replace(hardware, num_devices=count)
        yield Larger(words=f"{more}", hardware=more, options={flag: str(count)})
    if hardware.device_kind not in DEVICE_KINDS:
        return
    name = f"{hardware.devices_per_node}x{hardware.device_kind}"
    plan = _plan_of(question, space_name, command)
    spec = read_hardware(name, num_nodes=hardware.num_nodes)
    for larger in larger_than_planned(spec, None, text=name, host_memory_gib=None, nvme_gib=None):
        if larger.hardware.num_devices > count or larger.kind is LargerKind.OTHER_DEVICES:
            yield replace(larger, words=f"{larger.words} (a plan; nothing is run)", command=plan)


def _plan_of(question: Question, space_name: str, command: CommandLine) -> CommandLine:
    """The question as one about hardware that is not here."""
    workload = question.workload
    asked = {
        "--model": workload.model.name,
        "--seq-len": workload.seq_len,
        "--global-batch": workload.global_batch_size,
        "--method": workload.method,
        "--space": space_name,
        "--headroom": question.headroom,
    }
    if workload.method is not Method.FULL:
        asked |= {
            "--lora-rank": workload.lora_rank,
            "--lora-targets": ",".join(workload.lora_targets),
        }
    for flag in ("--lengths", "--data", "--tokenizer"):
        given = command.value(flag)
        if given is not None:
            asked[flag] = given
    if workload.model.trains_tower:
        asked["--vision"] = Vision.TRAINED
    elif workload.model.whole_type and not workload.model.tower_parameters:
        asked["--vision"] = Vision.ABSENT
    return CommandLine(("plan", *(str(part) for pair in asked.items() for part in pair)))
