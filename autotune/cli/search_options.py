"""The options of `autotune search`: how each is declared, and all of them as one checked record.

Does not know what a search does with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import (
    MOST_DEVICES,
    MOST_TRIALS,
    check_headroom,
    default_batch,
    member,
    read_training,
)

if TYPE_CHECKING:
    from autotune.cli.settings import SearchSettings
    from autotune.question.workload import Workload
    from autotune.sites import SiteOptions

__all__ = ["SearchOptions"]

_MOST_SEED = 2**32 - 1
"""NumPy's generators, which the samplers use, take no others."""

Model = Annotated[
    str | None,
    typer.Option(
        help="A preset (tiny, 125M, 350M, 1.1B, 3B, 7B, 13B, 34B, 70B, 175B), a folder with "
        "config.json, or a Hugging Face id. Weights are random: a preset or a folder downloads "
        "nothing, an id downloads its configuration only.",
        show_default="required, unless --from names it",
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        help="Wall-clock time of the whole command, imports included: 90s, 30m, 2h. A trial "
        "starts only if it is expected to finish in time."
    ),
]
Space = Annotated[
    str,
    typer.Option(
        help="What to search: default (loss-neutral knobs), memory (fit at any cost), full "
        "(everything), or a YAML file."
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        help="What trials are chosen for, and which one is exported: front (the whole front of "
        "throughput and memory; exports the fastest), balanced (the same; exports the knee), "
        "throughput, memory or energy (per token). Every search measures and shows all of them."
    ),
]
Sampler = Annotated[
    str,
    typer.Option(
        help="What proposes trials: predicted (the largest expected improvement per second of "
        "trial, by predictions that each trial corrects), or one of Optuna's samplers: tpe, "
        "nsga2, gp, random, grid. Optuna's ignore --objective and --min-gain."
    ),
]
MinGain = Annotated[
    float,
    typer.Option(
        help="End early if no remaining strategy is likely to improve the objective by more than "
        "this fraction; 0: never."
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_DEVICES,
        help="GPUs to use, one rank each; without a GPU, CPU ranks.",
        show_default="all; 2 without a GPU",
    ),
]
DevicesPerTrial = Annotated[
    int | None,
    typer.Option(
        "--devices-per-trial",
        "--gpus-per-trial",
        min=1,
        max=MOST_DEVICES,
        help="Devices of one trial; as many trials as fit run side by side. With 1, a host of 8 "
        "GPUs searches for one GPU. Trials that offload to host memory run alone. With --ray, the "
        "devices of a trial are on one node if they fit.",
        show_default="all of a node: one trial at a time; with --ray and no GPU 2",
    ),
]
NvmePath = Annotated[
    Path | None,
    typer.Option(
        help="A folder on a fast local disk, for strategies that offload to NVMe. Each trial "
        "gets a new folder in it, which is removed when the trial ends.",
        show_default="none: nothing is offloaded to NVMe",
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_TRIALS,
        help="Launch at most N trials, including those of earlier sessions of this study.",
        show_default="as many as the budget allows",
    ),
]
ForcePruned = Annotated[
    int,
    typer.Option(
        min=0,
        max=MOST_TRIALS,
        help="Also launch the N pruned strategies nearest the memory limit, to check the "
        "predictor. They are marked as forced, and may run out of memory.",
    ),
]
Confirm = Annotated[
    int,
    typer.Option(
        min=0,
        max=MOST_TRIALS,
        help="At the end, run the N best trials again, longer and interleaved, until their order "
        "is beyond the noise or they are tied. Uses at most a fifth of the budget. 0: do not.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="The study's folder. If it holds the same question, the search resumes; if it holds "
        "another, the search is refused. The default is named after model, method, sequence "
        "length and hardware.",
        show_default="results/<name>",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Fail unless the folder already holds this study. Resuming needs no flag: asking "
        "the same question again resumes.",
    ),
]
Reuse = Annotated[
    str | None,
    typer.Option(
        help="Use measurements of an earlier study instead of launching those trials again: its "
        "folder, or auto for all studies beside this one. Model, method, sequence length, batch, "
        "hardware and versions must be the same. Such trials are marked as reused.",
        show_default="nothing is reused",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Run trials on a Ray cluster: auto (the cluster that this machine is part of; if "
        "there is none, as local), local (a new cluster of this machine), or the host:port of a "
        "cluster's head.",
        show_default="this machine, without Ray",
    ),
]
NodesPerTrial = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_DEVICES,
        help="With --ray: spread the devices of a trial over N nodes.",
        show_default="as few as possible",
    ),
]
MaxConcurrent = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_DEVICES,
        help="With --ray: run at most N trials at once.",
        show_default="as many as the nodes hold",
    ),
]
DeviceKind = Annotated[
    str | None,
    typer.Option(
        help="With --ray: use only nodes with this kind of device, such as H100-80GB.",
        show_default="the most numerous",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=_MOST_SEED, help="Seed of weights, data and proposals.")
]
TrialTimeout = Annotated[
    str, typer.Option(help="A trial that runs longer counts as hung: 90s, 5m.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the model's own Python code, if it has any."),
]


Command = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- COMMAND]",
        help="Your own training command, all that stands behind --: a script, -m MODULE, or a "
        "console script, also as given to deepspeed, torchrun or accelerate launch. It runs "
        "untouched first, as the baseline; each trial then runs it under a strategy. Where no "
        "Trainer and no Accelerate sets its batches, {micro_batch_size=4} and "
        "{gradient_accumulation_steps=8} stand for them, {ds_config} for a DeepSpeed JSON.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """What the user typed, one field for each option of the command."""

    model: str | None
    from_file: Path | None
    budget: str
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
    objective: str
    sampler: str
    min_gain: float
    devices: int | None
    devices_per_trial: int | None
    nvme_path: Path | None
    trials: int | None
    force_pruned: int
    confirm: int
    out: Path | None
    resume: bool
    reuse: str | None
    storage: str | None
    ray: str | None
    nodes_per_trial: int | None
    max_concurrent: int | None
    device_kind: str | None
    seed: int
    trial_timeout: str
    headroom: float
    host_headroom: float
    trust_remote_code: bool
    all_rows: bool
    as_json: bool
    command: list[str] | None = None

    def settings(self, started: float) -> SearchSettings:
        """How to search.

        Args:
            started: the command's start, by the monotonic clock.

        Raises:
            ConfigError: a value that cannot be; the message names its flag.
        """
        from autotune.cli.settings import SearchSettings
        from autotune.drivers import budget
        from autotune.errors import ConfigError
        from autotune.question.goal import Goal
        from autotune.samplers import SamplerKind

        limit_s = budget.parse_duration(self.budget, "--budget")
        timeout_s = budget.parse_duration(self.trial_timeout, "--trial-timeout")
        check_headroom(self.headroom, self.host_headroom)
        if not 0 <= self.min_gain < 1:
            raise ConfigError(
                f"--min-gain must be at least 0 and less than 1, got {self.min_gain}"
            )
        return SearchSettings(
            budget=budget.Budget(limit_s, started=started),
            sampler=member(SamplerKind, self.sampler, "--sampler"),
            goal=member(Goal, self.objective, "--objective"),
            min_gain=self.min_gain,
            max_trials=self.trials,
            num_forced=self.force_pruned,
            num_confirmed=self.confirm,
            trial_timeout_s=timeout_s,
        )

    def workload(self) -> Workload:
        """What is trained; the global batch is one device's default where none is given.

        Of how many devices a multiple is wanted is known once their site was asked.

        Raises:
            ConfigError: a value that cannot be; the message names its flag.
        """
        batch = self.global_batch if self.global_batch is not None else default_batch(1)
        return read_training(self, batch, trust_remote_code=self.trust_remote_code)

    def site(self) -> SiteOptions:
        """Where trials run."""
        from autotune.sites import SiteOptions

        return SiteOptions(
            ray=self.ray,
            devices=self.devices,
            devices_per_trial=self.devices_per_trial,
            nodes_per_trial=self.nodes_per_trial,
            max_concurrent=self.max_concurrent,
            device_kind=self.device_kind,
            nvme_path=self.nvme_path,
        )
