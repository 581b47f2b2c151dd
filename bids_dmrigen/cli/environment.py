"""The environment of the processes that a call starts: threads, caches, telemetry."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..diffusion.storage import write_text

if TYPE_CHECKING:
    import psutil

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
# SIGTERM: kill, docker stop, SLURM, PBS; SIGXCPU: SGE, LSF; SIGUSR1, SIGUSR2: SGE -notify, SLURM --signal
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE_S = 5.0  # between asking a process to end and ending it
CACHES = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "TEMPLATEFLOW_HOME", "TORCH_HOME", "NUMBA_CACHE_DIR", "NIPYPE_CONFIG_DIR")

NIPYPE_CONFIG = """\
[logging]
workflow_level = {level}
interface_level = {level}
utils_level = ERROR
[execution]
check_version = false
"""


def prepare(work: Path, threads: int, log_level: str = "ERROR") -> None:
    """Set threads and caches for this process and the workers that it starts.

    HOME may be unwritable (containers run as any user), so every cache goes under the work folder.
    """
    os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
    os.environ.setdefault("MPLBACKEND", "Agg")
    # Waiting threads must sleep: threads that spin take the cores of other steps, which then are ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ[ITK_THREADS] = str(threads)
    for name in CACHES:
        folder = work / "caches" / name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "0")
    # Workers are new processes: they read Nipype's logging level from this file only. Workers of another call in the
    # same work folder must never read half of it.
    write_text(Path(os.environ["NIPYPE_CONFIG_DIR"]) / "nipype.cfg", NIPYPE_CONFIG.format(level=log_level))


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Within, what ends a job from outside raises `KeyboardInterrupt` with the signal's name, as Ctrl-C does.

    These are the signals that `kill`, containers and batch systems send some seconds before they kill. A signal that
    was ignored before (nohup) stays ignored.
    """

    def interrupt(number: int, _: object) -> None:
        for name in before:
            signal.signal(name, signal.SIG_IGN)  # one is enough
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {}
    try:
        for name in STOPPING:
            if signal.getsignal(name) != signal.SIG_IGN:
                before[name] = signal.signal(name, interrupt)
    except ValueError:  # not in the main thread: signals are for others
        before = {}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def stop_workers() -> None:
    """End all processes that this one started. Otherwise they continue after a signal, and Python waits for them."""
    import psutil

    # Python's tracker of shared resources ends by itself, after this process has told it what is left.
    workers = [p for p in psutil.Process().children(recursive=True) if not _is_tracker(p)]
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.terminate()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    for worker in alive:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    psutil.wait_procs(alive, timeout=PATIENCE_S)


def _is_tracker(process: psutil.Process) -> bool:
    import psutil

    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def cpus() -> int:
    """Return the number of processors that this process may use, within its affinity and the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *_quota()]))


def memory_gb() -> float:
    """Return the memory that this process may use, GB: that of the machine or of the container, the smaller one."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return min(limits) / 1e9


def _quota() -> Iterator[int]:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        yield max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return
