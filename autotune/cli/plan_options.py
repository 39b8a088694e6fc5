"""The options of `autotune plan`: how each is declared, and all of them as one checked record.

Does not know how a plan is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import MOST_DEVICES, MOST_GIB, read_training

if TYPE_CHECKING:
    from autotune.machine.hardware_spec import HardwareSpec
    from autotune.question.goal import Goal
    from autotune.question.workload import Workload

__all__ = ["PlanOptions"]

Model = Annotated[
    str | None,
    typer.Option(
        help="A preset (tiny, 125M, 350M, 1.1B, 3B, 7B, 13B, 34B, 70B, 175B), a folder with "
        "config.json, or a Hugging Face id. Weights are never downloaded: an id needs only "
        "its configuration.",
        show_default="required, unless --from names it",
    ),
]
Hardware = Annotated[
    str,
    typer.Option(
        help="One host: number and kind of its devices, such as 8xH100-80GB, or a YAML file "
        "(see below).",
        show_default=False,
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST_DEVICES,
        help="Number of hosts; links between hosts use assumed rates.",
    ),
]
HostMemory = Annotated[
    float | None,
    typer.Option(
        max=MOST_GIB,
        help="Memory of each host in GiB.",
        show_default="3x GPU memory, at most 256 GiB per GPU",
    ),
]
Nvme = Annotated[
    float | None,
    typer.Option(
        max=MOST_GIB,
        help="Free NVMe disk of each host in GiB, for strategies that offload to it (--space "
        "full has some).",
        show_default="no offloading to NVMe",
    ),
]
Space = Annotated[
    str,
    typer.Option(
        help="Search space: default (loss-neutral knobs), memory (fit at any cost), full "
        "(everything; a random sample if it is large), or a YAML file."
    ),
]
CalibrateFrom = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a study of any model, such as results/my-study. Its trials correct "
        "the predictions. A study on another kind of GPU corrects memory only.",
        show_default="no correction",
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Show the memory and the step time of one strategy in parts, and why nothing "
        "faster fits.",
    ),
]
Pick = Annotated[
    str,
    typer.Option(
        help="Strategy for --explain and --out: throughput (the fastest), memory (the least "
        "memory) or balanced (the knee between them)."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Export the pick to this folder, marked as not measured.",
        show_default="no export",
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Estimate reserved memory by a formula, and do not simulate the allocator on the "
        "model's code, which takes some seconds for a new model. A strategy then fits if the "
        "formula's upper bound fits.",
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """What the user typed, one field for each option of the command."""

    model: str | None
    from_file: Path | None
    hardware: str
    nodes: int
    host_memory: float | None
    nvme: float | None
    seq_len: int | None
    lengths: Path | None
    data: Path | None
    tokenizer: Path | None
    global_batch: int | None
    method: str
    lora_rank: int
    lora_targets: str
    vision: str
    space: str
    headroom: float
    host_headroom: float
    calibrate_from: Path | None
    explain: bool
    pick: str
    out: Path | None
    quick: bool
    all_rows: bool
    as_json: bool

    def goal(self) -> Goal:
        """What --pick names.

        Raises:
            ConfigError: a plan has no such pick; energy is not predicted.
        """
        from autotune.errors import ConfigError
        from autotune.question.goal import FRONT_PICKS, Goal

        if self.pick not in FRONT_PICKS:
            raise ConfigError(f"--pick {self.pick!r}: choose from {', '.join(FRONT_PICKS)}")
        return Goal(self.pick)

    def spec(self) -> HardwareSpec:
        """The hosts that --hardware, --nodes, --host-memory and --nvme describe.

        Raises:
            ConfigError: a value that cannot be; the message names its flag.
        """
        from autotune.errors import ConfigError
        from autotune.machine.hardware_spec import read_hardware

        spec = read_hardware(
            self.hardware,
            num_nodes=self.nodes,
            host_memory_gib=self.host_memory,
            nvme_gib=self.nvme,
        )
        if spec.all_ranks.num_devices > MOST_DEVICES:
            raise ConfigError(
                f"--hardware and --nodes: {spec.all_ranks.num_devices:,} devices in total; "
                f"choose at most {MOST_DEVICES:,}"
            )
        return spec

    def workload(self, global_batch: int) -> Workload:
        """What is trained, with this global batch.

        Raises:
            ConfigError: a value that cannot be; the message names its flag.
        """
        return read_training(self, global_batch)
