"""The participant level: one graph per run, all of them executed together, failures kept apart."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bids.names import TENSOR_MAPS
from ..bids.sidecars import bids_uri, image_sidecar, versions
from ..methods import REGISTRY
from ..qc.report import RunError
from .failures import IN_TEMPLATE, SERIES, find_failures, owner, without_failed
from .plan import Output, RunPlan
from .settings import Settings, SettingsError, name_of_call


@dataclass(frozen=True)
class Resources:
    """What the whole call may use."""

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
        Of all runs, faulty ones included.
    settings
        Of this call.
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
            "poll_sleep_duration": 0.1,  # a round starts no more steps than there are processors, cached ones too
            "stop_on_first_crash": settings.stop_on_first_crash,
            "hash_method": "timestamp",
            "create_report": False,
            "check_version": False,
            "remove_unnecessary_outputs": False,
        },
        # A failed run is told by its own message; the traceback is in the crash file.
        "logging": {"workflow_level": ("CRITICAL", "INFO", "DEBUG")[min(settings.verbose, 2)]},
    })  # fmt: skip
    logging.update_logging(config)

    sound = [plan for plan in plans if not plan.fault]
    _forget_lost(sound, cache_folder(settings))
    sound = _run(sound, settings, template, links, resources, logs)
    built = {plan.run.name: plan for plan in sound}
    plans = [built.get(plan.run.name, plan) for plan in plans]
    sound = [plan for plan in sound if not plan.fault]
    failures = find_failures(logs, sound)
    nodes = {plan.run.name: [f.node for f in failures if f.run == plan.run.name] for plan in sound}
    rest = [smaller for plan in sound if (smaller := without_failed(plan, nodes[plan.run.name]))]
    if rest and not settings.stop_on_first_crash:
        print("figures and metrics of what did not fail", flush=True)
        _run(rest, settings, template, links, resources, logs)
        failures = find_failures(logs, sound)
    _keep_traces(logs, plans)
    first = {failure.run: failure.error for failure in reversed(failures)}
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
    gc.freeze()  # MultiProc collects garbage in every round: let it pass over all that is here to stay
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
    if plan.fault:
        return plan
    try:
        wf.add_nodes([init_run_wf(plan, **common)])
    except Exception as error:  # whatever is odd about one run must not be the end of the others
        return plan.broken_by(error)
    return plan


def _keep_traces(logs: Path, plans: Sequence[RunPlan]) -> None:
    from ..spatial.io import write_atomically

    for plan in plans:
        if plan.trace:
            path = logs / f"crash-{plan.node_name}.txt"
            write_atomically(path, lambda part, plan=plan: Path(part).write_text(plan.trace, encoding="utf-8"))


def cache_folder(settings: Settings) -> Path:
    """Return the folder of intermediate results: apart for other software and for `--deterministic`.

    Nipype compares inputs, not code: after an update it would hand out what the old code made.
    """
    told = json.dumps([versions(), settings.deterministic], sort_keys=True)
    return settings.work / hashlib.sha256(told.encode()).hexdigest()[:12]


def _forget_lost(plans: Sequence[RunPlan], base: Path) -> None:
    """Let results be stored again that are gone from the output folder, or are now another call's.

    For Nipype their sinks are done: it looks at what went in, not at what became of it.
    """
    from ..interfaces.sink import intact

    for plan in plans:
        for sink in (base / "participant" / plan.node_name).glob("sink_*"):
            if not intact(sink):
                shutil.rmtree(sink, ignore_errors=True)


def unfinished(plans: Sequence[RunPlan], out_dir: Path) -> dict[str, RunError]:
    """Return the runs whose plan has a fault, whose promised files are not all there, or that refused a method."""
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


def init_run_wf(plan: RunPlan, *, template: str, links: Mapping[str, Path], threads: int):
    """Return the graph of one run, from the acquired series to stored results.

    Parameters
    ----------
    plan
        Of the run.
    template
        TemplateFlow name of the template.
    links
        Names and roots of the input datasets, for BIDS URIs.
    threads
        Of one step.
    """
    from nipype.pipeline import engine as pe

    from .normalize import normalize_node
    from .preprocess import init_preprocess_wf
    from .report import add_report_nodes

    wf = pe.Workflow(name=plan.node_name)
    preprocess = init_preprocess_wf(plan, threads=threads)
    pre = {name: (preprocess, f"output.{name}") for name in preprocess.get_node("output").inputs.get()}
    ports = {
        ("preproc",): pre["out_file"],
        ("preproc_bval",): pre["out_bval"],
        ("preproc_bvec",): pre["out_bvec"],
        ("dwiref",): pre["reference"],
        ("mask",): pre["mask"],
        ("confounds",): pre["confounds"],
    }
    series = {"preproc": [pre[f"out_{part}"] for part in ("file", "bval", "bvec")]}
    records = {"series": pre["notes"]}
    if plan.does("denoise") and plan.settings.denoiser in REGISTRY:  # what a method denoised was not measured so
        records["preproc"] = pre["denoise_record"]
    for method in plan.settings.methods:
        node, made = _add_method(wf, plan, method, pre, threads, records.get("preproc"))
        records[method] = (node, "out_sidecar")
        ports |= made
        if ("generated", method) in made:
            series[method] = [made[(key, method)] for key in ("generated", "generated_bval", "generated_bvec")]
    masks = dict.fromkeys(("preproc", *plan.settings.methods), pre["mask"]) | _finer_masks(wf, plan, pre, ports)
    for source in _by_source(plan, "map"):
        if source in series:
            node = _maps_node(wf, plan, source, series[source], masks[source], threads)
            for param in TENSOR_MAPS:
                ports[("map", source, param)] = (node, param)
    for source, outputs in _by_source(plan, "rish_map").items():
        node = _rish_node(wf, plan, source, series[source], masks[source], threads)
        ports |= {_port_key(output): (node, output.fields["param"]) for output in outputs}
    normalize = None
    if plan.does("normalize"):
        node = normalize_node(plan, threads=threads)
        wf.connect([
            (preprocess, node, [("output.reference", "in_reference"), ("output.mask", "in_mask")]),
        ])  # fmt: skip
        if ("map", "preproc", "fa") in ports:
            wf.connect(*ports[("map", "preproc", "fa")], node, "in_fa")
        for key in ("to_t1w", "from_t1w", "to_template", "from_template"):
            ports[(key,)] = (node, f"out_{key}")
        normalize, records["normalize"] = node, (node, "out_report")
        _feed_methods(wf, plan, node, template)
        _add_to_template(wf, plan, ports, masks, node)
    shown = ports | _on_scans_grid(wf, plan, pre, ports, masks)
    ports[("metrics",)] = add_report_nodes(wf, plan, pre, shown, records, normalize, template)
    for group, outputs in _groups(plan.outputs).items():
        source = group.removeprefix(IN_TEMPLATE)
        record = records.get(source) or ports.get(("template_record", source.removesuffix(SERIES)))
        _add_sink(wf, plan, group, outputs, ports, record, links)
    return wf


def _finer_masks(wf, plan: RunPlan, pre: Mapping, ports: dict) -> dict:
    """Add the node that brings the brain mask to the finer grid, and its port; return the mask by method."""
    from nipype.pipeline import engine as pe

    from ..interfaces.finer import FinerMask

    for output in plan.outputs:
        if output.key == "mask" and "voxel_mm" in output.fields:
            node = pe.Node(FinerMask(voxel_mm=plan.settings.rishldm_voxel_size), name="finer_mask", mem_gb=0.5)
            wf.connect(*pre["mask"], node, "in_mask")
            ports[_port_key(output)] = (node, "out_mask")
            return {name: (node, "out_mask") for name in plan.settings.methods if plan.edge_mm(name) is not None}
    return {}


def _on_scans_grid(wf, plan: RunPlan, pre: Mapping, ports: Mapping, masks: Mapping) -> dict:
    """Add the nodes that bring what is on a finer grid to the scan's, where it is compared; return their ports."""
    from nipype.interfaces.utility import Merge, Select
    from nipype.pipeline import engine as pe

    from ..interfaces.finer import OntoScan
    from .report import COMPARED

    there = {}
    for method in (name for name in plan.settings.methods if plan.edge_mm(name) is not None):
        node = pe.Node(OntoScan(), name=f"onto_{method}", mem_gb=0.5 + plan.volume_gb + 2 * plan.made_gb(method))
        wf.connect(*masks[method], node, "in_mask")
        wf.connect(*pre["reference"], node, "reference")
        promised = {_port_key(output) for output in plan.outputs}
        maps = [("spread", method), *(("map", method, param) for param in COMPARED)]
        maps += [key for key in promised if key[:2] == ("rish_map", method)]
        made = {"series": [("generated", method)], "maps": [key for key in maps if key in promised]}
        for kind, keys in made.items():
            if not keys:
                continue
            files = pe.Node(Merge(len(keys)), name=f"list_onto_{method}_{kind}", run_without_submitting=True)
            wf.connect(files, "out", node, f"in_{kind}")
            for number, key in enumerate(keys):
                wf.connect(*ports[key], files, f"in{number + 1}")
                chosen = pe.Node(Select(index=[number]), name="_".join(("onto", *key)), run_without_submitting=True)
                wf.connect(node, f"out_{kind}", chosen, "inlist")
                there[key] = (chosen, "out")
    return there


def _feed_methods(wf, plan: RunPlan, normalize, template: str) -> None:
    """Tell the methods that work in the template's space where it is."""
    from ..methods import load

    ports = (("out_to_template", "to_template"), ("out_from_template", "from_template"),
             ("out_brain_template", "template_brain"))  # fmt: skip
    for method in plan.settings.methods:
        if load(method).spec.in_template:
            node = wf.get_node(f"generate_{method}")
            wf.connect([(normalize, node, list(ports))])
            node.inputs.template_name = template


def _add_to_template(wf, plan: RunPlan, ports: dict, masks: Mapping, normalize) -> None:
    """Add the nodes that resample maps onto the template's grid, one for each source, and their ports."""
    wanted: dict[str, list[str]] = {}
    for output in plan.outputs:
        if output.key in ("template_map", "template_mask"):
            params = wanted.setdefault(output.fields.get("source", "preproc"), [])
            params += [output.fields["param"]] if "param" in output.fields else []
    if not wanted:
        return
    from nipype.interfaces.utility import Merge, Select
    from nipype.pipeline import engine as pe

    from ..interfaces.to_template import ToTemplate

    for source, params in wanted.items():
        node = pe.Node(ToTemplate(), name=f"template_{source}", mem_gb=1.0)
        wf.connect(*masks[source], node, "in_mask")
        wf.connect([(normalize, node, [("out_to_template", "to_template"), ("out_brain_template", "template_brain")])])
        ports[("template_mask",)] = ports.get(("template_mask",), (node, "out_mask"))
        if not params:
            node.inputs.in_files = []
            continue
        files = pe.Node(Merge(len(params)), name=f"list_template_{source}", run_without_submitting=True)
        wf.connect(files, "out", node, "in_files")
        for number, param in enumerate(params):
            wf.connect(*ports[("map", source, param)], files, f"in{number + 1}")
            chosen = pe.Node(Select(index=[number]), name=f"pick_{source}_{param}", run_without_submitting=True)
            wf.connect(node, "out_files", chosen, "inlist")
            ports[("template_map", source, param)] = (chosen, "out")


def _add_method(wf, plan: RunPlan, method: str, pre: Mapping, threads: int, record):
    """Add a method's node; return it and, by output, the ports of its series or maps and of its samples' spread.

    `record` is the port that tells how a method denoised the series, or None.
    """
    from ..methods import load
    from .generate import generate_node

    node, spec = generate_node(plan, method, threads=threads), load(method).spec
    stage = "raw" if spec.on_acquired else "out"
    mask = pre["raw_mask"] if spec.on_acquired else pre["mask"]
    _connect_series(wf, [pre[f"{stage}_{part}"] for part in ("file", "bval", "bvec")], mask, node)
    if record and not spec.on_acquired:
        wf.connect(*record, node, "in_record")
    ports = {("map", method, param): (node, f"out_{param}") for param in spec.maps}
    ports |= {("map_spread", method, param): (node, f"out_{param}_std") for param in spec.maps}
    if not spec.gives_series:
        return node, ports
    ports[("left_out", method)] = (node, "out_left_out")
    if spec.in_template:
        node.inputs.also_in_template = "template" in plan.settings.output_spaces
        ports[("template_record", method)] = (node, "out_template_sidecar")
        ports |= {(f"template_generated{end}", method): (node, f"out_template_{name}")
                  for end, name in (("", "file"), ("_bval", "bval"), ("_bvec", "bvec"))}  # fmt: skip
    for key, part in (("generated", "file"), ("spread", "std")):
        found = [(node, f"out_{name}") for name in (part, "bval", "bvec")]
        if spec.on_acquired and (key == "generated" or plan.settings.n_samples > 1):
            found = _replayed(wf, plan, method, part, found, pre, threads)
        ports |= {(f"{key}{end}", method): port for end, port in zip(("", "_bval", "_bvec"), found, strict=True)}
    return node, ports


def _replayed(wf, plan: RunPlan, method: str, part: str, made, pre: Mapping, threads: int):
    """Return the ports of what a method made of the acquired series, after the steps that the series goes through."""
    from .preprocess import init_replay_wf

    replay = init_replay_wf(plan, name=f"replay_{method}_{part}", threads=threads, gibbs=part == "file")
    if replay is None:
        return made
    for name, port in zip(("file", "bval", "bvec"), made, strict=True):
        wf.connect(*port, replay, f"input.in_{name}")
    for step, name in (("motion", "transforms"), ("susceptibility", "field"), ("bias", "bias_field")):
        if plan.does(step):
            wf.connect(*pre[name], replay, f"input.{name}")
    return [(replay, f"output.out_{name}") for name in ("file", "bval", "bvec")]


def _connect_series(wf, series, mask, node) -> None:
    for part, port in zip(("file", "bval", "bvec"), series, strict=True):
        wf.connect(*port, node, f"in_{part}")
    wf.connect(*mask, node, "in_mask")


def _maps_node(wf, plan: RunPlan, source: str, series, mask, threads: int):
    from nipype.pipeline import engine as pe

    from ..interfaces.maps import TensorMaps
    from .made import tensor_volumes

    volumes = None if source == "preproc" else tensor_volumes(plan.settings, source, plan.gradients)
    node = pe.Node(
        TensorMaps(b0_threshold=plan.settings.b0_threshold, volumes=volumes, num_threads=threads),
        name=f"maps_{source}",
        mem_gb=1.0 + 2 * _series_gb(plan, source),
        n_procs=threads,
    )
    _connect_series(wf, series, mask, node)
    return node


def _rish_node(wf, plan: RunPlan, source: str, series, mask, threads: int):
    from nipype.pipeline import engine as pe

    from ..interfaces.rish_maps import RishMaps

    node = pe.Node(
        RishMaps(b0_threshold=plan.settings.b0_threshold, num_threads=threads),
        name=f"rish_{source}",
        mem_gb=1.0 + 3 * _series_gb(plan, source),
        n_procs=threads,
    )
    _connect_series(wf, series, mask, node)
    return node


def _by_source(plan: RunPlan, key: str) -> dict[str, list[Output]]:
    """Return the outputs of this key by what they come from."""
    found: dict[str, list[Output]] = {}
    for output in plan.outputs:
        if output.key == key:
            found.setdefault(output.fields["source"], []).append(output)
    return found


def _series_gb(plan: RunPlan, source: str) -> float:
    """Return the size of the series of a method, or of another source, in memory as float32, GB."""
    return (plan.made_gb(source) if source in plan.settings.methods else 0.0) or plan.volume_gb


def _port_key(output: Output) -> tuple[str, ...]:
    owner = output.fields.get("source") or output.fields.get("method") or output.fields.get("voxel_mm")
    return tuple(part for part in (output.key, owner, output.fields.get("param")) if part)


def _groups(outputs: Sequence[Output]) -> dict[str, list[Output]]:
    """Sort outputs by what made them: one sink each, so that a failing step loses nothing but its own."""
    groups: dict[str, list[Output]] = {}
    for output in outputs:
        groups.setdefault(owner(output), []).append(output)
    return groups


def _add_sink(wf, plan: RunPlan, group: str, outputs, ports, record, links) -> None:
    from nipype.interfaces.utility import Merge
    from nipype.pipeline import engine as pe

    from ..interfaces.sink import Sink
    from ..methods import load

    raw = [bids_uri(plan.run.image, links)]
    own = {o.fields.get("method", "preproc"): f"bids::{o.path.as_posix()}" for o in plan.outputs
           if o.key in ("preproc", "generated")}  # fmt: skip
    files = pe.Node(Merge(len(outputs)), name=f"collect_{group}", run_without_submitting=True)
    sink = pe.Node(Sink(out_dir=str(plan.settings.out_dir.resolve())), name=f"sink_{group}",
                   mem_gb=0.3 + 2 * _series_gb(plan, group))  # fmt: skip
    sidecars = []
    for number, output in enumerate(outputs, 1):
        wf.connect(*ports[_port_key(output)], files, f"in{number}")
        source = own.get(output.fields.get("source", ""))
        from_raw = output.key == "preproc" or (group in plan.settings.methods and load(group).spec.on_acquired)
        sources = [source] if source else raw if from_raw else [own["preproc"]]
        is_data = output.key != "metrics"
        sidecars.append(image_sidecar(output.key, sources, **output.fields) if is_data else {})
    sink.inputs.targets = [output.path.as_posix() for output in outputs]
    sink.inputs.sidecars = sidecars
    wf.connect(files, "out", sink, "in_files")
    if record:
        wf.connect(*record, sink, "in_record")


def _plugin(settings: Settings, resources: Resources, weights: Mapping[str, tuple[str, str, float]]):
    """Return the execution plugin; the arguments of the plugin file go before those of the command line."""
    from .plugin import make_plugin
    from .progress import Progress

    name, arguments = settings.nipype_plugin or "MultiProc", {"status_callback": Progress(weights)}
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
    return make_plugin(name, arguments | _plugin_file(settings.nipype_plugin_file))


def _plugin_file(path: Path | None) -> dict:
    if path is None:
        return {}
    try:
        text = path.read_text()
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--nipype-plugin-file {path}: {error}") from None
    return document.get("plugin_args", document)


def _weights(wf, plans: Sequence[RunPlan]) -> dict[str, tuple[str, str, float]]:
    """Return (run, step, weight) of every node that a person would call a step, by its full name."""
    from .progress import GENERATE, STEPS

    by_node = {plan.node_name: plan for plan in plans}
    weights = {}
    for name in wf.list_node_names():
        run, _, node = name.partition(".")
        plan, node = by_node[run], node.split(".")[-1]
        if node.startswith("generate_"):
            title, seconds = GENERATE[0].format(node.removeprefix("generate_")), GENERATE[1]
        elif node in STEPS:
            title, seconds = STEPS[node]
        else:
            continue
        # Ten million float32 values are 0.04 GB.
        weights[f"participant.{name}"] = (plan.run.name, title, seconds * plan.volume_gb / 0.04)
    return weights
