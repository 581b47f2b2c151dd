"""The normalisation node of one run: scan to T1w to template, both directions."""

from __future__ import annotations

from nipype.pipeline import engine as pe

from .plan import RunPlan


def normalize_node(plan: RunPlan, *, threads: int) -> pe.Node:
    """Return the node that registers a run to its T1w, where it has one, and to the template."""
    from ..interfaces.normalize import Normalize
    from ..spatial.templates import find_template

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
        # Files, not their folder: Nipype sees when a file changes.
        template = find_template(settings.template_dir)
        node.inputs.template_name = template.name
        node.inputs.template_t1w, node.inputs.template_mask = str(template.t1w), str(template.mask)
        if template.fa:
            node.inputs.template_fa = str(template.fa)
    return node
