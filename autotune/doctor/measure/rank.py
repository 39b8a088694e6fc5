"""One rank of a measurement, a process of its own: `python -m autotune.doctor.measure.rank SPEC`.

The first rank measures what one device and the host do alone; then all of them measure the links.
What is found is written line by line, so that it stands if a later part fails or takes too long.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from autotune.doctor.measure.spec import RankSpec, events_file, remove_shared
from autotune.lifeline import end_group_with_input

if __name__ == "__main__":
    # Imports take longest: whoever ends meanwhile must not leave them running.
    _folder = RankSpec.from_json(sys.argv[1]).folder
    end_group_with_input(lambda: remove_shared(_folder))

import torch
import torch.distributed as dist

from autotune.doctor.measure import device as devices
from autotune.doctor.measure import links
from autotune.doctor.measure.disk import disk_bytes_per_s


class _Log:
    def __init__(self, path: Path) -> None:
        self._path = path

    def measure(self, rate: str, work: Callable[[], float]) -> float | None:
        """Do the work and write down what it gave; what it cannot do is no reason to end."""
        try:
            value = work()
        except (RuntimeError, OSError) as error:  # of torch, out of memory included; of the disk
            self._write({"rate": rate, "failure": f"{type(error).__name__}: {error}"})
            return None
        self._write({"rate": rate, "value": value})
        return value

    def _write(self, event: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _measure_alone(spec: RankSpec, device: torch.device, log: _Log) -> None:
    without = torch.float16 if device.type == "cuda" else torch.float32
    dtype = torch.bfloat16 if spec.supports_bf16 else without
    log.measure("matmul_flops_per_s", lambda: devices.matmul_flops_per_s(device, dtype))
    log.measure("memory_bytes_per_s", lambda: devices.memory_bytes_per_s(device))
    log.measure("kernel_launch_s", lambda: devices.kernel_launch_s(device))
    if device.type == "cuda":
        log.measure(
            "host_to_device_bytes_per_s", lambda: devices.host_to_device_bytes_per_s(device)
        )
        log.measure(
            "device_to_host_bytes_per_s", lambda: devices.device_to_host_bytes_per_s(device)
        )
        torch.cuda.empty_cache()
    log.measure("host_memory_bytes_per_s", devices.host_memory_bytes_per_s)
    if spec.nvme_path is not None:
        folder = Path(spec.nvme_path)
        log.measure("nvme_bytes_per_s", lambda: disk_bytes_per_s(folder))


def _measure_links(spec: RankSpec, device: torch.device, log: _Log | None) -> None:
    """By all ranks; the first of them writes."""
    links.meet(Path(spec.folder), rank=spec.rank, num_ranks=spec.num_ranks, device=device)
    latency_s = links.all_reduce_s(device)
    bandwidth = links.link_bytes_per_s(device, latency_s)
    if log is not None:
        log.measure("collective_s", lambda: latency_s)
        log.measure("link_bytes_per_s", lambda: bandwidth)
    dist.destroy_process_group()


def main() -> None:
    """Measure, as the only argument says."""
    spec = RankSpec.from_json(sys.argv[1])
    is_cuda = spec.device_type == "cuda"
    device = torch.device("cuda", spec.rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    log = _Log(events_file(Path(spec.folder))) if spec.rank == 0 else None
    if log is not None:
        _measure_alone(spec, device, log)
    if spec.num_ranks > 1:
        _measure_links(spec, device, log)


if __name__ == "__main__":
    main()
