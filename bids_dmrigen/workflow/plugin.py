"""Nipype plugins: a killed worker or job fails only its own step, and a GPU runs one step at a time."""

from __future__ import annotations

import getpass
import math
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from nipype.pipeline import plugins
from nipype.pipeline.plugins import MultiProcPlugin, SLURMPlugin
from nipype.pipeline.plugins.base import PluginBase, SGELikeBatchManagerBase
from nipype.pipeline.plugins.multiproc import process_initializer, run_node

from ..diffusion.gpus import use_gpu

POLLING = {
    "poll_sleep_duration": 5,  # one call of squeue (or a similar command) for every waiting job
    "job_finished_timeout": 65,  # files show up late on shared folders: NFS looks once a minute
}
RETRIES = {"max_tries": 3, "retry_timeout": 10}  # more submissions of a refused job, and the seconds between them
NO_MEMORY = "the worker process was killed {why}; call again with fewer --n-cpus or a smaller --mem-gb"
KILLED = "the worker process was killed from outside ({signal}); call again to continue from here"
CRASHED = (
    "the worker process crashed ({how}), in a compiled library or because the disk is full; call again, and tell the "
    "developers if it happens again"
)
KILLING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
KILLS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")  # files that count processes killed for want of memory


class ResilientMultiProcPlugin(MultiProcPlugin):
    """MultiProc that continues with new workers where one was killed, and assigns a GPU to every step that needs one.

    Parameters
    ----------
    plugin_args
        Arguments of Nipype's plugin, and `gpus`: numbers of the GPUs to assign. `n_gpu_procs` can lower the number of
        steps on GPUs at a time, but not raise it.
    """

    pool: ProcessPoolExecutor

    def __init__(self, plugin_args: Mapping):
        self._free_gpus = list(plugin_args.get("gpus", ()))
        slots = min(plugin_args.get("n_gpu_procs", len(self._free_gpus)), len(self._free_gpus))
        self._memory_kills = memory_kills()
        super().__init__(plugin_args={**plugin_args, "n_gpu_procs": slots})

    def _submit_job(self, node, updatehash=False):
        self._taskid += 1
        task = self._taskid
        # Nipype submits at most as many GPU steps at once as there are slots; without slots it does not count them.
        gpu = self._free_gpus.pop(0) if node.is_gpu_node() and self._free_gpus else None
        try:
            future = self.pool.submit(_run_step, node, updatehash, task, gpu)
        except BrokenProcessPool:
            self.pool = ProcessPoolExecutor(
                max_workers=self.processors,
                initializer=process_initializer,
                initargs=(os.getcwd(),),
                mp_context=self.pool._mp_context,
            )
            future = self.pool.submit(_run_step, node, updatehash, task, gpu)
        future.add_done_callback(partial(self._finish, task, gpu))
        self._task_obj[task] = future
        return task

    def _finish(self, task, gpu, future):
        if gpu is not None:  # first: as soon as Nipype has the result, it counts the slot as free
            self._free_gpus.append(gpu)
        error = future.exception()
        if error is None:
            self._taskresult[task] = future.result()
            return
        message = str(error)
        if isinstance(error, BrokenProcessPool):
            # The executor ends its other workers only after it has told of the error.
            codes = [process.exitcode for process in (self.pool._processes or {}).values()]
            message = why_it_died([code for code in codes if code], self._memory_kills)
        traceback = [f"{type(error).__name__}: {message}"]
        self._taskresult[task] = {"result": None, "traceback": traceback, "taskid": task}


def memory_kills() -> int | None:
    """Return how many processes were killed for want of memory since the machine started; None if nobody counts."""
    counts = []
    for path in KILLS:
        with suppress(OSError, ValueError):
            counts += [int(n) for name, n in map(str.split, Path(path).read_text().splitlines()) if name == "oom_kill"]
    return sum(counts) if counts else None


def why_it_died(exit_codes: Sequence[int], kills_before: int | None) -> str:
    """Return a sentence about a worker that ended before its step did.

    Parameters
    ----------
    exit_codes
        Of the workers that have ended: a negative one is that of a signal.
    kills_before
        `memory_kills` when the workers started.
    """
    code = exit_codes[0] if exit_codes else -signal.SIGKILL
    name = signal.Signals(-code).name if code < 0 else f"status {code}"
    if name in KILLING:
        return KILLED.format(signal=name)
    if name != "SIGKILL":
        return CRASHED.format(how=name)
    now = memory_kills()
    if now is None or kills_before is None:
        return NO_MEMORY.format(why="(SIGKILL), most likely because memory ran out")
    return NO_MEMORY.format(why="because memory ran out") if now > kills_before else KILLED.format(signal=name)


def _run_step(node, updatehash, task, gpu):
    """Run a node in a worker on this GPU; the earlier step of the worker may have used another GPU."""
    with use_gpu(gpu):
        return run_node(node, updatehash, task)


class ResilientSLURMPlugin(SLURMPlugin):
    """SLURM with the resources of every step; a job that SLURM kills or refuses fails only its own step.

    Parameters
    ----------
    plugin_args
        Arguments of Nipype's plugin. `sbatch_args` override the resources: sbatch takes the last of two equal options.
    """

    def __init__(self, plugin_args: Mapping):
        super().__init__(plugin_args={**RETRIES, **plugin_args})
        self._logs: dict[int, Path] = {}  # output of each job
        self._refused: dict[int, str] = {}  # reasons of refused jobs, under negative numbers, which no real job has
        self._squeue_error = ""

    def _submit_batchtask(self, scriptfile, node):
        for outdated in Path(node.output_dir()).glob("result_*.pklz"):
            outdated.unlink()  # otherwise it would be taken for the result of a job that never started
        name = ".".join(reversed(node.fullname.split(".")))  # the step first: squeue shows eight letters
        resources = [f"--cpus-per-task={node.n_procs}", f"--mem={math.ceil(1024 * node.mem_gb)}M"]
        resources += ["--gres=gpu:1"] * bool(node.is_gpu_node())
        log = Path(scriptfile).with_name("slurm-%j.out")
        answer = self._sbatch(f"--output={log}", f"--job-name={name}", *resources,
                              *shlex.split(self._sbatch_args or ""), scriptfile)  # fmt: skip
        if submitted := re.search(self._jobid_re, answer.stdout):
            taskid = int(submitted[1])
            self._logs[taskid] = log.with_name(f"slurm-{taskid}.out")
        else:
            taskid = -1 - len(self._refused)
            reply = " ".join((answer.stderr or answer.stdout).split())
            self._refused[taskid] = f"sbatch took no job for this step (status {answer.returncode}): {reply}"
        self._pending[taskid] = node.output_dir()
        return taskid

    def _sbatch(self, *arguments) -> subprocess.CompletedProcess:
        """Submit a job, and again where SLURM is too busy; return the last answer."""
        answer = _call("sbatch", *arguments)
        for _ in range(self._max_tries):
            if re.search(self._jobid_re, answer.stdout):
                break
            time.sleep(self._retry_timeout)
            # SLURM may have accepted the job without an answer: then the new job waits for it, and finds its result.
            answer = _call("sbatch", "--dependency=singleton", *arguments)
        return answer

    def _is_pending(self, taskid):
        answer = _call("squeue", "--noheader", f"--jobs={taskid}")
        if not answer.returncode:
            return bool(answer.stdout.strip())
        if "Invalid job id" in answer.stderr:  # the job ended some minutes ago
            return False
        if answer.stderr != self._squeue_error:
            self._squeue_error = answer.stderr
            print(f"note: squeue does not answer, waiting for it: {' '.join(answer.stderr.split())}", flush=True)
        return True

    def _get_result(self, taskid):
        if taskid in self._refused:
            return _failure(self._refused[taskid])
        try:
            result = super()._get_result(taskid)
        except Exception as error:  # also errors of a shared folder
            return _failure(f"the result of SLURM job {taskid} cannot be read: {type(error).__name__}: {error}")
        if result and isinstance(result["traceback"], str):  # Nipype's own traceback for a missing result
            return _failure(self._killed(taskid))
        return result

    def _killed(self, taskid: int) -> str:
        message = (
            f"SLURM job {taskid} ended without a result, most likely because its memory or time ran out; "
            "call again with a larger --mem or --time in sbatch_args of --nipype-plugin-file"
        )
        log = self._logs[taskid]
        if not log.is_file():  # the job never started, or sbatch_args name another file
            return message
        lines = log.read_text(errors="replace").strip().splitlines()
        return f"{message}; {log} ends with: {lines[-1].strip() if lines else 'nothing'}"


def _call(*command: str) -> subprocess.CompletedProcess:
    """Run a command; one that cannot be started returns an exit status too."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _failure(message: str) -> dict:
    """Return the result of a node that failed; its traceback is a list, because Nipype adds lines to it."""
    return {"result": None, "traceback": [f"RuntimeError: {message}\n"]}


def make_plugin(name: str, arguments: Mapping) -> PluginBase:
    """Return Nipype's plugin of this name, or the resilient one in its place."""
    resilient = {"MultiProc": ResilientMultiProcPlugin, "SLURM": ResilientSLURMPlugin}
    return (resilient.get(name) or getattr(plugins, f"{name}Plugin"))(plugin_args=arguments)


def prepare_batch(wf, plugin: PluginBase) -> None:
    """Set longer polling times for a graph that runs on a batch system."""
    if isinstance(plugin, SGELikeBatchManagerBase):
        os.environ.setdefault("LOGNAME", getpass.getuser())  # Nipype names jobs by it; some services have none
        wf.config["execution"] |= POLLING
