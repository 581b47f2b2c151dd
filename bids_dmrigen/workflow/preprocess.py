"""The preprocessing graph of one run: the steps of its plan, in the order of the physics, with one interpolation."""

from __future__ import annotations

from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from ..bids.run import AXES
from .generate import generate_node
from .plan import FILE_STATES, RunPlan

SERIES = ("file", "bval", "bvec")


def init_preprocess_wf(plan: RunPlan, *, threads: int) -> pe.Workflow:
    """Return the graph from the acquired series to the preprocessed one.

    Parameters
    ----------
    plan
        Plan of the run; steps that it leaves out are absent from the graph.
    threads
        Number of CPU threads of a step.

    Outputs
    -------
    out_file, out_bval, out_bvec
        Preprocessed series on the acquired grid, with turned b-vectors.
    raw_file, raw_bval, raw_bvec
        The acquired series, conformed.
    reference, mask, coverage, sigma, notes
        Mean b0, brain mask, its part where every volume has data, noise standard deviation in scanner units, notes of
        the steps.
    raw_mask, denoise_record
        Brain mask of the acquired series, where a method needs it; record of a denoising method, where one was used.
    confounds, transforms, field, bias_field
        Estimates of the steps that are done.
    raw_b0, corrected_b0
        b0 images before and after susceptibility correction, where it is done.
    raw_opposite, corrected_opposite
        The same of opposite phase encoding, where such an image was used.
    field_magnitude
        Magnitude image of the field map on the acquired grid, where one was used.
    """
    wf = pe.Workflow(name="preprocess")
    output = pe.Node(niu.IdentityInterface(OUTPUTS), name="output")
    memory = 0.5 + 4 * plan.volume_gb

    conform = _conform_node(plan, memory)
    series = _series(conform)
    wf.connect([(conform, output, [("out_file", "raw_file"), ("out_bval", "raw_bval"), ("out_bvec", "raw_bvec")])])

    raw_mask = None
    if plan.denoised_by or any(method.spec.on_acquired for method in plan.methods):
        raw_mask = _add_mask(wf, plan, series, threads, "raw_mask")
        wf.connect(*raw_mask, output, "raw_mask")
    series = _add_denoising(wf, plan, series, raw_mask, output, threads)
    if plan.does("gibbs"):
        series = _add_gibbs(wf, plan, series, threads)
    series = _add_alignment(wf, plan, series, output, threads, memory)

    reference = _add_reference(wf, plan, series, memory, "reference")
    mask = _add_mask(wf, plan, series, threads, "mask")
    if plan.does("bias"):
        series = _add_bias(wf, plan, series, mask, output, threads)
        mask = _add_mask(wf, plan, series, threads, "mask_unbiased")
        reference = _add_reference(wf, plan, series, memory, "reference_unbiased")
    wf.connect(*mask, output, "mask")
    _add_coverage(wf, plan, series, mask, output, memory)
    wf.connect(reference, "out_file", output, "reference")
    for part in SERIES:
        wf.connect(*series[part], output, f"out_{part}")
    return wf


def _conform_node(plan: RunPlan, memory: float) -> pe.Node:
    from ..interfaces.conform import Conform

    run = plan.run
    files = {"in_file": str(run.image), "in_bval": str(run.bval), "in_bvec": str(run.bvec)}
    settings = plan.settings
    conform = Conform(
        **files,
        b0_threshold=settings.b0_threshold,
        leave_out_trace=settings.leave_out_trace,
        in_state="; ".join(plan.preprocessing[file] for file in FILE_STATES),
    )
    return pe.Node(conform, name="conform", mem_gb=memory)


def _add_coverage(wf, plan: RunPlan, series, mask, output: pe.Node, memory: float) -> None:
    """Add a node that finds where every volume has data."""
    from ..interfaces.brain import Coverage

    coverage = pe.Node(Coverage(b0_threshold=plan.settings.b0_threshold), name="coverage", mem_gb=memory)
    _feed(wf, series, coverage)
    wf.connect(*mask, coverage, "in_mask")
    wf.connect(coverage, "out_mask", output, "coverage")


def _add_reference(wf, plan: RunPlan, series, memory: float, name: str) -> pe.Node:
    """Add a node that averages the b0s of a series."""
    from ..interfaces.conform import MeanB0

    reference = pe.Node(MeanB0(b0_threshold=plan.settings.b0_threshold), name=name, mem_gb=memory)
    _feed(wf, series, reference)
    return reference


def _add_denoising(wf: pe.Workflow, plan: RunPlan, series: dict, raw_mask, output: pe.Node, threads: int) -> dict:
    """Denoise the series, and always estimate the noise level, which reports need."""
    from ..interfaces.conform import Notes
    from ..interfaces.denoise import Denoise

    method = plan.denoised_by if plan.does("denoise") else None
    denoiser = plan.denoiser if plan.does("denoise") and method is None else "none"
    noise = pe.Node(
        Denoise(method=denoiser, b0_threshold=plan.settings.b0_threshold, num_threads=threads),
        name="noise",
        mem_gb=0.5 + 8 * plan.volume_gb,
        n_procs=threads,
    )
    notes = pe.Node(Notes(), name="notes", run_without_submitting=True)
    conform = series["file"][0]
    _feed(wf, series, noise)
    wf.connect([
        (conform, notes, [("warnings", "repaired")]),
        (noise, output, [("out_sigma", "sigma")]),
        (notes, output, [("out_record", "notes")]),
    ])  # fmt: skip
    if method is not None:
        node = generate_node(plan, method, threads=threads, name="denoise")
        _feed(wf, series, node)
        wf.connect(*raw_mask, node, "in_mask")
        wf.connect([
            (node, notes, [("out_sidecar", "in_record")]),
            (node, output, [("out_sidecar", "denoise_record")]),
        ])  # fmt: skip
        return _series(node)
    wf.connect(noise, "out_message", notes, "noise")
    return series if denoiser == "none" else {**series, "file": (noise, "out_file")}


OUTPUTS = [
    *(f"out_{part}" for part in SERIES),
    *(f"raw_{part}" for part in SERIES),
    *(
        "reference",
        "mask",
        "coverage",
        "raw_mask",
        "sigma",
        "notes",
        "denoise_record",
        "confounds",
        "transforms",
        "field",
        "bias_field",
    ),
    *("raw_b0", "raw_opposite", "corrected_b0", "corrected_opposite", "field_magnitude"),
]
DISTORTION = {"out_field": "field", "out_b0": "raw_b0", "out_corrected_b0": "corrected_b0"}
OPPOSITE = {"out_opposite": "raw_opposite", "out_corrected_opposite": "corrected_opposite"}


def _series(node: pe.Node) -> dict:
    return {part: (node, f"out_{part}") for part in SERIES}


def _feed(wf: pe.Workflow, series: dict, node: pe.Node) -> None:
    """Connect a series to a node's in_file, in_bval and in_bvec."""
    for part in SERIES:
        wf.connect(*series[part], node, f"in_{part}")


def _add_gibbs(wf: pe.Workflow, plan: RunPlan, series: dict, threads: int) -> dict:
    from ..interfaces.denoise import Degibbs

    node = pe.Node(
        Degibbs(slice_axis=AXES.index(plan.run.slice_axis), num_threads=threads),
        name="gibbs",
        mem_gb=1.0 + 4 * plan.volume_gb,
        n_procs=threads,
    )
    wf.connect(*series["file"], node, "in_file")
    return {**series, "file": (node, "out_file")}


def _add_alignment(wf: pe.Workflow, plan: RunPlan, series: dict, output: pe.Node, threads: int, memory: float) -> dict:
    """Estimate susceptibility distortion, head motion and eddy currents, and correct them in one interpolation."""
    from ..interfaces.motion import HeadMotion
    from ..interfaces.resample import Resample

    settings = plan.settings
    if not plan.does("susceptibility") and not plan.does("motion"):
        return series
    common = _resample_options(plan, threads)
    resample = pe.Node(Resample(**common), name="resample", mem_gb=memory, n_procs=1)
    _feed(wf, series, resample)
    if plan.does("motion"):
        motion = pe.Node(HeadMotion(**common, random_seed=settings.seed + 1), name="motion",
                         mem_gb=memory + 0.5, n_procs=threads)  # fmt: skip
        _feed(wf, series, motion)
        wf.connect([
            (motion, resample, [("out_transforms", "in_transforms")]),
            (motion, output, [("out_confounds", "confounds"), ("out_transforms", "transforms")]),
        ])  # fmt: skip
    if plan.does("susceptibility"):
        field = _add_susceptibility(wf, plan, series, output, threads, memory)
        wf.connect(field, "out_field", resample, "in_field")
    return _series(resample)


def _add_susceptibility(wf: pe.Workflow, plan: RunPlan, series: dict, output: pe.Node, threads: int, memory: float):
    """Add the node that computes susceptibility distortion, from a field map or a b0 of opposite phase encoding."""
    from ..interfaces.susceptibility import FieldMapCorrection, Susceptibility

    partner, fieldmap = plan.run.partner, plan.run.fieldmap
    common = _resample_options(plan, threads) | {"random_seed": plan.settings.seed + 1}
    if plan.run.readout_s:
        common["readout_time"] = plan.run.readout_s
    results = dict(DISTORTION)
    if fieldmap is not None:
        interface = FieldMapCorrection(
            **common,
            kind=fieldmap.kind,
            images=[str(image) for image in fieldmap.images],
            magnitude=str(fieldmap.magnitude),
            units=fieldmap.units,
        )
        if fieldmap.echo_times_s:
            interface.inputs.echo_times = list(fieldmap.echo_times_s)
        results["out_magnitude"] = "field_magnitude"
    else:
        assert partner is not None  # the plan has this step only where there is one of the two
        interface = Susceptibility(**common, opposite_file=str(partner.image), opposite_direction=partner.direction)
        if partner.bval:
            interface.inputs.opposite_bval, interface.inputs.opposite_bvec = str(partner.bval), str(partner.bvec)
        results |= OPPOSITE
    node = pe.Node(interface, name="susceptibility", mem_gb=memory + 0.5, n_procs=threads)
    _feed(wf, series, node)
    wf.connect(node, "out_report", wf.get_node("notes"), "susceptibility")
    for source, target in results.items():
        wf.connect(node, source, output, target)
    return node


def _add_mask(wf: pe.Workflow, plan: RunPlan, series: dict, threads: int, name: str) -> tuple[pe.Node, str]:
    from ..interfaces.brain import BrainMask

    if plan.does("mask"):
        node = pe.Node(
            BrainMask(b0_threshold=plan.settings.b0_threshold, num_threads=threads),
            name=name,
            mem_gb=0.5 + 4 * plan.volume_gb,
        )
        _feed(wf, series, node)
    else:
        node = pe.Node(niu.IdentityInterface(["out_mask"]), name=name)
        node.inputs.out_mask = str(plan.run.mask)
    return node, "out_mask"


def _add_bias(
    wf: pe.Workflow, plan: RunPlan, series: dict, mask: tuple[pe.Node, str], output: pe.Node, threads: int
) -> dict:
    from ..interfaces.brain import BiasField

    node = pe.Node(
        BiasField(b0_threshold=plan.settings.b0_threshold, num_threads=threads),
        name="bias",
        mem_gb=0.8 + 4 * plan.volume_gb,
        n_procs=threads,
    )
    _feed(wf, series, node)
    wf.connect(*mask, node, "in_mask")
    wf.connect(node, "out_field", output, "bias_field")
    return {**series, "file": (node, "out_file")}


def init_replay_wf(plan: RunPlan, *, name: str, threads: int) -> pe.Workflow | None:
    """Return the graph that applies the steps of the acquired series to another one, or None without such steps.

    Parameters
    ----------
    plan
        Plan of the run.
    name
        Name of the graph.
    threads
        Number of CPU threads of a step.

    Inputs
    ------
    in_file, in_bval, in_bvec
        Series on the acquired grid.
    transforms, field, bias_field
        Outputs of `init_preprocess_wf`.

    Outputs
    -------
    out_file, out_bval, out_bvec
    """
    from ..interfaces.brain import DivideByBias
    from ..interfaces.resample import Resample

    moved, distorted = plan.does("motion"), plan.does("susceptibility")
    gibbs = plan.does("gibbs")
    if not (gibbs or moved or distorted or plan.does("bias")):
        return None
    wf = pe.Workflow(name=name)
    fields = [f"in_{part}" for part in SERIES]
    start = pe.Node(niu.IdentityInterface([*fields, "transforms", "field", "bias_field"]), name="input")
    output = pe.Node(niu.IdentityInterface([f"out_{part}" for part in SERIES]), name="output")
    series = {part: (start, f"in_{part}") for part in SERIES}
    if gibbs:
        series = _add_gibbs(wf, plan, series, threads)
    if moved or distorted:
        node = pe.Node(Resample(**_resample_options(plan, threads)), name="resample", mem_gb=0.5 + 4 * plan.volume_gb)
        _feed(wf, series, node)
        for wanted, source, target in ((moved, "transforms", "in_transforms"), (distorted, "field", "in_field")):
            if wanted:
                wf.connect(start, source, node, target)
        series = _series(node)
    if plan.does("bias"):
        node = pe.Node(DivideByBias(), name="bias", mem_gb=0.3 + 3 * plan.volume_gb)
        wf.connect(*series["file"], node, "in_file")
        wf.connect(start, "bias_field", node, "in_field")
        series = {**series, "file": (node, "out_file")}
    for part in SERIES:
        wf.connect(*series[part], output, f"out_{part}")
    return wf


def _resample_options(plan: RunPlan, threads: int) -> dict[str, Any]:
    options: dict[str, Any] = {"num_threads": threads, "b0_threshold": plan.settings.b0_threshold}
    # For eddy currents the axis is enough; only the susceptibility field needs the sign of the direction.
    direction = plan.run.phase_encoding or plan.run.phase_encoding_axis
    if direction:
        options["phase_encoding_direction"] = direction
    return options
