"""What will be done with each run and why: decided from headers and b-tables, before anything is computed.

The plan is what `--dry-run` prints, what the graph is built from, and what the end of the call is checked against.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..bids import names
from ..bids.query import Run
from ..dwi.gradients import GradientError, GradientTable
from ..dwi.series import ScanError
from ..methods import REGISTRY
from .made import nearest_bvalue, table_made, tensor_volumes
from .settings import Settings

MIN_SLICES = 8  # fewer voxels along an axis: nothing that three-dimensional registration could hold on to
TRANSFORM_KEYS = ("to_template", "from_template")
SPACE_FACTOR = 10  # intermediate and final files together, in multiples of the series as float32
FINER_SPACE_FACTOR = 3  # the same of each series on a finer grid
ONLY_A_PARTNER = "holds only b0s: of use only for the susceptibility correction of {runs}"
ONE_VOLUME = "there is one volume, nothing to align it with"
ONLY_B0 = (
    "{path}: all {n} volumes are b0 (b <= {threshold:g} s/mm²) and no run has them as reverse-phase partner; take the "
    "run out of the selection, give it the PhaseEncodingDirection it had, or ask for a method that makes images from "
    "b0s alone (--methods phydiff)"
)
NO_TEMPLATE = (
    "{name} works in the template's space; the image has {found} slices along one axis, registration needs {needed}"
)
UNFORESEEN = (
    "{kind}: {error} (not foreseen by the checks: look at the traceback, in logs/ and in the report, for what is "
    "unusual about this run, and tell the developers)"
)


class NoWeightingError(ScanError):
    """A series of b0s alone: no diffusion series, but another one may have it as partner."""


@dataclass(frozen=True)
class Step:
    """One step of a run: whether it is done, and why or how."""

    active: bool
    reason: str


@dataclass(frozen=True)
class Output:
    """One promised file of a run."""

    key: str  # of the table of names
    fields: Mapping[str, str]
    path: Path  # relative to the derivative dataset


@dataclass(frozen=True)
class RunPlan:
    """Everything decided about a run."""

    run: Run
    settings: Settings  # of this run: without the methods that cannot work on it
    shape: tuple[int, ...] = ()
    gradients: GradientTable | None = None
    steps: Mapping[str, Step] | None = None
    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    fault: str | None = None
    trace: str = ""  # of a fault that the checks did not foresee
    only_b0: bool = False  # nothing in it is diffusion-weighted, as far as is known
    refused: Mapping[str, str] = field(default_factory=dict)  # method that was asked for -> why it cannot work here
    note: str | None = None  # why there is nothing to do, and nothing wrong with that
    zooms_mm: tuple[float, ...] = ()

    def broken_by(self, error: Exception) -> RunPlan:
        """Return this plan with an error that the checks did not foresee as its fault."""
        fault = UNFORESEEN.format(kind=type(error).__name__, error=error)
        return replace(self, fault=fault, trace="".join(traceback.format_exception(error)))

    @property
    def node_name(self) -> str:
        """The run's name as Nipype allows it: letters, digits and underscores."""
        return "run_" + "".join(c if c.isalnum() else "_" for c in self.run.name)

    def does(self, step: str) -> bool:
        """Return whether a step is part of this plan."""
        return self.steps is not None and self.steps[step].active

    @property
    def volume_gb(self) -> float:
        """Size of the series in memory as float32, GB."""
        return float(np.prod(self.shape)) * 4 / 1e9

    def edge_mm(self, method: str) -> float | None:
        """Return the edge of the voxels of what a method makes, mm; None where they are the run's own."""
        return _edge_mm(self.settings, method, self.zooms_mm)

    def made_gb(self, method: str) -> float:
        """Size of the series that a method makes on a finer grid in memory as float32, GB; 0 on the run's own."""
        edge = self.edge_mm(method)
        return 0.0 if edge is None else self.volume_gb * float(np.prod(self.zooms_mm)) / edge**3

    @property
    def space_gb(self) -> float:
        """Space that intermediate and final files take together, GB."""
        finer = sum(self.made_gb(method) for method in self.settings.methods)
        return SPACE_FACTOR * self.volume_gb + FINER_SPACE_FACTOR * min(self.settings.n_samples, 2) * finer


def plan_runs(runs: Sequence[Run], settings: Settings, template: str) -> list[RunPlan]:
    """Return the plan of every run; see `plan_run`.

    A series of b0s alone is at fault only where it is nobody's partner: else its plan is a note, without any output.
    """
    plans = [plan_run(run, settings, template) for run in runs]
    served: dict[Path, list[str]] = {}
    for plan in plans:
        if plan.outputs and plan.run.partner and not plan.only_b0:
            served.setdefault(plan.run.partner.image, []).append(plan.run.name)
    for number, plan in enumerate(plans):
        if plan.only_b0 and plan.run.image in served:
            note = ONLY_A_PARTNER.format(runs=" and ".join(served[plan.run.image]))
            plans[number] = RunPlan(plan.run, plan.settings, only_b0=True, note=note)
    return plans


def plan_run(run: Run, settings: Settings, template: str) -> RunPlan:
    """Return the plan of a run; where it cannot be processed, a plan with nothing but its fault. Never raises.

    A method that cannot work on the run is refused with its reason; everything else is done.

    Parameters
    ----------
    run
        From `bids.query`.
    settings
        Of this call.
    template
        TemplateFlow name of the template.
    """
    if run.fault:
        return RunPlan(run, settings, fault=run.fault, only_b0=run.bval is None and run.bvec is None)
    try:
        return _plan(run, settings, template)
    except NoWeightingError as error:
        return RunPlan(run, settings, fault=str(error), only_b0=True)
    except (ScanError, GradientError) as error:
        return RunPlan(run, settings, fault=str(error))
    except Exception as error:  # whatever is odd about one run must not be the end of the others
        return RunPlan(run, settings).broken_by(error)


def _plan(run: Run, settings: Settings, template: str) -> RunPlan:
    from ..methods import load

    shape, zooms, gradients = _inspect(run, settings.b0_threshold)
    only_b0 = bool(gradients.is_b0.all())
    warnings = [note for note in run.notes if not note.startswith("susceptibility: ")]
    denoiser = [settings.denoiser] if settings.denoiser in REGISTRY and not run.preprocessed else []
    refused = {}
    for name in dict.fromkeys([*settings.methods, *denoiser]):
        try:
            warnings += _method_warnings(name, run, shape, gradients)
            if load(name).spec.in_template and min(shape[:3]) < MIN_SLICES:
                raise ScanError(NO_TEMPLATE.format(name=name, found=min(shape[:3]), needed=MIN_SLICES))
            _edge_mm(settings, name, zooms)
        except ScanError as error:
            refused[name] = str(error)
    if only_b0 and not any(load(name).spec.min_directions == 0 for name in settings.methods if name not in refused):
        raise NoWeightingError(ONLY_B0.format(path=run.bval, n=len(gradients), threshold=settings.b0_threshold))
    left_out = {name: Step(False, refused[name]) for name in settings.methods if name in refused}
    settings = replace(settings, methods=tuple(name for name in settings.methods if name not in refused))
    finer = {name: edge for name in settings.methods if (edge := _edge_mm(settings, name, zooms)) is not None}
    steps = _steps(run, settings, shape, gradients, refused, finer) | left_out
    maps = {method: _maps_of(settings, method, gradients).active for method in settings.methods}
    outputs = tuple(_outputs(run, settings, gradients, steps, maps, template, finer))
    return RunPlan(
        run, settings, shape, gradients, steps, outputs, tuple(warnings), only_b0=only_b0, refused=refused,
        zooms_mm=zooms,
    )  # fmt: skip


def _edge_mm(settings: Settings, method: str, zooms_mm: Sequence[float]) -> float | None:
    """Return the edge of the voxels of what a method makes of a run, mm; None where they are the run's own."""
    from ..methods import load

    return load(method).spec.edge_mm(zooms_mm, settings.rishldm_voxel_size)


def _inspect(run: Run, b0_threshold: float) -> tuple[tuple[int, ...], tuple[float, ...], GradientTable]:
    """Return shape, size of the voxels in mm and gradients; raise where they do not describe a diffusion series."""
    import nibabel as nib

    from ..dwi.series import NO_B0
    from ..spatial.io import read_gradients

    try:
        image = nib.load(run.image)
    except Exception as error:
        raise ScanError(f"{run.image}: cannot be read as an image ({error}); copy it anew") from error
    if len(image.shape) != 4:
        error = NoWeightingError if len(image.shape) == 3 else ScanError
        raise error(
            f"{run.image}: expected a 4-D series (x, y, z, volume), found shape {image.shape}; "
            "a single volume is no diffusion series"
        )
    if abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise ScanError(f"{run.image}: the affine is singular; the header's geometry is broken")
    gradients = read_gradients(run.bval, run.bvec, image.shape[3], b0_threshold)
    if not gradients.is_b0.any():
        raise ScanError(f"{run.bval}: " + NO_B0.format(threshold=b0_threshold, lowest=gradients.bvals.min()))
    return image.shape, tuple(np.linalg.norm(image.affine[:3, :3], axis=0).tolist()), gradients


def _method_warnings(name: str, run: Run, shape: tuple[int, ...], gradients: GradientTable) -> list[str]:
    """Ask the method itself; a scan without voxel values is enough for it."""
    from ..dwi.series import Scan
    from ..methods import load

    empty = np.zeros((1, 1, 1, shape[3]), np.float32)
    spec = load(name).spec
    warnings = spec.check(Scan(empty, np.eye(4), gradients, np.ones((1, 1, 1), bool)))
    if run.preprocessed and spec.on_acquired:
        warnings.append(
            f"{spec.title} is meant for series as acquired; this one was interpolated before, which makes the noise "
            "of neighbouring voxels alike: detail can be taken for noise"
        )
    return warnings


def _steps(
    run: Run, settings: Settings, shape: tuple[int, ...], gradients: GradientTable, refused: Mapping[str, str],
    finer: Mapping[str, float],
) -> dict[str, Step]:  # fmt: skip
    flat = min(shape[:3]) < MIN_SLICES
    too_flat = f"the image has {min(shape[:3])} slices along one axis, registration needs {MIN_SLICES}"
    off = None
    if run.preprocessed:
        off = "the run is preprocessed already"
    elif settings.skip_preprocessing:
        off = "--skip-preprocessing"

    def step(wanted: bool, flag: str, how: str, obstacle: str | None = None) -> Step:
        reason = off or (None if wanted else flag) or obstacle
        return Step(reason is None, reason or how)

    sdc_note = next((n for n in run.notes if n.startswith("susceptibility: ")), "susceptibility: no partner")
    partner = f"from {run.partner.image.name}" if run.partner else ""
    if run.partner and not run.partner.bval:
        partner += " (it has no b-values: every volume counts as b0)"
    steps = {
        "denoise": step(settings.denoiser != "none", "--denoise none", settings.denoiser,
                        refused.get(settings.denoiser)),
        "gibbs": step(settings.gibbs, "--no-gibbs", "sub-voxel shifts",
                      too_flat if min(shape[:2]) < MIN_SLICES else None),
        "susceptibility": step(settings.sdc, "--no-sdc", partner,
                               (None if run.partner else sdc_note.removeprefix("susceptibility: "))
                               or (too_flat if flat else None)),
        "motion": step(settings.motion, "--no-motion", _motion(run),
                       ONE_VOLUME if len(gradients) == 1 else too_flat if flat else None),
        "bias": step(settings.bias, "--no-bias", "N4", too_flat if flat else None),
    }  # fmt: skip
    own_mask = run.mask is not None and not settings.skip_preprocessing
    steps["mask"] = Step(not own_mask, "given with the run" if own_mask else "from b0 and mean DWI")
    maps = _maps(gradients)
    steps["normalize"] = Step(not flat, too_flat if flat else _normalization(run, maps.active))
    steps["maps"] = maps
    for method in settings.methods:
        grid = f", voxels of {finer[method]:g} mm" if method in finer else ""
        steps[method] = Step(True, f"{settings.size}, {settings.sampler} sampler{grid}")
    return steps


def _motion(run: Run) -> str:
    if run.phase_encoding_axis:
        return "rigid, then eddy currents along the phase-encoding axis"
    return "rigid; the phase-encoding axis is unknown, eddy currents stay"


def _maps(gradients: GradientTable) -> Step:
    from ..dwi.tensor import check_table

    try:
        check_table(gradients.bvals, gradients.bvecs)
    except GradientError as error:
        return Step(False, str(error))
    return Step(True, "weighted least squares")


def _maps_of(settings: Settings, method: str, gradients: GradientTable) -> Step:
    """Return whether a tensor is fitted to the series that a method makes: that may have more directions."""
    table, volumes = table_made(settings, method, gradients), tensor_volumes(settings, method, gradients)
    return _maps(table if volumes is None else table[volumes])


def _normalization(run: Run, fa: bool) -> str:
    if run.t1w:
        return f"b0 to {run.t1w.name}, T1w to template"
    return f"no T1w; b0{' and FA' * fa} to template"


def _outputs(
    run: Run, settings: Settings, gradients: GradientTable, steps: Mapping[str, Step], maps: Mapping[str, bool],
    template: str, finer: Mapping[str, float],
):  # fmt: skip
    def output(key: str, **fields: str) -> Output:
        return Output(key, fields, names.output_path(run.entities, key, **fields))

    for key in ("preproc", "preproc_bval", "preproc_bvec", "dwiref", "mask"):
        yield output(key)
    if steps["motion"].active:
        yield output("confounds")
    if steps["normalize"].active:
        for key in TRANSFORM_KEYS:
            yield output(key, template=template)
        if run.t1w:
            yield output("to_t1w")
            yield output("from_t1w")
    if steps["maps"].active:
        for param in names.TENSOR_MAPS:
            yield output("map", param=param, source="preproc")
    for method in settings.methods:
        yield from _method_outputs(output, settings, method, maps[method], _grid_fields(finer.get(method)))
    if "rishldm" in settings.methods:
        yield from _rish_outputs(output, gradients, _grid_fields(finer.get("rishldm")))
    for edge in dict.fromkeys(finer.values()):
        yield output("mask", **_grid_fields(edge))
    if "template" in settings.output_spaces and steps["normalize"].active:
        yield from _template_outputs(output, settings, {"preproc": steps["maps"].active} | maps, template)
    yield output("metrics")


def _grid_fields(edge_mm: float | None) -> dict[str, str]:
    """Return what names and sidecars are told of a grid: nothing of the run's own."""
    return {} if edge_mm is None else {"voxel_mm": f"{edge_mm:g}"}


def _method_outputs(output, settings: Settings, method: str, maps: bool, grid: Mapping[str, str]):
    from ..methods import load

    spec = load(method).spec
    title = spec.title
    for param in spec.maps:
        yield output("map", param=param, source=method, **_origin(settings, method))
        if settings.n_samples > 1:
            yield output("map_spread", param=param, method=method, title=title)
    if not spec.gives_series:
        return
    for key in ("generated", "generated_bval", "generated_bvec"):
        yield output(key, method=method, title=title, **grid)
    if settings.n_samples > 1 and spec.draws:
        for key in ("spread", "spread_bval", "spread_bvec"):
            yield output(key, method=method, title=title, **grid)
    if maps:
        for param in names.TENSOR_MAPS:
            yield output("map", param=param, source=method, **_origin(settings, method), **grid)


def _rish_outputs(output, gradients: GradientTable, grid: Mapping[str, str]):
    """Yield the maps of the features that RISH latent diffusion changes, before and after."""
    from ..dwi.rish import rish_shell

    shell = rish_shell(gradients)
    told = {"shell": f"{shell.bval:.0f}", "order": str(shell.order)}
    for source, where in (("preproc", {}), ("rishldm", grid)):
        for degree in shell.degrees:
            yield output("rish_map", param=f"rish{degree}", source=source, **told, **where)


def _origin(settings: Settings, source: str) -> dict[str, str]:
    """Return what the sidecar of a map says of where it comes from, unless it is a fit to all of a series."""
    from ..methods import load

    spec = load(source).spec if source in settings.methods else None
    if spec is not None and spec.maps:
        return {"title": spec.title}
    return {"fitted": f"{nearest_bvalue(settings):g}"} if spec is not None and spec.in_template else {}


def _template_outputs(output, settings: Settings, maps: Mapping[str, bool], template: str):
    """Yield what is written in the template's space: the mask, maps that are one number per voxel, and series."""
    from ..methods import load
    from ..spatial.templates import EMBEDDED_URL, find_template

    reference = find_template(settings.template_dir).t1w.as_uri() if settings.template_dir else EMBEDDED_URL
    where = {"template": template, "reference": reference}
    yield output("template_mask", **where)
    for source, fitted in maps.items():
        own = load(source).spec.maps if source in settings.methods else ()
        there = own or (names.TENSOR_MAPS if fitted else ())
        for param in (p for p in names.SCALAR_MAPS if p in there):
            yield output("template_map", param=param, source=source, **where, **_origin(settings, source))
    for method in settings.methods:
        spec = load(method).spec
        if spec.in_template:
            for key in ("template_generated", "template_generated_bval", "template_generated_bvec"):
                yield output(key, method=method, title=spec.title, **where)


def describe(plan: RunPlan) -> list[str]:
    """Return the plan as lines for `--dry-run`."""
    lines = [plan.run.name]
    if plan.note:
        return [*lines, f"  {plan.note}"]
    if plan.fault:
        return [*lines, f"  cannot be processed: {plan.fault}", *(f"  {line}" for line in plan.trace.splitlines())]
    shells = ", ".join(f"{len(v)} at b={b:.0f}" for b, v in plan.gradients.shells())
    grid = "x".join(str(n) for n in plan.shape[:3])
    lines.append(f"  {grid}, {int(plan.gradients.is_b0.sum())} b0, {shells}")
    for name, step in plan.steps.items():
        lines.append(f"  {'does' if step.active else 'skips'} {name}: {step.reason}")
    lines += [f"  warning: {w}" for w in plan.warnings]
    return lines + [f"  writes {output.path.as_posix()}" for output in plan.outputs]
