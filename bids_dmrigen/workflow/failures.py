"""The nodes that failed, read from Nipype's crash files, and the plan of a run without them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..qc.report import RunError
from .plan import Output, RunPlan, Step

RUN_NODE = re.compile(r"^Node: participant\.(?P<run>run_\w+)\.(?P<node>[\w.]+)", re.MULTILINE)
LAST_ERROR = re.compile(r"^\s*(?P<kind>[\w.]*(?:Error|Exception|BrokenProcessPool)): (?P<text>.+)", re.MULTILINE)
OWNERS = {
    **dict.fromkeys(("preproc", "preproc_bval", "preproc_bvec"), "series"),
    **dict.fromkeys(("to_t1w", "from_t1w", "to_template", "from_template"), "normalize"),
    "metrics": "metrics",
}

# Kinds of nodes of a method that figures need.
BEFORE_FIGURES = ("generate", "replay", "maps", "features", "onto", "undistort", "quantiles")
IN_TEMPLATE, SERIES = "template_", "_series"


@dataclass(frozen=True)
class Failure:
    """A node that failed."""

    run: str  # the run's name
    node: str  # its path in the run's graph
    error: RunError


def find_failures(logs: Path, plans: Iterable[RunPlan]) -> list[Failure]:
    """Return every node of these runs that left a crash file in a folder, in the order of their failures."""
    by_node = {plan.node_name: plan.run.name for plan in plans}
    failures = []
    for log in sorted(logs.glob("crash-*.txt"), key=lambda p: p.stat().st_mtime):
        text = log.read_text(errors="replace")
        node = RUN_NODE.search(text)
        if not node or node["run"] not in by_node:
            continue
        matches = LAST_ERROR.findall(text)
        message = matches[-1][1] if matches else text.strip().splitlines()[-1]
        error = RunError(node["node"].split(".")[-1], message, str(log))
        failures.append(Failure(by_node[node["run"]], node["node"], error))
    return failures


def owner(output: Output) -> str:
    """Return the method or the part of the graph that gives an output; in the template's space it has a prefix."""
    if output.key.startswith(IN_TEMPLATE):
        source = output.fields.get("source") or output.fields.get("method") or "preproc"
        return IN_TEMPLATE + source + SERIES * output.key.startswith("template_generated")
    return output.fields.get("source") or output.fields.get("method") or OWNERS.get(output.key, "preproc")


def without_failed(plan: RunPlan, nodes: Sequence[str]) -> RunPlan | None:
    """Return the plan without the methods and the normalisation that failed; None where nothing else can be done.

    Figures and metrics need the results of all methods, and Nipype runs no node that depends on a failed one.

    Parameters
    ----------
    plan
        Plan of the run.
    nodes
        Paths of the run's nodes that failed.
    """
    methods = {method.name for method in plan.methods}
    failed = {_node_owner(node, methods) for node in nodes}
    if not failed or not failed <= {"normalize", *methods}:
        return None
    if "normalize" in failed:  # these methods need the transforms to the template
        failed |= {method.name for method in plan.methods if method.spec.in_template}
    dropped = failed | {IN_TEMPLATE + method + end for method in failed for end in ("", SERIES)}
    if "normalize" in failed:
        dropped |= {owner(output) for output in plan.outputs if owner(output).startswith(IN_TEMPLATE)}
    return replace(
        plan,
        methods=tuple(method for method in plan.methods if method.name not in failed),
        steps={**plan.steps, **dict.fromkeys(failed, Step(False, "failed"))},
        outputs=tuple(output for output in plan.outputs if owner(output) not in dropped),
    )


def _node_owner(node: str, methods: Iterable[str]) -> str:
    """Return the method of a node (NAME in replay_NAME_file.gibbs), or the node's path where it has no method."""
    kind, *rest = node.split(".")[0].split("_")
    return rest[0] if kind in BEFORE_FIGURES and rest and rest[0] in methods else node
