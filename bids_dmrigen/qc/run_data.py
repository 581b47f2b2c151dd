"""The files of a run as arrays, for figures and quality metrics; the names of missing files are reported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bids.sidecars import kept_volumes
from ..bids.tables import read_gradients
from ..dwi.gradients import B0_THRESHOLD_S_PER_MM2, GradientError, GradientTable
from ..dwi.series import Scan
from ..spatial.coverage import within_coverage
from ..spatial.io import read_image, read_scan

if TYPE_CHECKING:  # this module loads torch
    from .tensor_check import TensorCheck

SAME_DIRECTION_COSINE = np.cos(np.radians(1.0))
CONFOUND_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement")
MAP_KINDS = ("fa", "md", "dec")
ONLY_B0S = "no diffusion-weighted volume was acquired"
NO_ERRORS = "no samples were drawn: the method draws none, or --n-samples is 1"
GROUPS = {  # files that come together
    "raw": ("raw_dwi", "raw_bval", "raw_bvec"),
    "preproc": ("preproc_dwi", "preproc_bval", "preproc_bvec"),
}
CALLED = {  # name of a file or group in the report
    "raw": "raw series",
    "preproc": "preprocessed series",
    "mask": "brain mask",
    "dwiref": "b0 reference",
    "confounds": "motion estimates (head motion was not corrected)",
    "t1w": "T1w image",
    "dwiref_in_template": "registration to a template",
    "template": "template",
    "sdc_before": "susceptibility correction",
    "sdc_after": "susceptibility correction",
    "fa": "tensor maps",
    "dec": "tensor maps",
}


@dataclass(frozen=True)
class RunFiles:
    """Files and values of one run for its figures and quality metrics; None or empty where there is none."""

    raw_dwi: str | None = None  # acquired series
    raw_bval: str | None = None  # its b-values, s/mm²
    raw_bvec: str | None = None  # its directions, FSL convention
    preproc_dwi: str | None = None  # preprocessed series
    preproc_bval: str | None = None  # its b-values, s/mm²
    preproc_bvec: str | None = None  # its directions, FSL convention
    b0_threshold: float = B0_THRESHOLD_S_PER_MM2  # at or below: b0, s/mm²
    mask: str | None = None  # brain mask on the preprocessed series' grid
    dwiref: str | None = None  # b0 reference on that grid
    confounds: str | None = None  # motion estimates, .tsv: mm and rad
    sigma: float | None = None  # noise standard deviation, signal units
    t1w: str | None = None  # T1w image resampled to the series' grid
    dwiref_in_template: str | None = None  # b0 reference resampled to the template's grid
    mask_in_template: str | None = None  # brain mask resampled to the template's grid
    template: str | None = None  # template image
    template_mask: str | None = None  # brain mask of the template
    template_name: str = "template"  # name of the template
    sdc_before: str | None = None  # b0 before susceptibility correction
    sdc_after: str | None = None  # b0 after susceptibility correction
    reverse_before: str | None = None  # reverse-phase b0 before susceptibility correction
    reverse_after: str | None = None  # reverse-phase b0 after susceptibility correction
    field_magnitude: str | None = None  # magnitude image of the field map on the preprocessed series' grid
    methods: Sequence[str] = ()  # methods that generated a series
    generated: Sequence[str] = ()  # their series, in that order
    generated_bval: Sequence[str] = ()  # b-values
    generated_bvec: Sequence[str] = ()  # directions
    generated_record: Sequence[str] = ()  # JSON with GenerativeModel: how each was generated
    generated_left_out: Sequence[str] = ()  # .npz: left-out volumes and each method's predictions of them
    map_sources: Sequence[str] = ()  # what the maps come from: preproc and methods
    fa: Sequence[str] = ()  # fractional anisotropy per source
    md: Sequence[str] = ()  # mean diffusivity per source, mm²/s
    dec: Sequence[str] = ()  # direction-encoded colour per source
    map_methods: Sequence[str] = ()  # methods that generated only maps; map_sources includes them
    map_record: Sequence[str] = ()  # JSON with GenerativeModel: how each of them generated its maps
    uncertain_methods: Sequence[str] = ()  # methods whose maps have standard errors
    fa_std: Sequence[str] = ()  # standard error of their fractional anisotropy, in that order
    md_std: Sequence[str] = ()  # standard error of their mean diffusivity, mm²/s
    rish_before: Sequence[str] = ()  # RISH maps of the preprocessed series: degrees 0, 2 and perhaps 4
    rish_methods: Sequence[str] = ()  # methods that change these features
    rish_after: Sequence[str] = ()  # RISH maps of the series that they generated, method after method
    extra: Sequence[str] = ()  # maps that methods generated in addition to series or tensor maps
    extra_methods: Sequence[str] = ()  # the method of each of them
    extra_titles: Sequence[str] = ()  # the title of each of them
    preproc_generated: bool = False  # the preprocessed series was denoised by a generative method
    earlier_metrics: Mapping[str, dict[str, Any]] | None = None  # of methods of earlier calls, by key
    earlier_skipped: Sequence[str] = ()  # HTML items: missing figures of these methods, and why


class Missing(Exception):
    """Something that a figure or metric needs was not given; the message names it."""


class RunData:
    """The files of a run as arrays, read at first use and shared by several figures."""

    def __init__(self, files: RunFiles):
        self.files = files
        self.tensor_checks: dict[str, TensorCheck] = {}

    def has(self, *names: str) -> bool:
        """Return whether all these files (or groups of files) are given."""
        values = (getattr(self.files, part) for n in names for part in GROUPS.get(n, (n,)))
        return not any(value is None or value == () for value in values)

    def need(self, *names: str) -> None:
        """Raise `Missing` for the first file (or group) that is not given; the message names it."""
        for name in names:
            if not self.has(name):
                raise Missing(f"no {CALLED.get(name, name)}")

    def volume(self, name: str) -> np.ndarray:
        """Return the values of the image with this name in `RunFiles`; raises `Missing` where there is none."""
        self.need(name)
        return read_image(getattr(self.files, name))[0]

    def _scan(self, kind: str, mask: str | None) -> Scan:
        self.need(kind)
        dwi, bval, bvec = (getattr(self.files, part) for part in GROUPS[kind])
        return read_scan(dwi, bval, bvec, mask, self.files.b0_threshold)[0]

    @cached_property
    def preproc(self) -> Scan:
        """The preprocessed series with its mask, without voxels that have no data in some volume."""
        self.need("mask")
        return within_coverage(self._scan("preproc", self.files.mask))

    @cached_property
    def raw(self) -> Scan:
        """The acquired series."""
        return self._scan("raw", None)

    @cached_property
    def raw_in_mask(self) -> Scan:
        """The acquired series with the brain mask; raises `Missing` where they are not on one grid."""
        raw, mask = self.raw, self.volume("mask") > 0.5
        if mask.shape != raw.mask.shape or not np.allclose(raw.affine, self.preproc.affine, atol=1e-2):
            raise Missing("no brain mask on the raw series' grid")
        return Scan(raw.data, raw.affine, raw.gradients, mask)

    @cached_property
    def b0(self) -> np.ndarray:
        """The b0 reference."""
        return self.volume("dwiref") if self.has("dwiref") else self.preproc.mean_b0()

    @cached_property
    def sigma(self) -> float | None:
        """Noise standard deviation, where it is known."""
        sigma = self.files.sigma
        return float(sigma) if sigma is not None and sigma > 0 else None

    def required_sigma(self) -> float:
        """Return the noise standard deviation; raises `Missing` where it is not known."""
        if not self.sigma:
            raise Missing("no noise level")
        return self.sigma

    @cached_property
    def confounds(self) -> np.ndarray:
        """(N, 7) translations in mm, rotations in rad, framewise displacement in mm; NaN where the file has n/a."""
        self.need("confounds")
        path = Path(str(self.files.confounds))
        columns = path.read_text().splitlines()[0].lstrip("# ").split("\t")
        table = np.genfromtxt(path, skip_header=1, delimiter="\t", missing_values="n/a", ndmin=2)
        return table[:, [columns.index(name) for name in CONFOUND_COLUMNS]]

    def methods(self) -> list[str]:
        """Return the methods that generated a series."""
        return list(self.files.methods) if self.has("methods", "generated") else []

    def map_methods(self) -> list[str]:
        """Return the methods that generated only maps."""
        return list(self.files.map_methods) if self.has("map_methods") else []

    def record(self, method: str) -> dict:
        """Return the record of how a method generated its series or maps; empty without one."""
        for methods, records in ((self.methods(), "generated_record"), (self.map_methods(), "map_record")):
            if method in methods and self.has(records):
                path = getattr(self.files, records)[methods.index(method)]
                return json.loads(Path(path).read_text()).get("GenerativeModel", {})
        return {}

    def generated(self, method: str) -> tuple[np.ndarray, GradientTable, np.ndarray, dict]:
        """Return a method's series, its gradients, which volumes were generated, and its record."""
        files, k = self.files, self.methods().index(method)
        data = read_image(files.generated[k])[0]
        gradients = read_gradients(files.generated_bval[k], files.generated_bvec[k], data.shape[3], files.b0_threshold)
        is_generated, record = np.ones(data.shape[3], bool), self.record(method)
        is_generated[kept_volumes(record)] = False
        return data, gradients, is_generated, record

    def rish(self, method: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the RISH maps before and after a method, by degree; raises `Missing` if it does not change them."""
        self.need("rish_methods", "rish_before", "rish_after")
        if method not in self.files.rish_methods:
            raise Missing("the method does not change these features")
        n, k = len(self.files.rish_before), list(self.files.rish_methods).index(method)
        after = self.files.rish_after[k * n : (k + 1) * n]
        return [read_image(path)[0] for path in self.files.rish_before], [read_image(path)[0] for path in after]

    def extra(self, method: str) -> dict[str, np.ndarray]:
        """Return title -> (X, Y, Z) of the maps that a method generated in addition to series or tensor maps."""
        if not self.has("extra", "extra_methods", "extra_titles"):
            return {}
        maps = zip(self.files.extra_methods, self.files.extra_titles, self.files.extra, strict=True)
        return {title: read_image(path)[0] for maker, title, path in maps if maker == method}

    def left_out(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the (K,) left-out volumes and the method's predictions of them (X, Y, Z, K).

        Raises
        ------
        Missing
            Where no direction was left out.
        """
        if not self.has("generated_left_out"):
            raise Missing("no direction was left out")
        with np.load(self.files.generated_left_out[self.methods().index(method)]) as file:
            volumes, mean = file["volumes"], file["mean"]
        if not len(volumes):
            raise Missing("no direction could be left out, or the method adds none")
        return volumes, mean

    def removed(self, method: str) -> np.ndarray:
        """Return (X, Y, Z, K) input minus output, for generated volumes with the direction of an acquired one.

        Raises
        ------
        Missing
            Where there is no such volume, or the brain mask is empty.
        """
        data, gradients, is_generated, _ = self.generated(method)
        pairs = same_volumes(self.preproc.gradients, gradients, is_generated)
        if not pairs:
            raise Missing("no acquired volume of the same direction")
        if not self.preproc.mask.any():
            raise Missing("the brain mask is empty")
        ours, theirs = (list(volumes) for volumes in zip(*pairs, strict=True))
        return self.preproc.data[..., ours] - data[..., theirs]

    def maps(self, kind: str) -> dict[str, np.ndarray]:
        """Return source -> map for `fa`, `md` or `dec`."""
        self.need(kind)
        files = getattr(self.files, kind)
        return {source: read_image(path)[0] for source, path in zip(self.files.map_sources, files, strict=True)}

    def tensor_check(self, method: str) -> TensorCheck:
        """Return the residuals of the acquired volumes of a shell, for the tensor of the maps generated from it.

        Raises
        ------
        Missing
            Where that shell is not known, or its directions determine no tensor.
        """
        from .tensor_check import check_maps

        if method not in self.tensor_checks:
            bvals = [float(key.removeprefix("b=")) for key in self.record(method).get("Volumes", {}) if "=" in key]
            if not bvals:
                raise Missing("the record does not say from which shell the maps were generated")
            try:
                maps = (self.maps(kind)[method] for kind in MAP_KINDS)
                self.tensor_checks[method] = check_maps(self.preproc, bvals[0], *maps)
            except GradientError as reason:
                raise Missing(str(reason)) from None
        return self.tensor_checks[method]

    def uncertainty(self, method: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return `fa` and `md` -> best estimate and standard error of a method.

        Raises
        ------
        Missing
            Where the method draws no samples, or none was asked for.
        """
        if not self.has("uncertain_methods", "fa_std", "md_std") or method not in self.files.uncertain_methods:
            raise Missing(NO_ERRORS)
        number = list(self.files.uncertain_methods).index(method)
        errors = {"fa": self.files.fa_std[number], "md": self.files.md_std[number]}
        return {kind: (self.maps(kind)[method], read_image(path)[0]) for kind, path in errors.items()}


def same_volumes(acquired: GradientTable, generated: GradientTable, is_generated: np.ndarray) -> list[tuple[int, int]]:
    """Return (acquired, generated) volumes of one b-value (within 2 %) and direction (within 1 degree)."""
    pairs, taken = [], set()
    for theirs in np.flatnonzero(is_generated & ~generated.is_b0):
        cosine = np.abs(acquired.bvecs @ generated.bvecs[theirs])
        close = np.abs(acquired.bvals - generated.bvals[theirs]) <= 0.02 * generated.bvals[theirs]
        fits = [int(v) for v in np.flatnonzero(close & (cosine > SAME_DIRECTION_COSINE)) if v not in taken]
        if fits:
            # If a direction was measured twice, take the volume at the same place in the series.
            ours = int(theirs) if int(theirs) in fits else fits[0]
            taken.add(ours)
            pairs.append((ours, int(theirs)))
    return pairs
