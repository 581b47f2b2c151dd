"""The participant level: one graph per run. All are executed together; the failure of one run does not stop others."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bids.sidecars import versions
from ..diffusion.storage import write_text
from ..qc.report import RunError
from .failures import find_failures, without_failed
from .plan import RunPlan
from .settings import Settings, name_of_call, plugin_arguments
from .space import explained


@dataclass(frozen=True)
class Resources:
    """The processors and the memory that the whole call may use."""

    n_cpus: int
    threads: int  # of one step
    memory_gb: float


def execute(
    plans: Sequence[RunPlan],
    settings: Settings,
    template: str,
    links: Mapping[str, Path],
    resources: Resources,
) -> dict[str, RunError]:
    """Run every plan; return the runs that did not complete, by name.

    Parameters
    ----------
    plans
        Plans of all runs, also those with a fault.
    settings
        Settings of this call.
    template
        TemplateFlow name of the template.
    links
        Names and roots of the input datasets.
    resources
        Processors and memory.
    """
    from nipype import config, logging

    logs = settings.out_dir / "logs" / name_of_call()
    config.update_config({
        "execution": {
            "crashdump_dir": str(logs),
            "crashfile_format": "txt",
            "poll_sleep_duration": 0.1,  # a round starts at most one step per processor, also if it is cached
            "stop_on_first_crash": settings.stop_on_first_crash,
            "hash_method": "timestamp",
            "create_report": False,
            "check_version": False,
            "remove_unnecessary_outputs": False,
        },
        # A failed run is reported by its own message; the traceback is in the crash file.
        "logging": {"workflow_level": ("CRITICAL", "INFO", "DEBUG")[min(settings.verbose, 2)]},
    })  # fmt: skip
    logging.update_logging(config)

    sound = [plan for plan in plans if not plan.fault]
    _rerun_lost(sound, cache_folder(settings))
    sound = _run(sound, settings, template, links, resources, logs)
    built = {plan.run.name: plan for plan in sound}
    plans = [built.get(plan.run.name, plan) for plan in plans]
    sound = [plan for plan in sound if not plan.fault]
    failures = find_failures(logs, sound)
    nodes = {plan.run.name: [f.node for f in failures if f.run == plan.run.name] for plan in sound}
    reduced = [smaller for plan in sound if (smaller := without_failed(plan, nodes[plan.run.name]))]
    if reduced and not settings.stop_on_first_crash:
        print("figures and metrics of the results without a failure", flush=True)
        _run(reduced, settings, template, links, resources, logs)
        failures = find_failures(logs, sound)
    _keep_traces(logs, plans)
    first = {
        failure.run: replace(failure.error, message=explained(failure.error.message, settings))
        for failure in reversed(failures)
    }
    return {**unfinished(plans, settings.out_dir), **first}


def _run(plans: Sequence[RunPlan], settings, template: str, links, resources: Resources, logs: Path) -> list[RunPlan]:
    """Execute the graphs of some runs together; each node that fails leaves a crash file among the logs.

    Returns the plans, with a fault where a graph could not be built.
    """
    from nipype.pipeline import engine as pe

    from .plugin import prepare_batch

    wf = pe.Workflow(name="participant", base_dir=str(cache_folder(settings)))
    plans = [_add_run(wf, plan, template=template, links=links, threads=resources.threads) for plan in plans]
    sound = [plan for plan in plans if not plan.fault]
    if not sound:
        return plans
    plugin = _plugin(settings, resources, _weights(wf, sound))
    prepare_batch(wf, plugin)
    gc.freeze()  # MultiProc collects garbage in every round: objects that exist now need no check
    try:
        wf.run(plugin=plugin)
    except RuntimeError as error:
        # Nipype raises after the other nodes have run.
        if not logs.is_dir():
            raise RuntimeError(f"the workflow could not start: {error}") from error
    finally:
        gc.unfreeze()
    return plans


def _add_run(wf, plan: RunPlan, **common) -> RunPlan:
    """Add a run's graph; return its plan, with a fault where the graph cannot be built."""
    from .run import init_run_wf

    if plan.fault:
        return plan
    try:
        wf.add_nodes([init_run_wf(plan, **common)])
    except Exception as error:  # an unforeseen fault of one run must not stop the others
        return plan.broken_by(error)
    return plan


def _keep_traces(logs: Path, plans: Sequence[RunPlan]) -> None:
    for plan in plans:
        if plan.trace:
            write_text(logs / f"crash-{plan.node_name}.txt", plan.trace)


def cache_folder(settings: Settings) -> Path:
    """Return the folder of intermediate results, which depends on the software versions and on `--deterministic`.

    Nipype compares inputs, not code: after an update it would reuse the results of the old code.
    """
    environment = json.dumps([versions(), settings.deterministic], sort_keys=True)
    return settings.work / hashlib.sha256(environment.encode()).hexdigest()[:12]


def _rerun_lost(plans: Sequence[RunPlan], base: Path) -> None:
    """Have results stored again that were removed from the output folder or replaced by another call.

    Their sinks are removed from the work folder, so Nipype runs them again. Otherwise it would not: it compares the
    inputs of a node, not the state of its outputs.
    """
    from ..bids.store import intact

    for plan in plans:
        for sink in (base / "participant" / plan.node_name).glob("sink_*"):
            if not intact(sink):
                shutil.rmtree(sink, ignore_errors=True)


def unfinished(plans: Sequence[RunPlan], out_dir: Path) -> dict[str, RunError]:
    """Return the runs whose plan has a fault, that lack promised files, or that a method cannot process."""
    errors = {}
    for plan in plans:
        missing = [o.path.name for o in plan.outputs if not (out_dir / o.path).is_file()]
        if plan.fault:
            errors[plan.run.name] = RunError("checks", plan.fault, plan.trace)
        elif missing:
            errors[plan.run.name] = RunError("outputs", f"{len(missing)} promised files are missing: {missing[:3]}")
        elif plan.refused:
            reasons = "; ".join(plan.refused.values())
            errors[plan.run.name] = RunError(", ".join(plan.refused), f"{reasons}; everything else is done")
    return errors


def _plugin(settings: Settings, resources: Resources, weights: Mapping[str, tuple[str, str, float]]):
    """Return the execution plugin; the arguments of the plugin file override those of the command line."""
    from .plugin import make_plugin
    from .progress import Progress

    name = settings.nipype_plugin or "MultiProc"
    arguments: dict[str, Any] = {"status_callback": Progress(weights)}
    if name == "MultiProc":
        from ..diffusion.parallel import usable_gpus

        arguments |= {
            "n_procs": resources.n_cpus,
            "memory_gb": resources.memory_gb,
            "gpus": usable_gpus(settings.device),
            "raise_insufficient": False,
            # Forking a process that has threads can hang; a fork server has none.
            "mp_context": "forkserver",
        }
    return make_plugin(name, arguments | plugin_arguments(settings.nipype_plugin_file))


def _weights(wf, plans: Sequence[RunPlan]) -> dict[str, tuple[str, str, float]]:
    """Return (run, step, weight) of every node that is a step of the progress, by its full name."""
    from .progress import DENOISE, GENERATE, STEPS

    by_node = {plan.node_name: plan for plan in plans}
    weights = {}
    for name in wf.list_node_names():
        run, _, node = name.partition(".")
        plan, node = by_node[run], node.split(".")[-1]
        if node == "denoise" and plan.denoised_by:
            title, seconds = DENOISE[0].format(plan.denoised_by.spec.title), DENOISE[1]
        elif node.startswith("generate_"):
            title, seconds = GENERATE[0].format(node.removeprefix("generate_")), GENERATE[1]
        elif node in STEPS:
            title, seconds = STEPS[node]
        else:
            continue
        # Ten million float32 values are 0.04 GB.
        weights[f"participant.{name}"] = (plan.run.name, title, seconds * plan.volume_gb / 0.04)
    return weights
