"""Nipype's MultiProc with one fault mended: a worker killed from outside is an error, not an endless wait."""

from __future__ import annotations

import os
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
