"""The node of one method: its request, its memory, its GPU."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nipype.pipeline import engine as pe

from .plan import PlannedMethod, RunPlan

LEFT_OUT = 3  # acquired directions per shell that a method is tested on
TEMPLATE_VOXELS = 1.3e6  # of the 2 mm grid over the template
NETWORK_GB = {"small": 1.2, "paper": 3.0}


def generate_node(plan: RunPlan, method: PlannedMethod, *, threads: int, name: str | None = None) -> pe.Node:
    """Return the node that runs a method on a run.

    Parameters
    ----------
    plan
        Plan of the run.
    method
        One of its methods, or the one that denoises.
    threads
        Number of CPU threads of the node.
    name
        Name of a node that denoises for other methods, without uncertainty; None for the method's own results.
    """
    from ..diffusion.parallel import usable_gpus
    from ..diffusion.weights import read_card
    from ..interfaces.generate import Generate
    from ..methods import given_weights, weights_of

    settings, spec = plan.settings, method.spec
    gpu = bool(usable_gpus(settings.device))
    given = given_weights(spec.name, settings.method_weights)
    weights = weights_of(spec.name, settings.size, given, settings.weights_dir)
    node = pe.Node(
        Generate(
            method=spec.name,
            size=settings.size,
            sampler=settings.sampler_name,
            steps=settings.steps,
            n_samples=settings.n_samples if name is None else 1,
            seed=settings.seed,
            subject=plan.run.entities["subject"],
            run=plan.run.name,
            device=settings.device,
            precision=settings.precision,
            weights=None if weights is None else str(weights),
            # A result that must be the same every time must not depend on a clock.
            minutes=None if settings.deterministic else method.plan.minutes,
            options=dict(method.plan.options),
            left_out=LEFT_OUT,
            with_errors=name is None and bool(plan.uncertain(method)),
            with_samples=name is None and bool(plan.samples_of(method)),
            tensor_volumes=method.plan.fitted,
            b0_threshold=settings.b0_threshold,
            deterministic=settings.deterministic,
            use_gpu=gpu,
            num_threads=threads,
        ),
        name=name or f"generate_{spec.name}",
        mem_gb=NETWORK_GB[settings.size] + 6 * plan.volume_gb + _template_gb(plan, method) + _finer_gb(plan, method),
        n_procs=1 if gpu else threads,
    )
    if spec.in_template:
        node.inputs.xtract = None if settings.xtract_dir is None else str(settings.xtract_dir)
        node.inputs.fibres = None if settings.fibre_dir is None else str(settings.fibre_dir)
        if settings.adc_atlas is not None:
            node.inputs.adc_atlas = str(settings.adc_atlas)
        node.inputs.atlas_state = _state(settings.xtract_dir, settings.fibre_dir, settings.adc_atlas)
    if weights is not None:
        node.inputs.weights_sha256 = read_card(weights).sha256
    return node


def _template_gb(plan: RunPlan, method: PlannedMethod) -> float:
    """Return the memory (GB) of generated images in the template's space and on the scan's grid, beside the series."""
    if not method.spec.in_template:
        return 0.0
    volumes = len(method.plan.table) - len(plan.table) + LEFT_OUT * len(plan.table.shells())
    kinds = 2 if plan.many_samples else 1  # mean, and a sample
    voxels = TEMPLATE_VOXELS + plan.volume_gb * 1e9 / 4 / plan.shape[3]
    return 2 * kinds * volumes * voxels * 4e-9  # the images, and the arrays they are collected in


def _finer_gb(plan: RunPlan, method: PlannedMethod) -> float:
    """Return the memory (GB) of a series on a finer grid: the series and intermediate arrays."""
    return 6 * method.finer_gb


def _state(*paths: Path | None) -> str:
    """Return a digest of the names, sizes and times of files and of their descriptions, also of files in folders."""
    files = [file for path in paths if path for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    descriptions = [file.with_name(file.name.split(".")[0] + end) for file in files for end in (".json", "_labels.tsv")]
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in [*files, *descriptions] if f.is_file()]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
