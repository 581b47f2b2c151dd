"""How Nipype executes: MultiProc, where a killed worker is an error and no endless wait; SLURM, told what is needed."""

from __future__ import annotations

import getpass
import math
import os
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from functools import partial

from nipype.pipeline.plugins import MultiProcPlugin
from nipype.pipeline.plugins.multiproc import process_initializer, run_node

KILLED = (
    "the worker process was killed, most likely because memory ran out; "
    "call again with fewer --n-cpus or a smaller --mem-gb"
)


class ResilientMultiProcPlugin(MultiProcPlugin):
    """MultiProc that reports a killed worker as the failure of its task and goes on with new workers."""

    def _submit_job(self, node, updatehash=False):
        self._taskid += 1
        task = self._taskid
        try:
            future = self.pool.submit(run_node, node, updatehash, task)
        except BrokenProcessPool:
            self.pool = ProcessPoolExecutor(
                max_workers=self.processors,
                initializer=process_initializer,
                initargs=(os.getcwd(),),
                mp_context=self.pool._mp_context,
            )
            future = self.pool.submit(run_node, node, updatehash, task)
        future.add_done_callback(partial(self._finish, task))
        self._task_obj[task] = future
        return task

    def _finish(self, task, future):
        error = future.exception()
        if error is None:
            self._taskresult[task] = future.result()
            return
        message = KILLED if isinstance(error, BrokenProcessPool) else str(error)
        traceback = [f"{type(error).__name__}: {message}"]
        self._taskresult[task] = {"result": None, "traceback": traceback, "taskid": task}


def prepare_slurm(wf, plugin_args: Mapping) -> None:
    """Let every step of a graph ask SLURM for the processors, memory and GPU that it takes.

    Parameters
    ----------
    wf
        The graph.
    plugin_args
        Of the plugin. What its `sbatch_args` ask for wins: of an option given twice sbatch takes the last.
    """
    os.environ.setdefault("LOGNAME", getpass.getuser())  # Nipype names jobs by it; services and containers have none
    wf.config["execution"] = {
        "poll_sleep_duration": 5,  # a call of squeue for every waiting job
        "job_finished_timeout": 65,  # files show up late on shared folders: NFS looks once a minute
    }
    for name in wf.list_node_names():
        node = wf.get_node(name)
        asked = f"--cpus-per-task={node.n_procs} --mem={math.ceil(1024 * node.mem_gb)}M"
        asked += " --gres=gpu:1" * bool(node.is_gpu_node())
        node.plugin_args = {"sbatch_args": f"{asked} {plugin_args.get('sbatch_args', '')}".strip(), "overwrite": True}
