"""Report figures and quality metrics of a run: files in, `qc` called, files out; absent ones are skipped."""

from __future__ import annotations

import contextlib
import html
import json
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, traits

from ..dwi.gradients import GradientError
from ..dwi.series import Scan
from ..qc.run_data import ONLY_B0S, Missing, RunData, RunInput
from ..spatial.io import read_image

MD_SCALE, MD_UNIT = 1e3, "10⁻³ mm²/s"
SERIES_METRICS = ("ndc", "tensor_residual", "direction_contrast", "dwi_cnr", "sample_spread")


class _RunFiguresOutput(TraitedSpec):
    figures = traits.List(traits.Tuple(traits.Str, File(exists=True)), desc="(key of the figure, file)")
    skipped = traits.Dict(traits.Str, traits.Str, desc="figure -> why it is not there")


class RunFigures(SimpleInterface):
    """Draw every figure that the inputs allow; `skipped.html` says which are missing and why."""

    input_spec = RunInput
    output_spec = _RunFiguresOutput

    def _run_interface(self, runtime):
        run, cwd = RunData(self.inputs), Path(runtime.cwd)
        figures, skipped = [], {}
        for key, title, draw in _figure_list(run):
            path = cwd / f"{key}.svg"
            try:
                draw(path)
            except Missing as reason:
                skipped[title] = str(reason)
            except Exception as error:
                # A figure that cannot be drawn must not cost the run its results; the report says so.
                traceback.print_exc()
                skipped[title] = f"drawing failed: {error}"
            else:
                figures.append((key, str(path)))
        if skipped:
            items = "".join(f"<li>{html.escape(title)}: {html.escape(why)}</li>" for title, why in skipped.items())
            (cwd / "skipped.html").write_text(f"<ul>{items}</ul>\n", encoding="utf-8")
            figures.append(("skipped", str(cwd / "skipped.html")))
        self._results["figures"], self._results["skipped"] = figures, skipped
        return runtime


Drawing = tuple[str, str, Callable[[Path], object]]


def _figure_list(run: RunData) -> list[Drawing]:
    """Return (key, title, draw) of every figure of this run, in the order of the report."""
    from ..qc import comparison

    drawings: list[Drawing] = [
        ("acquisition", "Sampling scheme", lambda path: _draw_acquisition(run, path)),
        ("outliers", "Slice-wise outliers", lambda path: _draw_outliers(run, path)),
        ("motion", "Head motion", lambda path: _draw_motion(run, path)),
        ("carpet", "Signal of every voxel", lambda path: _draw_carpet(run, path)),
        ("sdc", "Susceptibility correction", lambda path: _draw_sdc(run, path)),
        ("mask", "Brain mask", lambda path: _draw_mask(run, path)),
        ("registrationT1w", "Registration to T1w", lambda path: _draw_t1w(run, path)),
        ("registrationtemplate", "Registration to the template", lambda path: _draw_template(run, path)),
    ]
    for method in run.methods():
        drawings += _method_figures(run, method)
    for method in run.map_methods():  # its maps stand beside the classical ones
        drawings += [
            (f"tensorcheck{method}", f"{method}: a check against the data", partial(_draw_check, run, method)),
            (f"volumecheck{method}", f"{method}: each acquired volume", partial(_draw_volumes, run, method)),
            (f"spread{method}", f"{method}: spread of the samples", partial(_draw_map_spread, run, method)),
        ]

    def draw_maps(path):
        made = frozenset(s for s in run.inputs.map_sources if s != "preproc" or run.inputs.preproc_generated)
        dec = run.maps("dec") if run.has("dec") else {}
        scan = run.preproc
        comparison.fractional_anisotropy(run.maps("fa"), dec, scan.affine, scan.mask, path, made)

    drawings.append(("fa", "Fractional anisotropy", lambda path: (run.need("fa"), draw_maps(path))))
    drawings.append(
        (
            "fahistogram",
            "FA histogram",
            lambda path: comparison.fa_histogram(run.maps("fa"), run.preproc.mask, path),
        )
    )
    return drawings


def _draw_acquisition(run: RunData, path: Path) -> None:
    from ..qc import figures

    scan = run.raw if run.has("raw") else run.preproc
    if scan.gradients.is_b0.all():
        raise Missing(ONLY_B0S)
    figures.acquisition(scan.gradients, scan.affine, path)


def _draw_outliers(run: RunData, path: Path) -> None:
    from ..qc import figures, iqm

    scan = run.raw_in_mask
    scores, dropouts = iqm.slice_scores(scan.data, scan.gradients, scan.mask)
    if not np.isfinite(scores).any():
        raise Missing("no shell of at least 4 volumes")
    figures.slice_outliers(scores, dropouts, scan.gradients, path, iqm.DROPOUT_Z)


def _draw_motion(run: RunData, path: Path) -> None:
    from ..qc import figures

    table = run.confounds
    figures.motion(table[:, :3], np.degrees(table[:, 3:6]), table[:, 6], path)


def _draw_carpet(run: RunData, path: Path) -> None:
    from ..qc import figures

    scan = run.preproc
    if len(scan.gradients) == 1:
        raise Missing("the series has one volume")
    figures.carpet(scan.data, scan.gradients, scan.mask, path, "Preprocessed signal of every voxel over the volumes")


def _draw_sdc(run: RunData, path: Path) -> None:
    from ..qc import figures

    before, after = run.volume("sdc_before"), run.volume("sdc_after")
    names, scan = ("before", "after"), run.preproc
    figures.flicker(before, after, scan.affine, scan.mask, names, "Susceptibility correction", path, shared_scale=True)


def _draw_mask(run: RunData, path: Path) -> None:
    from ..qc import figures

    figures.mask_contours(run.b0, run.preproc.mask, run.preproc.affine, path)


def _draw_t1w(run: RunData, path: Path) -> None:
    from ..qc import figures

    t1w, scan = run.volume("t1w"), run.preproc
    figures.flicker(run.b0, t1w, scan.affine, scan.mask, ("b0", "T1w"), "Registration to T1w", path)


def _draw_template(run: RunData, path: Path) -> None:
    from ..qc import figures

    run.need("dwiref_in_template", "template")
    moved, image = read_image(run.inputs.dwiref_in_template)
    template, name = run.volume("template"), run.inputs.template_name
    brain = run.volume("template_mask") > 0.5 if run.has("template_mask") else template > 0
    figures.flicker(moved, template, image.affine, brain, ("b0", name), f"Registration to {name}", path)


def _draw_check(run: RunData, method: str, path: Path) -> None:
    from ..qc import comparison

    scan, check = run.preproc, run.tensor_check(method)
    comparison.tensor_check(check, run.known_sigma(), scan.affine, scan.mask, method, path)


def _draw_volumes(run: RunData, method: str, path: Path) -> None:
    from ..qc import comparison

    scan, check = run.preproc, run.tensor_check(method)
    comparison.volume_check(check, run.known_sigma(), scan.gradients.bvals, scan.mask, method, path)


def _draw_map_spread(run: RunData, method: str, path: Path) -> None:
    from ..bids.names import TENSOR_MAPS
    from ..qc import comparison

    images = {}
    for kind, (mean, std) in run.map_spread(method).items():
        scale, unit = (MD_SCALE, MD_UNIT) if kind == "md" else (1.0, TENSOR_MAPS[kind])
        images[TENSOR_MAPS[kind]] = scale * mean, scale * std, unit
    comparison.spread(images, run.preproc.affine, run.preproc.mask, method, path)


def _method_figures(run: RunData, method: str) -> list[Drawing]:
    from ..qc import comparison, figures

    def input_output(path):
        scan = run.preproc
        data, gradients, made, _ = run.generated(method)
        if scan.gradients.is_b0.all():
            raise Missing(ONLY_B0S)
        comparison.input_output(
            scan.data,
            scan.gradients,
            data,
            gradients,
            made,
            scan.affine,
            scan.mask,
            method,
            path,
            comparison.GENERATED if run.inputs.preproc_generated else comparison.ACQUIRED,
        )

    def added(path):
        _, gradients, made, _ = run.generated(method)
        if made[~gradients.is_b0].all() and not run.preproc.gradients.is_b0.all():
            raise Missing("every volume was made anew, none was added")
        figures.added_directions(gradients, made, run.preproc.affine, path)

    def left_out(path):
        scan, (volumes, mean) = run.preproc, run.left_out(method)
        labels = [f"volume {v}\nb = {scan.gradients.bvals[v]:.0f}" for v in volumes]
        comparison.left_out(scan.data[..., volumes], mean, labels, scan.affine, scan.mask, method, path)

    def residual(path):
        scan = run.preproc
        comparison.residual(run.removed(method), run.known_sigma(), scan.affine, scan.mask, method, path)

    def histogram(path):
        removed = run.removed(method)
        comparison.residual_histogram(removed, run.known_sigma(), run.preproc.mask, method, path)

    def spread(path):
        std, scan = run.spread(method), run.preproc
        data, gradients, made, _ = run.generated(method)
        shown = made & ~gradients.is_b0
        images = {"signal": (data[..., shown].mean(axis=3), std[..., shown].mean(axis=3), "signal")}
        comparison.spread(images, scan.affine, scan.mask, method, path)

    def rish(path):
        before, after = ([read_image(file)[0] for file in files] for files in (run.inputs.rish_before, rish_after))
        scan = run.preproc
        provenance = comparison.GENERATED if run.inputs.preproc_generated else comparison.ACQUIRED
        comparison.rish(before, after, scan.affine, scan.mask, method, path, provenance)

    rish_after = run.inputs.rish_after if method == "rishldm" and run.has("rish_after") else []
    strengths = [(f"rish{method}", f"{method}: RISH features", rish)] if rish_after else []
    return [
        (f"inputoutput{method}", f"{method}: acquired against generated", input_output),
        (f"added{method}", f"{method}: added directions", added),
        (f"leftout{method}", f"{method}: directions left out", left_out),
        (f"residual{method}", f"{method}: input minus output", residual),
        (f"histogram{method}", f"{method}: distribution of the residual", histogram),
        (f"spread{method}", f"{method}: spread of the samples", spread),
        *strengths,
    ]


class _QualityMetricsOutput(TraitedSpec):
    out_metrics = File(exists=True, desc="JSON: every number with unit, definition and better direction")


class QualityMetrics(SimpleInterface):
    """Measure a run; what the inputs do not allow is left out."""

    input_spec = RunInput
    output_spec = _QualityMetricsOutput

    def _run_interface(self, runtime):
        from ..qc import iqm
        from ..qc.metrics import describe_all

        run = RunData(self.inputs)
        scan = run.preproc
        values = iqm.acquisition(scan.gradients, scan.affine)
        entries = describe_all({**values, "mask_volume": iqm.mask_volume(scan.mask, scan.affine)})
        if scan.mask.any():  # all else is measured in it
            entries |= describe_all(_run_metrics(run))
            for source in ["preproc", *run.methods()]:
                entries |= describe_all(_series_metrics(run, source), source)
            for method in run.map_methods():
                entries |= describe_all(_own_map_metrics(run, method), method)
            for source, values in _map_metrics(run).items():
                entries |= describe_all(_known(values), source)
        path = Path(runtime.cwd) / "metrics.json"
        path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._results["out_metrics"] = str(path)
        return runtime


def _run_metrics(run: RunData) -> dict[str, float]:
    from ..qc import iqm
    from ..qc.metrics import dice

    scan, values = run.preproc, {}
    if run.sigma:
        values["noise_sigma"] = run.sigma
        values |= iqm.signal_to_noise(scan.data, scan.gradients, scan.mask, run.sigma)
    if run.has("raw"):
        try:
            raw = run.raw_in_mask
        except Missing:
            raw = None
        if raw is not None:
            values["dropout_fraction"] = iqm.dropout_fraction(*iqm.slice_scores(raw.data, raw.gradients, raw.mask))
    if run.has("confounds"):
        displacement = run.confounds[:, 6]
        displacement = displacement[np.isfinite(displacement)]  # the first volume has none
        if displacement.size:
            values |= {"mean_fd": float(displacement.mean()), "max_fd": float(displacement.max())}
    if run.has("mask_in_template", "template_mask"):
        values["registration_dice"] = dice(run.volume("mask_in_template") > 0.5, run.volume("template_mask") > 0.5)
    for when in ("before", "after"):
        if run.has(f"sdc_{when}", f"reverse_{when}"):
            ours, theirs = run.volume(f"sdc_{when}"), run.volume(f"reverse_{when}")
            values[f"sdc_correlation_{when}"] = iqm.pearson(ours, theirs, scan.mask)
        if run.has(f"sdc_{when}", "t1w"):
            ours, theirs = run.volume(f"sdc_{when}"), run.volume("t1w")
            values[f"t1w_mutual_information_{when}"] = iqm.mutual_information(ours, theirs, scan.mask)
    return _known(values)


def _series_metrics(run: RunData, source: str) -> dict[str, float]:
    """Return the metrics of the preprocessed series or of one that a method made."""
    from ..qc import iqm

    scan, values = run.preproc, {}
    if source == "preproc":
        data, gradients = scan.data, scan.gradients
    else:
        data, gradients, _, record = run.generated(source)
        values |= _own_checks(record.get("Checks", {}), source)
        own = record.get("TensorVolumes", list(range(len(gradients))))  # shells made from b0s are no one tensor's
        data, gradients = data[..., own], gradients[own]
    values["ndc"] = iqm.neighbour_correlation(data, gradients, scan.mask)
    with contextlib.suppress(GradientError):  # where the table determines no tensor
        predicted, s0 = _tensor_prediction(Scan(data, scan.affine, gradients, scan.mask))
        values["tensor_residual"] = iqm.tensor_residual(data, predicted, s0, scan.mask)
        varying, mean = iqm.direction_signal(data, predicted, gradients, scan.mask)
        values["direction_contrast"] = varying / mean
        if source == "preproc" and run.sigma:
            values["dwi_cnr"] = varying / run.sigma
    if source != "preproc":
        with contextlib.suppress(Missing):
            values |= iqm.residual_checks(run.removed(source), run.b0, scan.mask, run.sigma)
        with contextlib.suppress(Missing):
            volumes, mean = run.left_out(source)
            values |= iqm.left_out_checks(scan.data[..., volumes], mean, scan.mask, run.sigma)
        with contextlib.suppress(Missing):
            std = run.spread(source)
            inside = scan.mask & (data.mean(axis=3) > 0)
            values["sample_spread"] = float(100 * np.median(std[inside].mean(axis=1) / data[inside].mean(axis=1)))
    return _known(values)


def _own_checks(checks: dict, source: str) -> dict[str, float]:
    """Return a method's own checks under names that do not hide a metric that every series has."""
    values = {}
    for key, value in checks.items():
        name = key.removeprefix(f"{source}_")
        if value is not None:
            values[f"own_{name}" if name in SERIES_METRICS else name] = float(value)
    return values


def _tensor_prediction(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Return the (X, Y, Z, N) signal of the tensor fitted to a scan, 0 outside its mask, and its b0."""
    from ..dwi.tensor import design_matrix, fit_maps

    maps = fit_maps(scan, names=("tensor", "s0"))
    design = design_matrix(scan.gradients.bvals, scan.gradients.world_directions(scan.affine))
    predicted = np.zeros(scan.data.shape, np.float32)
    # A fit to noise may have negative eigenvalues: no direction raises the signal above the b0.
    exponent = np.minimum(maps["tensor"][scan.mask] @ design[:, :6].T, 0)
    predicted[scan.mask] = maps["s0"][scan.mask][:, None] * np.exp(exponent)
    return predicted, maps["s0"]


def _map_metrics(run: RunData) -> dict[str, dict[str, float]]:
    if not run.has("map_sources", "fa"):
        return {}
    mask, fa = run.preproc.mask, run.maps("fa")
    values = {source: {"fa_median": float(np.median(volume[mask]))} for source, volume in fa.items()}
    if run.has("md"):
        for source, volume in run.maps("md").items():
            values[source]["md_median"] = float(MD_SCALE * np.median(volume[mask]))
    for source, volume in fa.items():
        if source != "preproc" and "preproc" in fa:
            values[source]["fa_difference"] = float(np.abs(volume - fa["preproc"])[mask].mean())
    return values


def _own_map_metrics(run: RunData, method: str) -> dict[str, float]:
    """Return the checks of a method that made maps, and how much its samples differ."""
    values, mask = _own_checks(run.record(method).get("Checks", {}), method), run.preproc.mask
    with contextlib.suppress(Missing):
        check, sigma = run.tensor_check(method), run.known_sigma()
        for key, left in (("data_residual", check.generated), ("data_residual_fit", check.fitted)):
            values[key] = float(np.sqrt((left[mask].astype(np.float64) ** 2).mean()) / sigma)
    with contextlib.suppress(Missing):
        spread = run.map_spread(method)
        values["fa_spread"] = float(np.median(spread["fa"][1][mask]))
        values["md_spread"] = float(np.median(spread["md"][1][mask]) * MD_SCALE)
    return _known(values)


def _known(values: dict[str, float]) -> dict[str, float]:
    """Leave out what could not be measured."""
    return {key: value for key, value in values.items() if np.isfinite(value)}
