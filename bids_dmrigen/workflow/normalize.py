"""The normalisation node of one run: scan to T1w to template, both directions."""

from __future__ import annotations

from nipype.pipeline import engine as pe

from .plan import RunPlan


def normalize_node(plan: RunPlan, *, threads: int) -> pe.Node:
    """Return the node that registers a run to its T1w, where it has one, and to the template."""
    from ..interfaces.normalize import Normalize

    settings = plan.settings
    node = pe.Node(
        Normalize(num_threads=threads, random_seed=settings.seed + 1),
        name="normalize",
        mem_gb=1.5,
        n_procs=threads,
    )
    if plan.run.t1w:
        node.inputs.in_t1w = str(plan.run.t1w)
    if settings.template_dir:
        node.inputs.template_dir = str(settings.template_dir)
    return node
