"""The environment of ranks: their devices, threads and allocator, and where they may listen.

Does not know what a trial trains.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from autotune.machine.extensions import readable_architectures
from autotune.machine.hardware import DeviceType, Hardware, visible_gpus
from autotune.machine.settings import ALLOCATOR_NAMES

__all__ = ["devices_of", "rank_environment", "training_settings"]

_MAX_PINNING_THREADS = 8
"""More than these do not pin faster: PyTorch's own benchmark of its setting."""


def rank_environment(
    hardware: Hardware, slot: int = 0, num_slots: int = 1, *, is_offline: bool = True
) -> dict[str, str]:
    """The environment of the server, and so of every rank.

    Args:
        hardware: the devices of a trial.
        slot: which of the launchers that run side by side it is for.
        num_slots: how many there are; they share the cores.
        is_offline: whether nothing is loaded from Hugging Face, unless the user's own environment
            says otherwise.
    """
    cores = max(1, (os.cpu_count() or 1) // (hardware.num_devices * num_slots))
    environment = ({"HF_HUB_OFFLINE": "1"} if is_offline else {}) | os.environ
    environment |= training_settings(hardware.device_type, os.environ, cores=cores)
    environment |= {
        "AUTOTUNE_DEVICE_TYPE": str(hardware.device_type),
        # Ask NVML whether there is a GPU, so that the server itself makes no CUDA context.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # Ranks of one host meet through a file and talk over the loopback interface alone. The
        # address is only read by DeepSpeed's check that a launcher set one.
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "NCCL_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "PYTHONUNBUFFERED": "1",
    }
    if hardware.device_type is DeviceType.CPU:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif num_slots > 1:
        names = environment.get("CUDA_VISIBLE_DEVICES")
        visible = names.split(",") if names else list(map(str, range(len(visible_gpus()))))
        own = visible[devices_of(hardware, slot)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(name.strip() for name in own)
    # torch calls ninja by name; an environment that is not activated has it beside its Python.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def training_settings(
    device_type: DeviceType, own: Mapping[str, str], *, cores: int | None
) -> dict[str, str]:
    """What ranks are given that changes their speed or their memory; names are of `SETTINGS`.

    Args:
        device_type: where tensors live.
        own: the environment that they are added to. What it says already stays; only the
            accelerator of CPU ranks is not for it to say.
        cores: of one rank; None where they are not known, and so no number of threads.
    """
    settings = {"TOKENIZERS_PARALLELISM": own.get("TOKENIZERS_PARALLELISM", "false")}
    if cores is not None:
        settings["OMP_NUM_THREADS"] = own.get("OMP_NUM_THREADS", str(cores))
    name = next((name for name in ALLOCATOR_NAMES if name in own), ALLOCATOR_NAMES[0])
    settings[name] = own.get(name, "expandable_segments:True")
    if device_type is DeviceType.CPU:
        settings["DS_ACCELERATOR"] = "cpu"
    else:
        settings[name] = _pinning_in_parallel(settings[name], cores or _MAX_PINNING_THREADS)
    settings["TORCH_CUDA_ARCH_LIST"] = readable_architectures(own.get("TORCH_CUDA_ARCH_LIST", ""))
    return settings


def _pinning_in_parallel(settings: str, cores: int) -> str:
    """The allocator's settings, with threads that touch host memory before it is pinned.

    One thread pins less than a GB/s where memory must first be cleared, and an optimizer on the
    host has three times the weights pinned. What was set before stays.
    """
    if "pinned_" in settings:
        return settings
    threads = 1 << (min(cores, _MAX_PINNING_THREADS).bit_length() - 1)
    pinning = f"pinned_use_cuda_host_register:True,pinned_num_register_threads:{threads}"
    return ",".join(filter(None, (settings.strip().rstrip(","), pinning)))


def devices_of(hardware: Hardware, slot: int) -> slice:
    """Which of the visible devices are those of one of the launchers that run side by side."""
    return slice(slot * hardware.num_devices, (slot + 1) * hardware.num_devices)
