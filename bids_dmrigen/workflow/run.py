"""The graph of one run, built from its plan: from the acquired series to stored results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nipype.interfaces.utility import Merge, Select
from nipype.pipeline import engine as pe

from ..bids.names import TENSOR_MAPS
from ..bids.sidecars import bids_uri, image_sidecar
from .earlier import PREPROCESSING, stored_maps
from .failures import IN_TEMPLATE, SERIES, owner
from .generate import generate_node
from .normalize import normalize_node
from .plan import Output, PlannedMethod, RunPlan
from .preprocess import init_preprocess_wf, init_replay_wf
from .report import COMPARED, add_report_nodes

FILES = ("file", "bval", "bvec")  # of a series
KEYS = ("", "_bval", "_bvec")  # endings of the keys in the table of names, for these files
Port = tuple[pe.Node | pe.Workflow, str]


def init_run_wf(plan: RunPlan, *, template: str, links: Mapping[str, Path], threads: int) -> pe.Workflow:
    """Return the graph of one run, from the acquired series to stored results.

    Parameters
    ----------
    plan
        Plan of the run.
    template
        TemplateFlow name of the template.
    links
        Names and roots of the input datasets, for BIDS URIs.
    threads
        Number of CPU threads of a step.
    """
    graph = RunGraph(plan, template, threads)
    graph.add_methods()
    graph.add_fits()
    graph.add_uncertainty()
    graph.add_normalization()
    graph.add_report()
    graph.add_sinks(links)
    return graph.wf


class RunGraph:
    """The graph of a run while it is built.

    Attributes
    ----------
    ports
        Key of an output (`port_key`) -> its port.
    records
        Source of results -> the port of the record of how they were generated.
    series
        Source -> the ports of its series' image, b-values and directions.
    masks
        Source -> the port of the brain mask on its grid.
    """

    def __init__(self, plan: RunPlan, template: str, threads: int):
        self.plan, self.template, self.threads = plan, template, threads
        self.wf = pe.Workflow(name=plan.node_name)
        preprocess = init_preprocess_wf(plan, threads=threads)
        self.pre = {name: (preprocess, f"output.{name}") for name in preprocess.get_node("output").inputs.get()}
        self.ports: dict[tuple[str, ...], Port] = {
            (key,): self.pre[name]
            for key, name in (
                *((f"preproc{end}", f"out_{part}") for end, part in zip(KEYS, FILES, strict=True)),
                ("dwiref", "reference"),
                ("mask", "mask"),
                ("coverage", "coverage"),
                ("confounds", "confounds"),
            )
        }
        self.series = {"preproc": [self.pre[f"out_{part}"] for part in FILES]}
        self.masks = {"preproc": self.pre["mask"]}
        self.records = {"series": self.pre["notes"]}
        self.normalize: pe.Node | None = None
        if plan.does("denoise") and plan.denoised_by:  # the denoised series is not purely measured
            self.records["preproc"] = self.pre["denoise_record"]

    def add_methods(self) -> None:
        """Add a node for each method, and the brain mask on their grids."""
        from ..interfaces.finer import FinerMask

        for method in self.plan.methods:
            self.masks[method.name] = self.pre["mask"]
            self._add_method(method)
        finer = [method for method in self.plan.methods if method.grid]
        if finer:
            node = pe.Node(FinerMask(voxel_mm=finer[0].plan.edge_mm), name="finer_mask", mem_gb=0.5)
            self.wf.connect(*self.pre["mask"], node, "in_mask")
            self.ports[("mask", finer[0].grid["voxel_mm"])] = (node, "out_mask")
            self.masks |= {method.name: (node, "out_mask") for method in finer}

    def _add_method(self, method: PlannedMethod) -> None:
        """Add a method's node, and the ports of its series or maps and of its samples."""
        node, spec, name = generate_node(self.plan, method, threads=self.threads), method.spec, method.name
        stage, mask = ("raw", "raw_mask") if spec.on_acquired else ("out", "mask")
        self._connect_series([self.pre[f"{stage}_{part}"] for part in FILES], self.pre[mask], node)
        if "preproc" in self.records and not spec.on_acquired:
            self.wf.connect(*self.records["preproc"], node, "in_record")
        self.records[name] = (node, "out_sidecar")
        for param in spec.maps_of(self.plan.settings.size):
            self.ports[("map", name, param)] = (node, f"out_{param}")
        for number, extra in enumerate(spec.extra_maps):
            self.ports[("extra_map", name, extra.param)] = self._picked(
                node, "out_extra", number, f"{name}_{extra.param}"
            )
        self._add_samples(method, node)
        if not spec.gives_series:
            return
        self.ports[("left_out", name)] = (node, "out_left_out")
        if spec.in_template:
            node.inputs.also_in_template = "template" in self.plan.settings.output_spaces
            self.ports[("template_record", name)] = (node, "out_template_sidecar")
            for end, part in zip(KEYS, FILES, strict=True):
                self.ports[(f"template_generated{end}", name)] = (node, f"out_template_{part}")
        ports: list[Port] = [(node, f"out_{part}") for part in FILES]
        if spec.on_acquired:
            ports = self._replayed(f"{method.name}_file", ports)
        self.ports |= {(f"generated{end}", name): port for end, port in zip(KEYS, ports, strict=True)}
        self.series[name] = [self.ports[(f"generated{end}", name)] for end in KEYS]

    def _add_samples(self, method: PlannedMethod, node: pe.Node) -> None:
        """Add the ports of a method's samples, where they are stored."""
        for place, number in enumerate(self.plan.samples_of(method)):
            sample = self._picked(node, "out_samples", place, f"{method.name}_sample{number}")
            if not method.spec.gives_series:
                self.ports[("map_sample", method.name, number)] = sample
                continue
            ports = [sample, *((node, f"out_{part}") for part in FILES[1:])]
            if method.spec.on_acquired:
                ports = self._replayed(f"{method.name}_sample{number}", ports)
            for end, port in zip(KEYS, ports, strict=True):
                self.ports[(f"sample{end}", method.name, number)] = port

    def _replayed(self, name: str, ports: list[Port]) -> list[Port]:
        """Return the ports of a series generated from the acquired one, after the preprocessing steps of the run."""
        plan = self.plan
        replay = init_replay_wf(plan, name=f"replay_{name}", threads=self.threads)
        if replay is None:
            return ports
        for name, port in zip(FILES, ports, strict=True):
            self.wf.connect(*port, replay, f"input.in_{name}")
        for step, name in (("motion", "transforms"), ("susceptibility", "field"), ("bias", "bias_field")):
            if plan.does(step):
                self.wf.connect(*self.pre[name], replay, f"input.{name}")
        return [(replay, f"output.out_{name}") for name in FILES]

    def add_fits(self) -> None:
        """Add the nodes that fit models to the preprocessed and the generated series."""
        from ..interfaces.maps import TensorMaps
        from ..interfaces.rish_maps import RishMaps

        fitted = {method.name: method.plan.fitted for method in self.plan.methods}
        common = {"b0_threshold": self.plan.settings.b0_threshold, "num_threads": self.threads}
        for source in self.plan.sources("map"):
            if source in self.series:
                interface = TensorMaps(volumes=fitted.get(source), **common)
                node = self._add_fit(interface, f"maps_{source}", source, series_in_memory=2)
                self.ports |= {("map", source, param): (node, param) for param in TENSOR_MAPS}
        for source, outputs in self.plan.sources("rish_map").items():
            node = self._add_fit(RishMaps(**common), f"features_{source}", source, series_in_memory=3)
            self.ports |= {port_key(output): (node, output.fields["param"]) for output in outputs}

    def add_uncertainty(self) -> None:
        """Add the nodes that make quantiles from standard errors and maps, one for each method that draws samples."""
        from ..interfaces.uncertainty import Quantiles, UndistortMaps

        plan = self.plan
        for method in plan.methods:
            params, name = plan.uncertain(method), method.name
            if not params:
                continue
            generate = self.wf.get_node(f"generate_{name}")
            errors = self._listed(f"list_errors_{name}", ((generate, f"out_{param}_std") for param in params))
            if method.spec.on_acquired and plan.does("susceptibility"):
                undistort = UndistortMaps(phase_encoding_direction=plan.run.phase_encoding)
                node = pe.Node(undistort, name=f"undistort_{name}", mem_gb=0.5)
                self.wf.connect(*errors, node, "in_files")
                self.wf.connect(*self.pre["field"], node, "in_field")
                errors = (node, "out_files")
            node = pe.Node(Quantiles(names=list(params)), name=f"quantiles_{name}", mem_gb=0.5)
            self.wf.connect(*errors, node, "in_errors")
            maps = self._listed(f"list_best_{name}", (self.ports[("map", name, param)] for param in params))
            self.wf.connect(*maps, node, "in_maps")
            for number, param in enumerate(params):
                for key, output in (("map_std", "out_errors"), ("map_low", "out_low"), ("map_high", "out_high")):
                    self.ports[(key, name, param)] = self._picked(node, output, number, f"{name}_{key}_{param}")

    def _add_fit(self, interface, name: str, source: str, series_in_memory: int) -> pe.Node:
        memory = 1.0 + series_in_memory * self.plan.series_gb(source)
        node = pe.Node(interface, name=name, mem_gb=memory, n_procs=self.threads)
        self._connect_series(self.series[source], self.masks[source], node)
        return node

    def add_normalization(self) -> None:
        """Add the registration, connect it to methods in the template's space, and add the maps in that space."""
        if not self.plan.does("normalize"):
            return
        node = self.normalize = normalize_node(self.plan, threads=self.threads)
        self.wf.connect(*self.pre["reference"], node, "in_reference")
        self.wf.connect(*self.pre["mask"], node, "in_mask")
        if ("map", "preproc", "fa") in self.ports:
            self.wf.connect(*self.ports[("map", "preproc", "fa")], node, "in_fa")
        for key in ("to_t1w", "from_t1w", "to_template", "from_template"):
            self.ports[(key,)] = (node, f"out_{key}")
        self.records["normalize"] = (node, "out_report")
        places = [("out_to_template", "to_template"), ("out_from_template", "from_template"),
                  ("out_brain_template", "template_brain")]  # fmt: skip
        for method in self.plan.methods:
            if method.spec.in_template:
                generate = self.wf.get_node(f"generate_{method.name}")
                self.wf.connect([(node, generate, places)])
                generate.inputs.template_name = self.template
        self._add_to_template(node)

    def _add_to_template(self, normalize: pe.Node) -> None:
        """Add the nodes that resample maps onto the template's grid, one for each source, and their ports."""
        from ..interfaces.to_template import ToTemplate

        wanted: dict[str, list[str]] = {}
        for output in self.plan.outputs:
            if output.key in ("template_map", "template_mask"):
                params = wanted.setdefault(output.fields.get("source", "preproc"), [])
                params += [output.fields["param"]] if "param" in output.fields else []
        for source, params in wanted.items():
            node = pe.Node(ToTemplate(), name=f"template_{source}", mem_gb=1.0)
            self.wf.connect(*self.masks[source], node, "in_mask")
            self.wf.connect([
                (normalize, node, [("out_to_template", "to_template"), ("out_brain_template", "template_brain")])
            ])  # fmt: skip
            self.ports.setdefault(("template_mask",), (node, "out_mask"))
            if not params:
                node.inputs.in_files = []
                continue
            files = self._listed(f"list_template_{source}", (self.ports[("map", source, param)] for param in params))
            self.wf.connect(*files, node, "in_files")
            for number, param in enumerate(params):
                self.ports[("template_map", source, param)] = self._picked(
                    node, "out_files", number, f"{source}_{param}"
                )

    def add_report(self) -> None:
        """Add the figures and metrics, which compare everything on the scan's grid."""
        compared = {**self.ports, **self._on_scans_grid(), **self._kept_maps()}
        self.ports[("metrics",)] = add_report_nodes(
            self.wf, self.plan, self.pre, compared, self.records, self.normalize, self.template
        )

    def _on_scans_grid(self) -> dict[tuple[str, ...], Port]:
        """Add the nodes that resample results on a finer grid to the scan's grid for comparison; return their ports."""
        from ..interfaces.finer import OntoScan

        promised, ports = {port_key(output) for output in self.plan.outputs}, {}
        for method in (method for method in self.plan.methods if method.grid):
            name = method.name
            node = pe.Node(OntoScan(), name=f"onto_{name}", mem_gb=0.5 + self.plan.volume_gb + 2 * method.finer_gb)
            self.wf.connect(*self.masks[name], node, "in_mask")
            self.wf.connect(*self.pre["reference"], node, "reference")
            maps: list[tuple[str, ...]] = [("map", name, param) for param in COMPARED]
            maps += [key for key in promised if key[:2] == ("rish_map", name)]
            for kind, keys in (("series", [("generated", name)]), ("maps", [key for key in maps if key in promised])):
                if not keys:
                    continue
                files = self._listed(f"list_onto_{name}_{kind}", (self.ports[key] for key in keys))
                self.wf.connect(*files, node, f"in_{kind}")
                for number, key in enumerate(keys):
                    ports[key] = self._picked(node, f"out_{kind}", number, "_".join(("onto", *key)), prefix="")
        return ports

    def _kept_maps(self) -> dict[tuple[str, ...], Port | Path]:
        """Return the stored maps of methods of earlier calls; those on a finer grid are brought to the scan's."""
        from ..interfaces.finer import OntoScan

        plan, kept = self.plan, dict[tuple[str, ...], Port | Path]()
        for method in plan.kept:
            maps, mask = stored_maps(plan.settings.out_dir.resolve(), plan.run.entities, method, COMPARED)
            if mask is None:
                kept |= {("map", method, param): path for param, path in maps.items()}
                continue
            resample = OntoScan(in_maps=[str(path) for path in maps.values()], in_mask=str(mask))
            node = pe.Node(resample, name=f"onto_{method}", mem_gb=0.5 + plan.volume_gb)
            self.wf.connect(*self.pre["reference"], node, "reference")
            for number, param in enumerate(maps):
                kept[("map", method, param)] = self._picked(
                    node, "out_maps", number, f"onto_map_{method}_{param}", prefix=""
                )
        return kept

    def add_sinks(self, links: Mapping[str, Path]) -> None:
        """Add a sink for each part of the graph, so that a failed step loses only its own results."""
        groups: dict[str, list[Output]] = {}
        for output in self.plan.outputs:
            groups.setdefault(owner(output), []).append(output)
        for group, outputs in groups.items():
            source = group.removeprefix(IN_TEMPLATE)
            record = self.records.get(source) or self.ports.get(("template_record", source.removesuffix(SERIES)))
            self._add_sink(group, outputs, record, links)

    def _add_sink(self, group: str, outputs: Sequence[Output], record: Port | None, links: Mapping[str, Path]) -> None:
        from ..interfaces.sink import Sink

        plan = self.plan
        raw = [bids_uri(plan.run.image, links)]
        from_raw = {method.name for method in plan.methods if method.spec.on_acquired}
        series_uris = {o.fields.get("method", "preproc"): f"bids::{o.path.as_posix()}" for o in plan.outputs
               if o.key in ("preproc", "generated")}  # fmt: skip
        sink = pe.Node(Sink(out_dir=str(plan.settings.out_dir.resolve())), name=f"sink_{group}",
                       mem_gb=0.3 + 2 * plan.series_gb(group))  # fmt: skip
        sidecars = []
        for output in outputs:
            source = series_uris.get(output.fields.get("source", ""))
            acquired = output.key == "preproc" or group in from_raw
            sources = [source] if source else raw if acquired else [series_uris["preproc"]]
            sidecars.append({} if output.key == "metrics" else image_sidecar(output.key, sources, **output.fields))
            if output.key == "preproc":
                sidecars[-1][PREPROCESSING] = dict(plan.preprocessing)
        sink.inputs.targets = [output.path.as_posix() for output in outputs]
        sink.inputs.sidecars = sidecars
        files = self._listed(f"collect_{group}", (self.ports[port_key(output)] for output in outputs))
        self.wf.connect(*files, sink, "in_files")
        if record:
            self.wf.connect(*record, sink, "in_record")

    def _connect_series(self, series: Sequence[Port], mask: Port, node: pe.Node) -> None:
        for part, port in zip(FILES, series, strict=True):
            self.wf.connect(*port, node, f"in_{part}")
        self.wf.connect(*mask, node, "in_mask")

    def _listed(self, name: str, ports: Iterable[Port]) -> Port:
        """Return a port that gives the files of several ports as a list."""
        ports = list(ports)
        node = pe.Node(Merge(len(ports)), name=name, run_without_submitting=True)
        for number, port in enumerate(ports, 1):
            self.wf.connect(*port, node, f"in{number}")
        return node, "out"

    def _picked(self, node: pe.Node, output: str, number: int, name: str, prefix: str = "pick_") -> Port:
        """Return a port that gives one file of a list."""
        chosen = pe.Node(Select(index=[number]), name=f"{prefix}{name}", run_without_submitting=True)
        self.wf.connect(node, output, chosen, "inlist")
        return chosen, "out"


def port_key(output: Output) -> tuple[str, ...]:
    """Return the key of an output's port: its key in the table of names, its source, its map, its number."""
    fields = output.fields
    source = fields.get("source") or fields.get("method") or fields.get("voxel_mm")
    return tuple(part for part in (output.key, source, fields.get("param"), fields.get("number")) if part)
