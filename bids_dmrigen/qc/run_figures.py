"""The list of figures of one run, and the files that each is drawn from."""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..bids.names import TENSOR_MAPS
from ..diffusion.storage import write_text
from ..spatial.io import read_image
from . import comparison, figures, iqm
from .run_data import ONLY_B0S, Missing, RunData

MD_SCALE, MD_UNIT = 1e3, "10⁻³ mm²/s"
Drawing = tuple[str, str, Callable[[Path], object]]


def draw_figures(run: RunData, folder: Path) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Draw every figure that the run's files allow; `skipped.html` in the folder says which are missing and why.

    Returns
    -------
    figures
        Key and file of each figure.
    skipped
        Title of each missing figure -> why it is missing.
    """
    drawn, skipped = [], {}
    for key, title, draw in figure_list(run):
        path = folder / f"{key}.svg"
        try:
            draw(path)
        except Missing as reason:
            skipped[title] = str(reason)
        except Exception as error:
            # A failed figure must not stop the run; the report says that it failed.
            traceback.print_exc()
            skipped[title] = f"drawing failed: {error}"
        else:
            drawn.append((key, str(path)))
    items = [f"<li>{html.escape(title)}: {html.escape(why)}</li>" for title, why in skipped.items()]
    items += run.files.earlier_skipped
    if items:
        drawn.append(("skipped", str(write_text(folder / "skipped.html", f"<ul>{''.join(items)}</ul>\n"))))
    return drawn, skipped


def figure_list(run: RunData) -> list[Drawing]:
    """Return (key, title, draw) of every figure of this run, in the order of the report."""
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
    if run.has("field_magnitude"):
        drawings.insert(5, ("fieldmap", "Alignment with the field map", lambda path: _draw_field_map(run, path)))
    for method in run.methods():
        drawings += _method_figures(run, method)
    for method in (*run.methods(), *run.map_methods()):
        if run.extra(method):
            drawings.append((f"extra{method}", f"{method}: further maps", partial(_draw_extra, run, method)))
    for method in run.map_methods():  # their maps are compared with those of the classical fit
        drawings += [
            (f"tensorcheck{method}", f"{method}: a check against the data", partial(_draw_check, run, method)),
            (f"volumecheck{method}", f"{method}: each acquired volume", partial(_draw_volumes, run, method)),
            (f"uncertainty{method}", f"{method}: uncertainty of the maps", partial(_draw_uncertainty, run, method)),
        ]

    def draw_maps(path: Path) -> None:
        run.need("fa")
        generated_sources = frozenset(s for s in run.files.map_sources if s != "preproc" or run.files.preproc_generated)
        dec = run.maps("dec") if run.has("dec") else {}
        scan = run.preproc
        comparison.fractional_anisotropy(run.maps("fa"), dec, scan.affine, scan.mask, path, generated_sources)

    drawings.append(("fa", "Fractional anisotropy", draw_maps))
    drawings.append(
        (
            "fahistogram",
            "FA histogram",
            lambda path: comparison.fa_histogram(run.maps("fa"), run.preproc.mask, path),
        )
    )
    return drawings


def _draw_acquisition(run: RunData, path: Path) -> None:
    scan = run.raw if run.has("raw") else run.preproc
    if scan.gradients.is_b0.all():
        raise Missing(ONLY_B0S)
    figures.acquisition(scan.gradients, scan.affine, path)


def _draw_outliers(run: RunData, path: Path) -> None:
    scan = run.raw_in_mask
    scores, dropouts = iqm.slice_scores(scan.data, scan.gradients, scan.mask)
    if not np.isfinite(scores).any():
        raise Missing("no shell of at least 4 volumes")
    figures.slice_outliers(scores, dropouts, scan.gradients, path, iqm.DROPOUT_Z)


def _draw_motion(run: RunData, path: Path) -> None:
    table = run.confounds
    figures.motion(table[:, :3], np.degrees(table[:, 3:6]), table[:, 6], path)


def _draw_carpet(run: RunData, path: Path) -> None:
    scan = run.preproc
    if len(scan.gradients) == 1:
        raise Missing("the series has one volume")
    figures.carpet(scan.data, scan.gradients, scan.mask, path, "Preprocessed signal of every voxel over the volumes")


def _draw_sdc(run: RunData, path: Path) -> None:
    before, after = run.volume("sdc_before"), run.volume("sdc_after")
    names, scan = ("before", "after"), run.preproc
    figures.flicker(before, after, scan.affine, scan.mask, names, "Susceptibility correction", path, shared_scale=True)


def _draw_field_map(run: RunData, path: Path) -> None:
    after, magnitude, scan = run.volume("sdc_after"), run.volume("field_magnitude"), run.preproc
    figures.flicker(after, magnitude, scan.affine, scan.mask, ("b0", "magnitude"), "Alignment with the field map", path)


def _draw_mask(run: RunData, path: Path) -> None:
    figures.mask_contours(run.b0, run.preproc.mask, run.preproc.affine, path)


def _draw_t1w(run: RunData, path: Path) -> None:
    t1w, scan = run.volume("t1w"), run.preproc
    figures.flicker(run.b0, t1w, scan.affine, scan.mask, ("b0", "T1w"), "Registration to T1w", path)


def _draw_template(run: RunData, path: Path) -> None:
    run.need("dwiref_in_template", "template")
    moved, image = read_image(str(run.files.dwiref_in_template))
    template, name = run.volume("template"), run.files.template_name
    brain = run.volume("template_mask") > 0.5 if run.has("template_mask") else template > 0
    figures.flicker(moved, template, image.affine, brain, ("b0", name), f"Registration to {name}", path)


def _draw_check(run: RunData, method: str, path: Path) -> None:
    scan, check = run.preproc, run.tensor_check(method)
    comparison.tensor_check(check, run.required_sigma(), scan.affine, scan.mask, method, path)


def _draw_volumes(run: RunData, method: str, path: Path) -> None:
    scan, check = run.preproc, run.tensor_check(method)
    comparison.volume_check(check, run.required_sigma(), scan.gradients.bvals, scan.mask, method, path)


def _draw_uncertainty(run: RunData, method: str, path: Path) -> None:
    images = {}
    for kind, (best, error) in run.uncertainty(method).items():
        scale, unit = (MD_SCALE, MD_UNIT) if kind == "md" else (1.0, TENSOR_MAPS[kind])
        images[TENSOR_MAPS[kind]] = scale * best, scale * error, unit
    comparison.uncertainty(images, run.preproc.affine, run.preproc.mask, method, path)


def _draw_extra(run: RunData, method: str, path: Path) -> None:
    comparison.extra(run.extra(method), run.preproc.affine, run.preproc.mask, method, path)


def _draw_input_output(run: RunData, method: str, path: Path) -> None:
    scan = run.preproc
    data, gradients, is_generated, _ = run.generated(method)
    if scan.gradients.is_b0.all():
        raise Missing(ONLY_B0S)
    comparison.input_output(
        scan.data,
        scan.gradients,
        data,
        gradients,
        is_generated,
        scan.affine,
        scan.mask,
        method,
        path,
        comparison.GENERATED if run.files.preproc_generated else comparison.ACQUIRED,
    )


def _draw_added(run: RunData, method: str, path: Path) -> None:
    _, gradients, is_generated, _ = run.generated(method)
    if is_generated[~gradients.is_b0].all() and not run.preproc.gradients.is_b0.all():
        raise Missing("every volume was generated again, none was added")
    figures.added_directions(gradients, is_generated, run.preproc.affine, path)


def _draw_left_out(run: RunData, method: str, path: Path) -> None:
    scan, (volumes, mean) = run.preproc, run.left_out(method)
    labels = [f"volume {v}\nb = {scan.gradients.bvals[v]:.0f}" for v in volumes]
    comparison.left_out(scan.data[..., volumes], mean, labels, scan.affine, scan.mask, method, path)


def _draw_residual(run: RunData, method: str, path: Path) -> None:
    scan = run.preproc
    comparison.residual(run.removed(method), run.required_sigma(), scan.affine, scan.mask, method, path)


def _draw_histogram(run: RunData, method: str, path: Path) -> None:
    removed = run.removed(method)
    comparison.residual_histogram(removed, run.required_sigma(), run.preproc.mask, method, path)


def _draw_rish(run: RunData, method: str, path: Path) -> None:
    (before, after), scan = run.rish(method), run.preproc
    provenance = comparison.GENERATED if run.files.preproc_generated else comparison.ACQUIRED
    comparison.rish(before, after, scan.affine, scan.mask, method, path, provenance)


def _method_figures(run: RunData, method: str) -> list[Drawing]:
    """Return the figures of one method's series."""
    changed = run.has("rish_methods") and method in run.files.rish_methods
    strengths = [(f"rish{method}", f"{method}: RISH features", partial(_draw_rish, run, method))] if changed else []
    return [
        (f"inputoutput{method}", f"{method}: acquired against generated", partial(_draw_input_output, run, method)),
        (f"added{method}", f"{method}: added directions", partial(_draw_added, run, method)),
        (f"leftout{method}", f"{method}: directions left out", partial(_draw_left_out, run, method)),
        (f"residual{method}", f"{method}: input minus output", partial(_draw_residual, run, method)),
        (f"histogram{method}", f"{method}: distribution of the residual", partial(_draw_histogram, run, method)),
        (f"uncertainty{method}", f"{method}: uncertainty of the maps", partial(_draw_uncertainty, run, method)),
        *strengths,
    ]
