"""The plan of each run: its steps with reasons, decided from headers and b-tables before anything is computed.

`--dry-run` prints the plan, the graph is built from it, and the results of the call are checked against it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..bids import names
from ..bids.run import Run
from ..dwi.gradients import GradientError, GradientTable
from ..dwi.series import NO_B0, Scan, ScanError
from ..methods import REGISTRY, options, spec_of
from ..methods.spec import RISH, TENSOR, Directions, Header, MethodPlan, MethodSpec
from ..qc.report import STEP_LABELS
from .earlier import DENOISING, NOT_DONE, UNKNOWN, changes, stored_files, stored_methods, stored_preprocessing
from .settings import DENOISERS, Settings, directions_of

MIN_SLICES = 8  # voxels along each axis; with fewer, three-dimensional registration is not reliable
PREPROCESSING_STEPS = ("denoise", "gibbs", "susceptibility", "motion", "bias", "mask", "normalize")
FILE_STATES = ("Image", "b-values", "b-vectors")  # entries of `RunPlan.preprocessing`: checksums
TRANSFORM_KEYS = ("to_template", "from_template")
SPACE_FACTOR = 10  # size of intermediate and final files together, relative to the series as float32
SAMPLE_SPACE_FACTOR = 3  # the same, for each stored sample of a series
FINER_SPACE_FACTOR = 3  # the same, relative to each series on a finer grid
ONLY_A_PARTNER = "holds only b0s: it is used only for the susceptibility correction of {runs}"
ONLY_A_SPARE = "holds only b0s: it could correct the susceptibility distortion of {runs}, for which a field map is used"
UNDECLARED = "nothing declares it: it is of the same session and grid, and of opposite direction"
UNDECLARED_FIELD = "nothing declares it: it is of the same session"
ONE_VOLUME = "there is one volume, nothing to align it with"
ONLY_B0 = (
    "{path}: all {n} volumes are b0 (b <= {threshold:g} s/mm²) and no run has them as reverse-phase partner ({why}); "
    "take the run out of the selection, or ask for a method that makes images from b0s alone (--methods {methods})"
)
OF_NO_RUN = "no series with diffusion weighting has the opposite direction, the same grid and read-out time"
NO_TEMPLATE = (
    "{name} works in the template's space; the image has {found} slices along one axis, registration needs {needed}"
)
INTERPOLATED = (
    "{title} is meant for series as acquired; this one was interpolated before, which correlates the noise of "
    "neighbouring voxels: detail can be taken for noise"
)
NO_SHELL = (
    "the {n} volumes at b = {ranges} s/mm² are no shells: their b-values differ too much; figures and metrics take "
    "each range together"
)
AS_STORED = ", as for the series that an earlier call stored"
CONFLICT = (
    "{folder} holds results of {methods}, which this call does not make again, and would replace the preprocessed "
    "series that they belong to ({changes}); give the options of the earlier call (logs/settings-*.toml), or ask for "
    "these methods too (--methods {all}), or take another output folder; nothing of this run was changed"
)
LEFT = (
    "{folder} holds files that this call does not make again ({files}), and would replace the preprocessed series that "
    "they belong to ({changes}); give the options of the earlier call (logs/settings-*.toml), or remove these files, "
    "or take another output folder; nothing of this run was changed"
)
MOST_NAMES = 3  # of files in a message
REPLACED = "the preprocessed series of an earlier call is replaced ({changes})"
TRACE_LEFT_OUT = "the last {n} of {total} volumes have a b-value but no direction; left out (--leave-out-trace)"
UNFORESEEN = (
    "{kind}: {error} (not foreseen by the checks: look at the traceback, in logs/ and in the report, for what is "
    "unusual about this run, and tell the developers)"
)


class NoWeightingError(ScanError):
    """A series with only b0s: it cannot be processed, but may be the reverse-phase partner of another run."""


class ConflictError(ScanError):
    """A run whose stored results would no longer belong to its preprocessed series after this call."""


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


@dataclass(frozen=True, eq=False)
class PlannedMethod:
    """A method that will work on a run.

    Parameters
    ----------
    spec
        Specification of the method.
    plan
        What the method will do with the run.
    maps
        Whether the directions of the generated series determine a tensor; False for a method that generates maps.
    finer_gb
        Size of that series in memory as float32, GB, where it is on a finer grid; 0 on the grid of the run.
    """

    spec: MethodSpec
    plan: MethodPlan
    maps: bool
    finer_gb: float

    @property
    def name(self) -> str:
        """Name of the method on the command line and in file names."""
        return self.spec.name

    @property
    def grid(self) -> dict[str, str]:
        """The fields of names and sidecars that describe a finer grid; none where the grid is that of the run."""
        return {} if self.plan.edge_mm is None else {"voxel_mm": f"{self.plan.edge_mm:g}"}

    @property
    def origin(self) -> dict[str, str]:
        """The fields that describe the origin of a map in its sidecar; none where it is a fit to the whole series."""
        if self.spec.maps:
            return {"title": self.spec.title}
        return {} if self.plan.fitted_b is None else {"fitted": f"{self.plan.fitted_b:g}"}


@dataclass(frozen=True)
class RunPlan:
    """Everything decided about a run."""

    run: Run
    settings: Settings  # of the call
    methods: tuple[PlannedMethod, ...] = ()  # the requested methods that can work on the run
    denoiser: str = "none"
    denoised_by: PlannedMethod | None = None  # where the denoiser is a method
    shape: tuple[int, ...] = ()
    gradients: GradientTable | None = None
    steps: Mapping[str, Step] = field(default_factory=dict)  # empty where the run cannot be processed
    outputs: tuple[Output, ...] = ()
    warnings: tuple[str, ...] = ()
    fault: str | None = None
    trace: str = ""  # traceback of a fault that the checks did not foresee
    only_b0: bool = False  # the series has no diffusion-weighted volume, or no gradient table
    refused: Mapping[str, str] = field(default_factory=dict)  # requested method -> why it cannot work on this run
    note: str | None = None  # why there is nothing to do, where this is not a fault
    preprocessing: Mapping[str, str] = field(default_factory=dict)  # what the preprocessed series depends on
    stored: tuple[str, ...] = ()  # methods of which earlier calls stored results
    conflict: bool = False  # the fault is one of this call with results of earlier calls: all of them stay as they are

    @property
    def kept(self) -> tuple[str, ...]:
        """Methods with stored results that this call does not make again."""
        asked = {method.name for method in self.methods}
        return tuple(name for name in self.stored if name not in asked)

    def broken_by(self, error: Exception) -> RunPlan:
        """Return this plan with an error that the checks did not foresee as its fault."""
        fault = UNFORESEEN.format(kind=type(error).__name__, error=error)
        return replace(self, fault=fault, trace="".join(traceback.format_exception(error)))

    @property
    def node_name(self) -> str:
        """The run's name as Nipype allows it: letters, digits and underscores."""
        return "run_" + "".join(c if c.isalnum() else "_" for c in self.run.name)

    @property
    def many_samples(self) -> bool:
        """Whether methods that draw samples also return the uncertainty of their maps."""
        return self.settings.n_samples > 1

    def uncertain(self, method: PlannedMethod) -> tuple[str, ...]:
        """Return the scalar maps of a method whose uncertainty is stored: none where nothing is drawn."""
        if not (self.many_samples and method.spec.draws):
            return ()
        fitted = names.SCALAR_MAPS if method.maps and TENSOR in method.spec.fits else ()
        made = method.spec.maps_of(self.settings.size)
        return tuple(name for name in names.SCALAR_MAPS if name in (made or fitted))

    def samples_of(self, method: PlannedMethod) -> tuple[str, ...]:
        """Return the numbers of a method's samples that are stored, from 1."""
        spec = method.spec
        stored = self.settings.write_samples and self.many_samples and spec.draws
        if not stored or not (spec.gives_series or "tensor" in spec.maps_of(self.settings.size)):
            return ()
        return tuple(str(number) for number in range(1, self.settings.n_samples + 1))

    @property
    def table(self) -> GradientTable:
        """The run's gradients, of a plan without a fault."""
        assert self.gradients is not None
        return self.gradients

    def does(self, step: str) -> bool:
        """Return whether a step is part of this plan."""
        return bool(self.steps) and self.steps[step].active

    def sources(self, key: str) -> dict[str, list[Output]]:
        """Return the outputs of this key by their source: preproc, or the name of a method."""
        by_source: dict[str, list[Output]] = {}
        for output in self.outputs:
            if output.key == key:
                by_source.setdefault(output.fields["source"], []).append(output)
        return by_source

    @property
    def volume_gb(self) -> float:
        """Size of the series in memory as float32, GB."""
        return float(np.prod(self.shape)) * 4 / 1e9

    def series_gb(self, source: str) -> float:
        """Return the size of the series of a method, or of another source, in memory as float32, GB."""
        return next((m.finer_gb for m in self.methods if m.name == source), 0.0) or self.volume_gb

    @property
    def space_gb(self) -> float:
        """Space that intermediate and final files take together, GB."""
        finer = sum(method.finer_gb for method in self.methods)
        samples = sum(len(self.samples_of(method)) for method in self.methods if method.spec.gives_series)
        return (SPACE_FACTOR + SAMPLE_SPACE_FACTOR * samples) * self.volume_gb + FINER_SPACE_FACTOR * finer


def plan_runs(runs: Sequence[Run], settings: Settings, template: str) -> list[RunPlan]:
    """Return the plan of every run; see `plan_run`.

    A series of b0s alone that is the partner of another run has a plan with a note and without outputs; any other
    series of b0s alone has a fault.
    """
    plans = [plan_run(run, settings, template) for run in runs]
    runs_of_partner: dict[str, dict[Path, list[str]]] = {ONLY_A_PARTNER: {}, ONLY_A_SPARE: {}}
    for plan in plans:
        for sentence, partner in ((ONLY_A_PARTNER, plan.run.partner), (ONLY_A_SPARE, plan.run.spare_partner)):
            if plan.outputs and partner and not plan.only_b0:
                runs_of_partner[sentence].setdefault(partner.image, []).append(plan.run.name)
    for number, plan in enumerate(plans):
        notes = [
            s.format(runs=" and ".join(runs[plan.run.image]))
            for s, runs in runs_of_partner.items()
            if plan.run.image in runs
        ]
        if plan.only_b0 and notes:
            plans[number] = RunPlan(plan.run, plan.settings, only_b0=True, note="; ".join(notes))
    return plans


def plan_run(run: Run, settings: Settings, template: str) -> RunPlan:
    """Return the plan of a run, or a plan with only a fault where the run cannot be processed. Never raises.

    A method that cannot work on the run is refused with its reason; everything else is done.

    Parameters
    ----------
    run
        The run, from `bids.query`.
    settings
        Settings of this call.
    template
        TemplateFlow name of the template.
    """
    if run.fault:
        return RunPlan(run, settings, fault=run.fault, only_b0=run.bval is None and run.bvec is None)
    try:
        return _plan(run, settings, template)
    except NoWeightingError as error:
        return RunPlan(run, settings, fault=str(error), only_b0=True)
    except ConflictError as error:
        return RunPlan(run, settings, fault=str(error), conflict=True)
    except (ScanError, GradientError) as error:
        return RunPlan(run, settings, fault=str(error))
    except Exception as error:  # an unforeseen fault of one run must not stop the others
        return RunPlan(run, settings).broken_by(error)


def _plan(run: Run, settings: Settings, template: str) -> RunPlan:
    header, warnings = _inspect(run, settings)
    gradients, only_b0 = header.gradients, bool(header.gradients.is_b0.all())
    warnings += run.notes
    before = stored_preprocessing(settings.out_dir, run.entities)
    values, planned, refused = _option_values(settings), {}, {}
    denoiser = _denoiser(settings, settings.methods, before)
    denoisers = [denoiser] if _is_method(denoiser) and not run.preprocessed else []
    for name in dict.fromkeys([*settings.methods, *denoisers]):
        try:
            warnings += _method_warnings(spec_of(name), run, header)
            planned[name] = _planned(spec_of(name), values, header)
        except ScanError as error:
            refused[name] = str(error)
    methods = tuple(planned[name] for name in settings.methods if name in planned)
    if only_b0 and not any(method.spec.min_directions == 0 for method in methods):
        able = " ".join(name for name in REGISTRY if spec_of(name).min_directions == 0 and spec_of(name).needs_weights)
        raise NoWeightingError(
            ONLY_B0.format(
                path=run.bval,
                n=len(gradients),
                threshold=settings.b0_threshold,
                methods=able,
                why=OF_NO_RUN if run.phase_encoding else run.no_partner,
            )
        )
    denoiser = _denoiser(settings, [method.name for method in methods], before)
    denoised_by = planned.get(denoiser) if _is_method(denoiser) else None
    plan = RunPlan(
        run, settings, methods, denoiser, denoised_by, header.shape, gradients, warnings=tuple(warnings),
        only_b0=only_b0, refused=refused, stored=stored_methods(settings.out_dir, run.entities),
    )  # fmt: skip
    plan = replace(plan, steps=_steps(plan))
    plan = replace(plan, preprocessing=_preprocessing(plan), outputs=tuple(_outputs(plan, template)))
    return plan if settings.reports_only else _beside_earlier(plan, before)


def _is_method(denoiser: str) -> bool:
    """Return whether a method denoises; a step of the preprocessing may have the name of another method."""
    return denoiser in REGISTRY and spec_of(denoiser).denoises


def _denoiser(settings: Settings, methods: Sequence[str], before: Mapping[str, str]) -> str:
    """Return the denoiser of a run: as asked for, else that of the stored series, else what suits the methods."""
    stored = before.get(DENOISING, "").split(",")[0]
    asked = settings.denoise or (stored if stored in DENOISERS else None)
    return replace(settings, denoise=asked, methods=tuple(methods)).denoiser


def _beside_earlier(plan: RunPlan, before: Mapping[str, str]) -> RunPlan:
    """Return the plan, with a warning where it replaces the stored series.

    Parameters
    ----------
    plan
        Of a run.
    before
        How the stored preprocessed series was made.

    Raises
    ------
    ConflictError
        Where results that are not part of the plan belong to that series.
    """
    found = changes(before, plan.preprocessing) if before else [UNKNOWN] * bool(plan.kept)
    if not found:
        return plan
    said = "; ".join(found)
    if not plan.kept:
        made = {output.path.as_posix() for output in plan.outputs}
        left = [path for path in stored_files(plan.settings.out_dir, plan.run.entities) if path not in made]
        if left:
            files = ", ".join(left[:MOST_NAMES]) + f" and {len(left) - MOST_NAMES} more" * (len(left) > MOST_NAMES)
            raise ConflictError(LEFT.format(folder=plan.settings.out_dir, files=files, changes=said))
        return replace(plan, warnings=(*plan.warnings, REPLACED.format(changes=said)))
    every = " ".join(dict.fromkeys([*plan.settings.methods, *plan.kept]))
    methods = " and ".join(plan.kept)
    raise ConflictError(CONFLICT.format(folder=plan.settings.out_dir, methods=methods, changes=said, all=every))


def _preprocessing(plan: RunPlan) -> dict[str, str]:
    """Return what the preprocessed series depends on: how each step is done, and the state of the files."""
    from ..bids.store import digest, fingerprint

    run, settings, method = plan.run, plan.settings, plan.denoised_by
    done = {STEP_LABELS[name]: step.reason if step.active else NOT_DONE for name, step in plan.steps.items()
            if name in PREPROCESSING_STEPS}  # fmt: skip
    if plan.does("denoise") or (plan.denoiser == "none" and not (run.preprocessed or settings.skip_preprocessing)):
        done[DENOISING] = plan.denoiser
    if plan.does("denoise") and method:
        options = {**method.plan.options, "seed": settings.seed}
        how = [settings.size, settings.sampler_name, *(f"{key} {value}" for key, value in options.items())]
        done[DENOISING] = ", ".join([method.name, *how])
    assert run.bval is not None
    assert run.bvec is not None
    return (
        done
        | _beside(plan)
        | {
            "Volumes": f"{len(plan.table)}, b0s among them {int(plan.table.is_b0.sum())}",
            **dict(zip(FILE_STATES, (fingerprint(run.image), digest(run.bval), digest(run.bvec)), strict=True)),
        }
    )


def _beside(plan: RunPlan) -> dict[str, str]:
    """Return the state of what the preprocessed series depends on beside the run itself."""
    from ..bids.store import digest, fingerprint

    run, state = plan.run, {}
    if plan.does("susceptibility"):
        found = []
        if run.partner:
            found = [fingerprint(run.partner.image)]
            found += [f"b-values {digest(run.partner.bval)}"] if run.partner.bval else []
        elif run.fieldmap:
            found = [fingerprint(path) for path in (*run.fieldmap.images, run.fieldmap.magnitude)]
            found.append(f"echo times {run.fieldmap.echo_times_s}, units {run.fieldmap.units or 'of a phase'}")
        readout = "unknown" if run.readout_s is None else f"{run.readout_s:g} s"
        state["Correction images"] = "; ".join([*found, f"phase encoding {run.phase_encoding}", f"read-out {readout}"])
    if plan.does("normalize") and run.t1w:
        state["T1w image"] = fingerprint(run.t1w)
    return state


def _option_values(settings: Settings) -> dict:
    """Return the values of all options of all methods; directions as a number or as b-vectors."""
    values = dict(settings.method_options)
    for option in options():
        if option.kind is Directions:
            values[option.name] = directions_of(values[option.name])
    return values


def _planned(spec: MethodSpec, values: Mapping, header: Header) -> PlannedMethod:
    """Return the plan of a method on a run; `ScanError` where it cannot work on it."""
    if spec.in_template and min(header.shape[:3]) < MIN_SLICES:
        raise ScanError(NO_TEMPLATE.format(name=spec.name, found=min(header.shape[:3]), needed=MIN_SLICES))
    plan, finer_gb = spec.plan(values, header), 0.0
    if plan.edge_mm is not None:
        finer_gb = float(np.prod(header.shape)) * 4e-9 * float(np.prod(header.zooms_mm)) / plan.edge_mm**3
    fitted = plan.table if plan.fitted is None else plan.table[plan.fitted]
    return PlannedMethod(spec, plan, spec.gives_series and _maps(fitted).active, finer_gb)


def _inspect(run: Run, settings: Settings) -> tuple[Header, list[str]]:
    """Return header, gradient table and warnings of a run; raise where they do not describe a diffusion series."""
    from ..bids.tables import read_bvals, read_gradients
    from ..spatial.checks import check_first_volume
    from ..spatial.headers import check_header, series_shape
    from ..spatial.io import open_image

    assert run.bval is not None  # a run without a gradient table has a fault, and is not inspected
    assert run.bvec is not None
    image = open_image(run.image)
    try:
        shape = series_shape(image.shape, run.image, len(read_bvals(run.bval)))
    except ScanError as error:  # one volume may be the b0 that another run needs
        raise NoWeightingError(str(error)) if len(image.shape) == 3 else error from None
    gradients = read_gradients(run.bval, run.bvec, shape[3], settings.b0_threshold, settings.leave_out_trace)
    if not gradients.is_b0.any():
        raise ScanError(f"{run.bval}: " + NO_B0.format(threshold=settings.b0_threshold, lowest=gradients.bvals.min()))
    check_first_volume(image, run.image)
    zooms_mm = tuple(np.linalg.norm(image.affine[:3, :3], axis=0).tolist())
    warnings = check_header(image, run.image)
    loose = [gradients.bvals[volumes] for _, volumes in gradients.shells() if gradients.is_loose(volumes)]
    if loose:
        ranges = ", ".join(f"{bvals.min():.0f} to {bvals.max():.0f}" for bvals in loose)
        warnings.append(NO_SHELL.format(n=sum(map(len, loose)), ranges=ranges))
    if len(gradients) < shape[3]:
        warnings.append(TRACE_LEFT_OUT.format(n=shape[3] - len(gradients), total=shape[3]))
    return Header((*shape[:3], len(gradients)), zooms_mm, gradients), warnings


def _method_warnings(spec: MethodSpec, run: Run, header: Header) -> list[str]:
    """Return the warnings of a method about a run; its check needs only the header and the gradient table."""
    empty = np.zeros((1, 1, 1, header.shape[3]), np.float32)
    warnings = spec.check(Scan(empty, np.eye(4), header.gradients, np.ones((1, 1, 1), bool)))
    if run.preprocessed and spec.on_acquired:
        warnings.append(INTERPOLATED.format(title=spec.title))
    return warnings


def _steps(plan: RunPlan) -> dict[str, Step]:
    """Return every step with its reason, methods last, including methods that cannot work on the run."""
    run, settings, shape = plan.run, plan.settings, plan.shape
    flat = min(shape[:3]) < MIN_SLICES
    too_flat = f"the image has {min(shape[:3])} slices along one axis, registration needs {MIN_SLICES}"
    no_partner = None if run.partner or run.fieldmap else run.no_partner or "no partner"
    off = None
    if run.preprocessed:
        off = "the run is preprocessed already"
    elif settings.skip_preprocessing:
        off = "--skip-preprocessing"

    def step(wanted: bool, flag: str, how: str, obstacle: str | None = None) -> Step:
        reason = off or (None if wanted else flag) or obstacle
        return Step(reason is None, reason or how)

    default = replace(settings, methods=tuple(method.name for method in plan.methods)).denoiser
    stored = AS_STORED if plan.denoiser != default else ""
    steps = {
        "denoise": step(plan.denoiser != "none", f"--denoise none{stored}", f"{plan.denoiser}{stored}",
                        plan.refused.get(plan.denoiser) if _is_method(plan.denoiser) else None),
        "gibbs": step(settings.gibbs, "--no-gibbs", "sub-voxel shifts",
                      too_flat if min(shape[:2]) < MIN_SLICES else None),
        "susceptibility": step(settings.sdc, "--no-sdc", _partner(run),
                               no_partner or (too_flat if flat else None)),
        "motion": step(settings.motion, "--no-motion", _motion(run),
                       ONE_VOLUME if shape[3] == 1 else too_flat if flat else None),
        "bias": step(settings.bias, "--no-bias", "N4", too_flat if flat else None),
    }  # fmt: skip
    given_mask = run.mask is not None and not settings.skip_preprocessing
    steps["mask"] = Step(not given_mask, "given with the run" if given_mask else "from b0 and mean DWI")
    maps = _maps(plan.table)
    steps["normalize"] = Step(not flat, too_flat if flat else _normalization(run, maps.active))
    steps["maps"] = maps
    for method in plan.methods:
        grid = f", voxels of {method.plan.edge_mm:g} mm" if method.plan.edge_mm is not None else ""
        steps[method.name] = Step(True, f"{settings.size}, {settings.sampler_name} sampler{grid}")
    return steps | {name: Step(False, plan.refused[name]) for name in settings.methods if name in plan.refused}


def _partner(run: Run) -> str:
    """Return what corrects the susceptibility distortion of a run, and why this."""
    if run.fieldmap is not None:
        fieldmap = run.fieldmap
        declared = f"declared by {fieldmap.declared}" if fieldmap.declared else UNDECLARED_FIELD
        return f"from {' and '.join(image.name for image in fieldmap.images)} ({declared})"
    if run.partner is None:
        return ""
    declared = f"declared by {run.partner.declared}" if run.partner.declared else UNDECLARED
    no_table = "; it has no b-values: every volume counts as b0" * (not run.partner.bval)
    return f"from {run.partner.image.name} ({declared}{no_table})"


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


def _normalization(run: Run, fa: bool) -> str:
    if run.t1w:
        return f"b0 to {run.t1w.name}, T1w to template"
    return f"no T1w; b0{' and FA' * fa} to template"


def _outputs(plan: RunPlan, template: str) -> Iterator[Output]:
    """Yield every file that is promised."""

    def output(key: str, **fields: str) -> Output:
        return Output(key, fields, names.output_path(plan.run.entities, key, **fields))

    for key in ("preproc", "preproc_bval", "preproc_bvec", "dwiref", "mask", "coverage"):
        yield output(key)
    if plan.does("motion"):
        yield output("confounds")
    if plan.does("normalize"):
        for key in TRANSFORM_KEYS:
            yield output(key, template=template)
        if plan.run.t1w:
            yield output("to_t1w")
            yield output("from_t1w")
    if plan.does("maps"):
        for param in names.TENSOR_MAPS:
            yield output("map", param=param, source="preproc")
    for method in plan.methods:
        yield from _method_outputs(plan, method, output)
    compared = [method for method in plan.methods if RISH in method.spec.fits]
    if compared:
        yield from _rish_outputs(plan, compared, output)
    for edge in dict.fromkeys(method.grid["voxel_mm"] for method in plan.methods if method.grid):
        yield output("mask", voxel_mm=edge)
    if "template" in plan.settings.output_spaces and plan.does("normalize"):
        yield from _template_outputs(plan, template, output)
    yield output("metrics")


def _method_outputs(plan: RunPlan, method: PlannedMethod, output) -> Iterator[Output]:
    name, spec = method.name, method.spec
    origin = {"method": name, "title": spec.title}
    for param in spec.maps_of(plan.settings.size):
        yield output("map", param=param, source=name, **method.origin)
    for param in plan.uncertain(method):
        for key in ("map_std", "map_low", "map_high"):
            yield output(key, param=param, **origin)
    for number in plan.samples_of(method):
        for key in ("sample", "sample_bval", "sample_bvec") if spec.gives_series else ("map_sample",):
            yield output(key, number=number, **origin)
    for extra in spec.extra_maps:
        yield output("extra_map", param=extra.param, description=extra.description, units=extra.units, **origin)
    if not spec.gives_series:
        return
    for key in ("generated", "generated_bval", "generated_bvec"):
        yield output(key, **origin, **method.grid)
    if method.maps and TENSOR in spec.fits:
        for param in names.TENSOR_MAPS:
            yield output("map", param=param, source=name, **method.origin, **method.grid)


def _rish_outputs(plan: RunPlan, methods: Sequence[PlannedMethod], output) -> Iterator[Output]:
    """Yield the RISH maps before and after the methods that change these features."""
    from ..dwi.rish import rish_shell

    shell = rish_shell(plan.table)
    shell_fields = {"shell": f"{shell.bval:.0f}", "order": str(shell.order)}
    for source, grid in (("preproc", {}), *((method.name, method.grid) for method in methods)):
        for degree in shell.degrees:
            yield output("rish_map", param=f"rish{degree}", source=source, **shell_fields, **grid)


def _template_outputs(plan: RunPlan, template: str, output) -> Iterator[Output]:
    """Yield the outputs in the template's space: the mask, scalar maps, and series."""
    from ..spatial.templates import EMBEDDED_URL, find_template

    folder = plan.settings.template_dir
    where = {"template": template, "reference": find_template(folder).t1w.as_uri() if folder else EMBEDDED_URL}
    yield output("template_mask", **where)
    maps = {"preproc": tuple(names.TENSOR_MAPS) if plan.does("maps") else ()}
    for method in plan.methods:
        generated, fitted = method.spec.maps_of(plan.settings.size), tuple(names.TENSOR_MAPS) if method.maps else ()
        maps[method.name] = generated or fitted
    origins = {method.name: method.origin for method in plan.methods}
    for source, params in maps.items():
        for param in (p for p in names.SCALAR_MAPS if p in params):
            yield output("template_map", param=param, source=source, **where, **origins.get(source, {}))
    for method in (m for m in plan.methods if m.spec.in_template):
        for key in ("template_generated", "template_generated_bval", "template_generated_bvec"):
            yield output(key, method=method.name, title=method.spec.title, **where)


def describe(plan: RunPlan) -> list[str]:
    """Return the plan as lines for `--dry-run`."""
    lines = [plan.run.name]
    if plan.note:
        return [*lines, f"  {plan.note}"]
    if plan.fault:
        return [*lines, f"  cannot be processed: {plan.fault}", *(f"  {line}" for line in plan.trace.splitlines())]
    shells = ", ".join(f"{len(v)} at b={b:.0f}" for b, v in plan.table.shells())
    grid = "x".join(str(n) for n in plan.shape[:3])
    lines.append(f"  {grid}, {int(plan.table.is_b0.sum())} b0, {shells}")
    for name, step in plan.steps.items():
        lines.append(f"  {'does' if step.active else 'skips'} {name}: {step.reason}")
    lines += [f"  warning: {w}" for w in plan.warnings]
    return lines + [f"  writes {output.path.as_posix()}" for output in plan.outputs]
