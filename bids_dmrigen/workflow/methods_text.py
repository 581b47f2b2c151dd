"""The methods text of a publication, from the steps that were done, and its references."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..bids.run import Run
from ..methods import REGISTRY, spec_of
from ..methods.spec import RISH, Citation, MethodSpec
from ..qc.report import RunRecord
from ..spatial.in_template import DEFAULTS
from .plan import RunPlan
from .settings import Settings


def _reference(key: str, author: str, year: int, title: str, journal: str, doi: str) -> Citation:
    text = f"{author} ({year}). {title}. {journal}. doi:{doi}"
    fields = {"author": author, "year": year, "title": title, "journal": journal, "doi": doi}
    body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return Citation(key, text, f"@article{{{key},\n{body}}}\n")


# A paper that a method cites (mni: the atlas) is not repeated here: `citations` knows both.
REFERENCES = {
    citation.key: citation
    for citation in (
        _reference("nipype", "Gorgolewski K et al.", 2011,
                   "Nipype: a flexible, lightweight and extensible neuroimaging data processing framework in Python",
                   "Frontiers in Neuroinformatics 5:13", "10.3389/fninf.2011.00013"),
        _reference("pybids", "Yarkoni T et al.", 2019, "PyBIDS: Python tools for BIDS datasets",
                   "Journal of Open Source Software 4:1294", "10.21105/joss.01294"),
        _reference("dipy", "Garyfallidis E et al.", 2014,
                   "Dipy, a library for the analysis of diffusion MRI data",
                   "Frontiers in Neuroinformatics 8:8", "10.3389/fninf.2014.00008"),
        _reference("ants", "Avants BB et al.", 2008,
                   "Symmetric diffeomorphic image registration with cross-correlation",
                   "Medical Image Analysis 12:26-41", "10.1016/j.media.2007.06.004"),
        _reference("mppca", "Veraart J et al.", 2016, "Denoising of diffusion MRI using random matrix theory",
                   "NeuroImage 142:394-406", "10.1016/j.neuroimage.2016.08.016"),
        _reference("patch2self", "Fadnavis S et al.", 2020,
                   "Patch2Self: denoising diffusion MRI with self-supervised learning",
                   "Advances in Neural Information Processing Systems 33", "10.48550/arXiv.2011.01355"),
        _reference("gibbs", "Kellner E et al.", 2016,
                   "Gibbs-ringing artifact removal based on local subvoxel-shifts",
                   "Magnetic Resonance in Medicine 76:1574-1581", "10.1002/mrm.26054"),
        _reference("reversed", "Andersson JLR et al.", 2003,
                   "How to correct susceptibility distortions in spin-echo echo-planar images",
                   "NeuroImage 20:870-888", "10.1016/S1053-8119(03)00336-7"),
        _reference("fieldmap", "Jezzard P, Balaban RS", 1995,
                   "Correction for geometric distortion in echo planar images from B0 field variations",
                   "Magnetic Resonance in Medicine 34:65-73", "10.1002/mrm.1910340111"),
        _reference("unwrap", "Herráez MA et al.", 2002,
                   "Fast two-dimensional phase-unwrapping algorithm based on sorting by reliability following a "
                   "noncontinuous path",
                   "Applied Optics 41:7437-7444", "10.1364/AO.41.007437"),
        _reference("unwrap3d", "Abdul-Rahman H et al.", 2005,
                   "Fast three-dimensional phase-unwrapping algorithm based on sorting by reliability following a "
                   "non-continuous path",
                   "Proceedings of SPIE 5856:32", "10.1117/12.611415"),
        _reference("fd", "Power JD et al.", 2012,
                   "Spurious but systematic correlations in functional connectivity MRI networks arise from "
                   "subject motion",
                   "NeuroImage 59:2142-2154", "10.1016/j.neuroimage.2011.10.018"),
        _reference("n4", "Tustison NJ et al.", 2010, "N4ITK: improved N3 bias correction",
                   "IEEE Transactions on Medical Imaging 29:1310-1320", "10.1109/TMI.2010.2046908"),
        _reference("tensor", "Basser PJ et al.", 1994, "MR diffusion tensor spectroscopy and imaging",
                   "Biophysical Journal 66:259-267", "10.1016/S0006-3495(94)80775-1"),
        _reference("wls", "Veraart J et al.", 2013,
                   "Weighted linear least squares estimation of diffusion MRI parameters: "
                   "strengths, limitations, and pitfalls",
                   "NeuroImage 81:335-346", "10.1016/j.neuroimage.2013.05.028"),
    )
}  # fmt: skip

SOFTWARE = (
    f"Results were made with bids_dmrigen {__version__}, a BIDS App built on Nipype [nipype], PyBIDS [pybids], "
    "DIPY [dipy] and ANTs [ants]."
)
NOTHING_DONE = "No run could be processed."
# step -> sentence; the keys in brackets are references
DENOISED = {
    "mppca": "The series was denoised by Marchenko-Pastur principal component analysis [mppca; dipy].",
    "patch2self": "The series was denoised with Patch2Self [patch2self; dipy].",
}
SENTENCES = {
    "gibbs": "Gibbs ringing was removed by local sub-voxel shifts [gibbs].",
    "susceptibility": "Susceptibility distortion was estimated from a pair of b0 images with opposite phase encoding "
    "as a displacement along the phase-encoding axis [reversed], with intensity modulation.",
    "fieldmap": "Susceptibility distortion was computed from {what}: the field was smoothed and its magnitude image "
    "registered rigidly to the corrected b0 [ants], and the field times the read-out time is the displacement along "
    "the phase-encoding axis [fieldmap], with intensity modulation.",
    "motion": "Head motion was corrected by registering every volume rigidly within its own shell, first to a single "
    "volume, then to the shell's mean and, in shells of eight or more volumes, to what the others predict for its "
    "direction, and each shell's mean to that of the b0 images [ants]; the b-vectors were turned accordingly, and "
    "framewise displacement was computed [fd].",
    "eddy": "Eddy currents were corrected along the phase-encoding axis{where}, by the shears and the scale that "
    "registration found and the diffusion gradients predict.",
    "no_eddy": "Eddy currents were not corrected: the phase-encoding axis is unknown.",
    "bias": "The bias field was estimated on the mean b0 with N4 [n4] and divided out of every volume.",
}
FIBRES = "Its fibre directions were the {default}."
GIVEN_FIBRES = "Its fibre directions were those of {name}, given with --fibre-dir; cite their source."
METHOD = "{title} {summary} [{key}]. Its {what}: seed {seed}, network size {size}, sampler {sampler}.{uncertainty}"
UNCERTAIN = " The uncertainty of its scalar maps comes from {samples} samples."
MAPS_ARE, SERIES_ARE = "maps are synthetic data, not a tensor fit", "outputs are synthetic data"
RISH_MAPS = (
    "Rotation-invariant features of each degree of the signal's spherical harmonics were mapped by a regularised fit "
    "to the shell nearest to b = 1000 s/mm² [mirzaalian2016; descoteaux2007]."
)
UNWRAPPED = ", unwrapped with scikit-image [unwrap; unwrap3d] and divided by the time between the echoes"
FIELD_MAPS = {  # kind -> what was used
    "phasediff": "a map of the phase difference between two gradient echoes" + UNWRAPPED,
    "phases": "the difference between the phases of two gradient echoes" + UNWRAPPED,
    "fieldmap": "a measured map of the magnetic field",
}
INTERPOLATED_ONCE = "All transforms were composed and applied in one interpolation."


def paragraphs(plans: Sequence[RunPlan]) -> list[str]:
    """Return the methods text of some runs as paragraphs, with [key; key] where a reference belongs.

    A step is described where at least one run had it.
    """
    sound = [plan for plan in plans if not plan.fault]

    def in_any_run(step: str) -> bool:
        return any(plan.does(step) for plan in sound)

    text = [SOFTWARE]
    if not sound:
        return [*text, NOTHING_DONE]
    steps: list[str] = []
    # The denoiser of a run depends on the methods that can work on it.
    denoised = [plan for plan in sound if plan.does("denoise")]
    denoising = [plan.denoised_by.spec.denoised if plan.denoised_by else DENOISED[plan.denoiser] for plan in denoised]
    steps += dict.fromkeys(denoising)
    steps += [SENTENCES["gibbs"]] if in_any_run("gibbs") else []
    steps += _susceptibility_sentences([plan.run for plan in sound if plan.does("susceptibility")])
    steps += [SENTENCES["motion"]] if in_any_run("motion") else []
    steps += _eddy_sentences([plan for plan in sound if plan.does("motion")])
    if in_any_run("susceptibility") or in_any_run("motion"):
        steps.append(INTERPOLATED_ONCE)
    steps += [SENTENCES["bias"]] if in_any_run("bias") else []
    text.append(" ".join(steps) or "The series were used as they were given.")
    if in_any_run("normalize"):
        with_t1w = any(plan.run.t1w for plan in sound)
        route = "rigidly to its T1w image and from there" if with_t1w else "directly"
        also = "; runs without a T1w image were registered directly" if with_t1w else ""
        text.append(f"Each run was registered {route} to the template by SyN [ants; mni]{also}.")
    if in_any_run("maps"):
        text.append("Tensor maps were fitted by weighted linear least squares [tensor; wls].")
    if any(output.key == "rish_map" for plan in sound for output in plan.outputs):
        text.append(RISH_MAPS)
    used = {method.name: plan.settings for plan in sound for method in plan.methods}
    return text + [_method_paragraph(spec_of(name), settings) for name, settings in used.items()]


def _susceptibility_sentences(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each way in which susceptibility distortion was corrected."""
    maps = [run.fieldmap for run in runs if run.fieldmap is not None]
    sentences = [SENTENCES["susceptibility"]] if len(maps) < len(runs) else []
    kinds = dict.fromkeys(FIELD_MAPS[fieldmap.kind] for fieldmap in maps)
    return sentences + [SENTENCES["fieldmap"].format(what=what) for what in kinds]


def _eddy_sentences(plans: Sequence[RunPlan]) -> list[str]:
    """Return a sentence about eddy currents; without the phase-encoding axis registration is rigid."""
    axis_known = [plan.run.phase_encoding_axis is not None for plan in plans]
    if not axis_known:
        return []
    if not any(axis_known):
        return [SENTENCES["no_eddy"]]
    return [SENTENCES["eddy"].format(where="" if all(axis_known) else " of the runs of which it is known")]


def _method_paragraph(spec: MethodSpec, settings: Settings) -> str:
    """Return the paragraph about a method that was used with these settings."""
    text = METHOD.format(
        title=spec.title,
        summary=spec.summary,
        key=spec.citation.key,
        what=MAPS_ARE if spec.maps else SERIES_ARE,
        uncertainty=UNCERTAIN.format(samples=settings.n_samples) if spec.draws and settings.n_samples > 1 else "",
        seed=settings.seed,
        size=settings.size,
        sampler=spec.sampler_name(settings.sampler_name, settings.n_samples, settings.steps, settings.size),
    )
    return " ".join([text, *_fibres(spec, settings.fibre_dir), *spec.sentences(settings.method_options)])


def is_about(paragraph: str, methods: Sequence[str]) -> bool:
    """Return whether a paragraph of a methods text is about one of these methods, or about maps that they need."""
    specs = [spec_of(name) for name in methods if name in REGISTRY]
    starts = tuple(f"{spec.title} {spec.summary}" for spec in specs)
    return paragraph.startswith(starts) or (paragraph == RISH_MAPS and any(RISH in spec.fits for spec in specs))


def _fibres(spec: MethodSpec, folder: Path | None) -> list[str]:
    """Return a sentence about the fibre directions that a method used."""
    if "fibres" not in spec.population:
        return []
    return [FIBRES.format(default=DEFAULTS["fibres"]) if folder is None else GIVEN_FIBRES.format(name=folder.name)]


def citations(text: Sequence[str]) -> list[Citation]:
    """Return the references that a text cites, in order of first mention."""
    references = {**REFERENCES, **{c.key: c for c in (spec_of(name).citation for name in REGISTRY)}}
    keys = [k for group in re.findall(r"\[([\w; ]+)\]", " ".join(text)) for k in group.split("; ")]
    return [references[key] for key in dict.fromkeys(keys) if key in references]


def of_runs(records: Sequence[RunRecord]) -> list[str]:
    """Return the methods text of runs from their records, of this call or earlier ones; equal texts are given once."""
    runs_by_text: dict[tuple[str, ...], list[str]] = {}
    for record in records:
        if record.methods:
            runs_by_text.setdefault(record.methods, []).append(record.name)
    text: list[str] = []
    for paragraphs_of_runs, runs in runs_by_text.items():
        text += [f"Of {', '.join(runs)}:", *paragraphs_of_runs] if len(runs_by_text) > 1 else paragraphs_of_runs
    return text or [SOFTWARE, NOTHING_DONE]


def as_markdown(text: Sequence[str]) -> str:
    """Return a methods text with its references, as Markdown."""
    references = "\n".join(f"- [{c.key}] {c.text}" for c in citations(text))
    return "\n\n".join(text) + "\n\n### References\n\n" + references + "\n"
