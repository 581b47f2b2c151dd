"""The quality metrics of one run, as far as its files allow, with their definitions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..dwi.gradients import GradientError
from ..dwi.series import Scan
from ..dwi.tensor import design_matrix, fit_maps
from ..methods import REGISTRY, spec_of
from ..methods.spec import Definition
from ..spatial.similarity import dice, mutual_information, pearson
from . import iqm
from .metrics import describe_all
from .run_data import Missing, RunData
from .run_figures import MD_SCALE

SERIES_METRICS = ("ndc", "tensor_residual", "direction_contrast", "dwi_cnr")


def measure(run: RunData) -> dict[str, dict[str, Any]]:
    """Return the quality metrics that a run's files allow, as JSON entries (see `metrics.describe`).

    Raises
    ------
    Missing
        Where there is no preprocessed series or no brain mask.
    """
    scan = run.preproc
    values = iqm.acquisition(scan.gradients, scan.affine)
    entries = describe_all({**values, "mask_volume": iqm.mask_volume(scan.mask, scan.affine)})
    if scan.mask.any():  # all other metrics are computed in the mask
        entries |= describe_all(_run_metrics(run))
        for source in ["preproc", *run.methods()]:
            entries |= describe_all(_series_metrics(run, source), source, _definitions(source))
        for method in run.map_methods():
            entries |= describe_all(_method_map_metrics(run, method), method, _definitions(method))
        for source, values in _map_metrics(run).items():
            entries |= describe_all(_finite(values), source)
    earlier = run.files.earlier_metrics or {}
    return {**entries, **{key: entry for key, entry in earlier.items() if key not in entries}}


def _definitions(source: str) -> Mapping[str, Definition]:
    """Return the definitions of a method's own checks."""
    return spec_of(source).definitions if source in REGISTRY else {}


def _run_metrics(run: RunData) -> dict[str, float]:
    scan = run.preproc
    values: dict[str, float] = {}
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
            values[f"sdc_correlation_{when}"] = pearson(ours, theirs, scan.mask)
        if run.has(f"sdc_{when}", "t1w"):
            ours, theirs = run.volume(f"sdc_{when}"), run.volume("t1w")
            values[f"t1w_mutual_information_{when}"] = mutual_information(ours, theirs, scan.mask)
    return _finite(values)


def _series_metrics(run: RunData, source: str) -> dict[str, float]:
    """Return the metrics of the preprocessed series or of a generated one."""
    scan = run.preproc
    values: dict[str, float] = {}
    if source == "preproc":
        data, gradients = scan.data, scan.gradients
    else:
        data, gradients, _, record = run.generated(source)
        values |= _method_checks(record.get("Checks", {}), source)
        # One tensor does not describe all shells that a method generates from b0s.
        tensor_volumes = record.get("TensorVolumes", list(range(len(gradients))))
        data, gradients = data[..., tensor_volumes], gradients[tensor_volumes]
    values["ndc"] = iqm.neighbour_correlation(data, gradients, scan.mask)
    with contextlib.suppress(GradientError):  # raised where the table determines no tensor
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
            volumes, generated = run.left_out(source)
            values |= iqm.left_out_checks(scan.data[..., volumes], generated, scan.mask, run.sigma)
        values |= _uncertainty(run, source)
    return _finite(values)


def _method_checks(checks: dict, source: str) -> dict[str, float]:
    """Return a method's own checks; those named like a metric of every series get the prefix `own_`."""
    values = {}
    for key, value in checks.items():
        name = key.removeprefix(f"{source}_")
        if value is not None:
            values[f"own_{name}" if name in SERIES_METRICS else name] = float(value)
    return values


def _tensor_prediction(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Return the (X, Y, Z, N) signal of the tensor fitted to a scan, 0 outside its mask, and its b0."""
    maps = fit_maps(scan, names=("tensor", "s0"))
    design = design_matrix(scan.gradients.bvals, scan.gradients.world_directions(scan.affine))
    predicted = np.zeros(scan.data.shape, np.float32)
    # A fit to noise may have negative eigenvalues; the predicted signal is limited to the b0.
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


def _method_map_metrics(run: RunData, method: str) -> dict[str, float]:
    """Return the checks of a method that generated maps, and their uncertainty."""
    values, mask = _method_checks(run.record(method).get("Checks", {}), method), run.preproc.mask
    with contextlib.suppress(Missing):
        check, sigma = run.tensor_check(method), run.required_sigma()
        for key, left in (("data_residual", check.generated), ("data_residual_fit", check.fitted)):
            values[key] = float(np.sqrt((left[mask].astype(np.float64) ** 2).mean()) / sigma)
    return _finite(values | _uncertainty(run, method))


def _uncertainty(run: RunData, method: str) -> dict[str, float]:
    """Return the medians of the standard errors of FA and MD; nothing where no samples were drawn."""
    try:
        errors = run.uncertainty(method)
    except Missing:
        return {}
    scales = {"fa": 1.0, "md": MD_SCALE}
    return {f"{kind}_error": float(scales[kind] * np.median(e[run.preproc.mask])) for kind, (_, e) in errors.items()}


def _finite(values: dict[str, float]) -> dict[str, float]:
    """Return the metrics without those that could not be computed."""
    return {key: value for key, value in values.items() if np.isfinite(value)}
