"""The node of one generative method: its request, its memory, its GPU."""

from __future__ import annotations

from nipype.pipeline import engine as pe

from .plan import RunPlan

NETWORK_GB = {"small": 1.2, "paper": 3.0}


def generate_node(plan: RunPlan, method: str, *, threads: int, name: str | None = None) -> pe.Node:
    """Return the node that runs a method on a run.

    Parameters
    ----------
    plan
        Of the run.
    method
        Name in the registry.
    threads
        Of the node on the CPU.
    name
        Of the node (default: after the method).
    """
    from ..interfaces.generate import Generate, choose_device

    settings = plan.settings
    gpu = settings.device != "cpu" and choose_device(settings.device).type == "cuda"
    minutes, options = None, {}
    if method == "difusion":
        minutes = settings.difusion_minutes
        options = {"variant": settings.difusion_variant}
        if settings.difusion_steps:
            options["training_steps"] = settings.difusion_steps
    return pe.Node(
        Generate(
            method=method,
            size=settings.size,
            sampler=settings.sampler,
            steps=settings.steps,
            n_samples=settings.n_samples,
            seed=settings.seed,
            subject=plan.run.entities["subject"],
            run=plan.run.name,
            device=settings.device,
            precision=settings.precision,
            # No clock may enter a result that has to be the same every time.
            minutes=None if settings.deterministic else minutes,
            options=options,
            b0_threshold=settings.b0_threshold,
            deterministic=settings.deterministic,
            use_gpu=gpu,
            num_threads=threads,
        ),
        name=name or f"generate_{method}",
        mem_gb=NETWORK_GB[settings.size] + 6 * plan.volume_gb,
        n_procs=1 if gpu else threads,
    )
