"""The warm server: imports the heavy libraries once, then forks the ranks of every trial.

Started by the launcher as `python -m autotune.worker.server MODEL_TYPE PID`, with its own process
id. It speaks JSON lines: one request a line on standard input, one report a line on standard
output. It never computes and never touches a GPU, so a forked rank starts clean. When its input
closes, because the launcher ended or died, it kills every process below it, removes their
temporary folders and exits; if it was stopped, the kernel continues it for that.

Requests: {"fork": {"rank", "spec", "folder", "env", "swap_folder"?}}, {"sweep": true},
{"ping": true} and {"scratch": [folder]}, the launcher's temporary folders.
Reports: {"ready": s}, {"forked": pid, "rank"}, {"exited": pid, "status"}, {"swept": n},
{"pong": true}.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from autotune.lifeline import adopt_orphans, end_with_parent, wake_with_parent
from autotune.machine.extensions import UNUSED_EXTENSIONS, remove_abandoned_locks

__all__ = ["main"]

_IMPORTED_LATE = (
    # By `deepspeed.initialize`.
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    # By the first step of a compiled model.
    "sympy.physics.units",
    "sympy.tensor.tensor",
    "torch.distributed.tensor.experimental._func_map",
    "torch._inductor.fx_passes.pad_mm",
    # By Liger's kernels on a model, and by the first kernel of Triton.
    "liger_kernel.transformers.monkey_patch",
    "triton.compiler.code_generator",
    "triton.experimental.gluon.nvidia.hopper",
)
"""What every rank would import for itself, a tenth of a second and more: of
`tests/benchmarks/trial_start.py`."""


_GENTLE_S = 0.3
"""What a process below a rank has to end by itself, before it is killed."""


def preload(model_type: str, *, with_optional: bool = True) -> None:
    """Import everything a rank will need, as far as that starts no threads and no GPU context.

    Args:
        model_type: the architecture whose code is needed.
        with_optional: also what a GPU context may come along with; ranks import it themselves
            otherwise, which costs each of them two seconds.
    """
    processor = threading.Thread(target=_look_at_processor)
    processor.start()
    if os.environ.get("AUTOTUNE_DEVICE_TYPE") == "cpu":
        _keep_compiled_code_per_processor()
    modules = (
        "torch",
        # Without it deepspeed.zero.Init fails with torch 2.13: "Signature mismatch".
        "torch._dynamo",
        "torch.distributed",
        "transformers",
        "deepspeed",
        "deepspeed.runtime.engine",
        # DeepSpeed imports it in the first `initialize`: seconds, for it pulls in all of inductor.
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "autotune.worker.rank",
    )
    for module in modules:
        importlib.import_module(module)
    optional = (
        # Some models bring their own code.
        f"transformers.models.{model_type}.modeling_{model_type}",
        *(("bitsandbytes", "peft", "liger_kernel.transformers") if with_optional else ()),
        *(_IMPORTED_LATE if with_optional else ()),
    )
    with _capability_from_nvml():
        for module in optional:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
    if with_optional:
        _identify_triton()
    deepspeed_ops = importlib.import_module("deepspeed.ops")
    deepspeed_ops.__compatible_ops__.update(dict.fromkeys(UNUSED_EXTENSIONS, False))
    # A fork beside another thread may keep its locks for ever.
    processor.join()


def _look_at_processor() -> None:
    """Ask for the processor once for all ranks.

    DeepSpeed does so, twice, for each optimizer on the host: seconds of programs that are started.
    """
    cpuinfo: Any = importlib.import_module("cpuinfo")
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
    # Where it fails, it does so in the rank, whose failure says of what.
    with contextlib.suppress(Exception):
        cpuinfo.get_cpu_info()


def _keep_compiled_code_per_processor() -> None:
    """Give each instruction set a cache of compiled code of its own, unless the user names one.

    The key of torch's cached graphs lacks it: torch 2.13 compiles a graph that was cut for AVX2
    into AVX-512 code, which writes past the end of its tensors.
    """
    import torch
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name, shared = "TORCHINDUCTOR_CACHE_DIR", default_cache_dir()
    # Importing inductor writes the default into the environment, which a parent may hand down.
    if os.environ.get(name, shared) == shared:
        os.environ[name] = f"{shared}_{torch.backends.cpu.get_cpu_capability().lower()}"


def _identify_triton() -> None:
    """Have Triton hash its own files, which it does once in a process, before the first kernel."""
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("triton.runtime.cache").triton_key()


def _capability_from_nvml() -> contextlib.AbstractContextManager[Any]:
    """Bitsandbytes asks torch for the compute capability on import, which makes a GPU context."""
    import pynvml
    import torch

    def capability(device: Any = None) -> tuple[int, int]:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return int(major), int(minor)

    return mock.patch.object(torch.cuda, "get_device_capability", capability)


def _can_fork_for_gpu() -> bool:
    """Whether a forked child may still use the GPU: nothing here has made a context."""
    import torch

    pid = os.fork()
    if pid == 0:
        os._exit(1 if torch.cuda._is_in_bad_fork() else 0)
    return os.waitpid(pid, 0)[1] == 0


class _Server:
    """The loop over requests and ended children."""

    def __init__(self, requests: int, reports: int) -> None:
        self._requests = requests
        self._reports = reports
        self._pids: set[int] = set()
        self._scratch_folders: list[str] = []
        self._swap_folder: str | None = None
        self._rendezvous: Path | None = None

    def report(self, **fields: Any) -> None:
        """One line to the launcher; a launcher that is gone ends the server."""
        try:
            os.write(self._reports, (json.dumps(fields) + "\n").encode())
        except BrokenPipeError:
            self.end()

    def serve(self) -> NoReturn:
        """Until standard input closes."""
        wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        selector = selectors.DefaultSelector()
        selector.register(self._requests, selectors.EVENT_READ)
        selector.register(wake_reader, selectors.EVENT_READ)
        pending = b""
        while True:
            for key, _ in selector.select():
                data = os.read(int(key.fd), 65536)
                if key.fd == wake_reader:
                    continue
                if not data:
                    self.end()
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._answer(json.loads(line))
            self._reap()

    def _answer(self, request: dict[str, Any]) -> None:
        if "fork" in request:
            self._fork(request["fork"])
        elif "sweep" in request:
            self.report(swept=self._sweep())
        elif "ping" in request:
            self.report(pong=True)
        elif "scratch" in request:
            self._scratch_folders = request["scratch"]

    def _fork(self, request: dict[str, Any]) -> None:
        self._swap_folder = request.get("swap_folder")
        self._rendezvous = Path(request["folder"]) / "rendezvous"
        own = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(self._reports)
            _become_rank(request, own)
        self._pids.add(pid)
        self.report(forked=pid, rank=request["rank"])

    def _reap(self) -> None:
        """Report every rank that ended; orphans of ranks are reaped without a word."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._pids:
                self._pids.discard(pid)
                self.report(exited=pid, status=os.waitstatus_to_exitcode(status))

    def _sweep(self) -> int:
        """Kill every process below this one, whatever session it fled into."""
        import psutil

        self._end_gently()
        killed = 0
        # Orphans are handed to this process as they appear, so look until there are none.
        for _ in range(20):
            children = psutil.Process().children(recursive=True)
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
                    killed += 1
            self._reap()
            if not children:
                break
            time.sleep(0.01)
        remove_abandoned_locks()
        return killed

    def _end_gently(self) -> None:
        """Ask what ranks started to end: a compiler removes its temporary files then."""
        import psutil

        below = psutil.Process().children(recursive=True)
        others = [process for process in below if process.pid not in self._pids]
        for process in others:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        psutil.wait_procs(others, timeout=_GENTLE_S)

    def end(self) -> NoReturn:
        """Leave nothing behind."""
        self._sweep()
        # Gone already, unless the launcher was killed.
        for folder in filter(None, (*self._scratch_folders, self._swap_folder)):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            if self._rendezvous is not None:
                self._rendezvous.unlink(missing_ok=True)
        os._exit(0)


def _become_rank(request: dict[str, Any], server: int) -> NoReturn:
    """In the forked child: detach from the server, open the logs, train, and exit."""
    status = 1
    try:
        os.setsid()
        end_with_parent(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        folder, rank = Path(request["folder"]), int(request["rank"])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, suffix in ((1, "out"), (2, "err")):
            log = os.open(folder / f"rank{rank}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, number)
        os.environ.update(request["env"])

        from autotune.worker.rank import run_rank

        status = run_rank(Path(request["spec"]), folder, rank)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # No interpreter shutdown: destructors of process groups may hang; the kernel frees all.
        os._exit(status)


def main() -> NoReturn:
    """Entry of the server process."""
    started = time.perf_counter()
    # A terminal's Ctrl-C is the launcher's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt_orphans()
    model_type, launcher, *rest = sys.argv[1:]
    # While it imports it cannot see its input close, so it dies with the launcher.
    end_with_parent(int(launcher))
    # Whatever the libraries print goes to the error log, not between the reports.
    reports = os.dup(1)
    os.dup2(2, 1)
    preload(model_type, with_optional=not rest)
    if not rest and not _can_fork_for_gpu():
        # An optional import touched the GPU: start over without them.
        os.dup2(reports, 1)
        command = [sys.executable, "-m", __spec__.name, model_type, launcher, "bare"]
        os.execv(sys.executable, command)
    # Of a search that was killed while a rank compiled.
    remove_abandoned_locks()
    gc.collect()
    gc.freeze()
    wake_with_parent()
    server = _Server(requests=0, reports=reports)
    server.report(ready=time.perf_counter() - started)
    server.serve()


if __name__ == "__main__":
    main()
