"""The inputs that figures and quality metrics share, as arrays; what is absent is named, not guessed."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    isdefined,
    traits,
)

from ..bids.sidecars import kept_volumes
from ..dwi.gradients import GradientError, GradientTable
from ..dwi.series import Scan
from ..spatial.io import read_gradients, read_image, read_scan

if TYPE_CHECKING:  # it loads torch
    from .tensor_check import TensorCheck

SAME_DIRECTION_COSINE = np.cos(np.radians(1.0))
CONFOUND_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "framewise_displacement")
MAP_KINDS = ("fa", "md", "dec")
ONLY_B0S = "no diffusion-weighted volume was acquired"
ONE_SAMPLE = "one sample only (--n-samples)"
NOTHING_RANDOM = "nothing in the method is random"
GROUPS = {  # inputs that come together, and how a reader of the report would call them
    "raw": ("raw_dwi", "raw_bval", "raw_bvec"),
    "preproc": ("preproc_dwi", "preproc_bval", "preproc_bvec"),
}
CALLED = {
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


class RunInput(BaseInterfaceInputSpec):
    """Files of one run; all are optional."""

    raw_dwi = File(exists=True, desc="acquired series")
    raw_bval = File(exists=True, desc="its b-values, s/mm²")
    raw_bvec = File(exists=True, desc="its directions, FSL convention")
    preproc_dwi = File(exists=True, desc="preprocessed series")
    preproc_bval = File(exists=True, desc="its b-values, s/mm²")
    preproc_bvec = File(exists=True, desc="its directions, FSL convention")
    b0_threshold = traits.Float(50.0, usedefault=True, desc="at or below: b0, s/mm²")
    mask = File(exists=True, desc="brain mask on the preprocessed series' grid")
    dwiref = File(exists=True, desc="b0 reference on that grid")
    confounds = File(exists=True, desc="motion estimates, .tsv: mm and rad")
    sigma = traits.Float(desc="noise standard deviation, signal units")
    t1w = File(exists=True, desc="T1w image resampled to the series' grid")
    dwiref_in_template = File(exists=True, desc="b0 reference resampled to the template's grid")
    mask_in_template = File(exists=True, desc="brain mask resampled to the template's grid")
    template = File(exists=True, desc="template image")
    template_mask = File(exists=True, desc="brain mask of the template")
    template_name = traits.Str("template", usedefault=True, desc="name of the template")
    sdc_before = File(exists=True, desc="b0 before susceptibility correction")
    sdc_after = File(exists=True, desc="b0 after susceptibility correction")
    reverse_before = File(exists=True, desc="reverse-phase b0 before susceptibility correction")
    reverse_after = File(exists=True, desc="reverse-phase b0 after susceptibility correction")
    methods = traits.List(traits.Str, desc="methods that made a series")
    generated = traits.List(File(exists=True), desc="their series, in that order")
    generated_bval = traits.List(File(exists=True), desc="b-values")
    generated_bvec = traits.List(File(exists=True), desc="directions")
    generated_record = traits.List(File(exists=True), desc="JSON with GenerativeModel: how each was made")
    generated_std = traits.List(File(exists=True), desc="standard deviation of the samples, one per method that draws")
    drawn_methods = traits.List(traits.Str, desc="which these are (default: all)")
    generated_left_out = traits.List(File(exists=True), desc=".npz: volumes and what each method made of them unseen")
    map_sources = traits.List(traits.Str, desc="what the maps come from: preproc and methods")
    fa = traits.List(File(exists=True), desc="fractional anisotropy per source")
    md = traits.List(File(exists=True), desc="mean diffusivity per source, mm²/s")
    dec = traits.List(File(exists=True), desc="direction-encoded colour per source")
    map_methods = traits.List(traits.Str, desc="methods that made maps alone; they are among map_sources")
    map_record = traits.List(File(exists=True), desc="JSON with GenerativeModel: how each of them made its maps")
    fa_std = traits.List(File(exists=True), desc="standard deviation of their samples' fractional anisotropy")
    md_std = traits.List(File(exists=True), desc="of their mean diffusivity, mm²/s")
    dec_std = traits.List(File(exists=True), desc="of their direction-encoded colour")
    rish_before = traits.List(
        File(exists=True), desc="RISH maps of the preprocessed series: degrees 0, 2 and perhaps 4"
    )
    rish_after = traits.List(File(exists=True), desc="those of the series that RISH latent diffusion made")
    preproc_generated = traits.Bool(
        False, usedefault=True, desc="the preprocessed series was denoised by a generative method"
    )


class Missing(Exception):
    """Something that a figure or metric needs was not given; the message names it."""


class RunData:
    """The inputs of both interfaces as arrays, read when first asked for."""

    def __init__(self, inputs):
        self.inputs = inputs
        self.tensor_checks: dict[str, TensorCheck] = {}

    def has(self, *names: str) -> bool:
        """Return whether all inputs (or groups of inputs) were given."""
        return all(isdefined(getattr(self.inputs, part)) for n in names for part in GROUPS.get(n, (n,)))

    def need(self, *names: str) -> None:
        """Raise `Missing` with the first absent input in words."""
        for name in names:
            if not self.has(name):
                raise Missing(f"no {CALLED.get(name, name)}")

    def volume(self, name: str) -> np.ndarray:
        """Return one input image's values."""
        self.need(name)
        return read_image(getattr(self.inputs, name))[0]

    def _scan(self, kind: str, mask: str | None) -> Scan:
        self.need(kind)
        i = self.inputs
        return read_scan(*(getattr(i, part) for part in GROUPS[kind]), mask, i.b0_threshold)[0]

    @cached_property
    def preproc(self) -> Scan:
        """The preprocessed series with its mask."""
        self.need("mask")
        return self._scan("preproc", self.inputs.mask)

    @cached_property
    def raw(self) -> Scan:
        """The acquired series."""
        return self._scan("raw", None)

    @cached_property
    def raw_in_mask(self) -> Scan:
        """The acquired series with the brain mask, where both are on one grid."""
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
        return float(self.inputs.sigma) if self.has("sigma") and self.inputs.sigma > 0 else None

    def known_sigma(self) -> float:
        """Return the noise standard deviation; `Missing` where it is not known."""
        if not self.sigma:
            raise Missing("no noise level")
        return self.sigma

    @cached_property
    def confounds(self) -> np.ndarray:
        """(N, 7) translations in mm, rotations in rad, framewise displacement in mm; NaN where the file has n/a."""
        self.need("confounds")
        path = Path(self.inputs.confounds)
        columns = path.read_text().splitlines()[0].lstrip("# ").split("\t")
        table = np.genfromtxt(path, skip_header=1, delimiter="\t", missing_values="n/a", ndmin=2)
        return table[:, [columns.index(name) for name in CONFOUND_COLUMNS]]

    def methods(self) -> list[str]:
        """Return the methods that made a series."""
        return list(self.inputs.methods) if self.has("methods", "generated") else []

    def map_methods(self) -> list[str]:
        """Return the methods that made maps alone."""
        return list(self.inputs.map_methods) if self.has("map_methods") else []

    def record(self, method: str) -> dict:
        """Return how a method made its series or maps; empty where that is not known."""
        for methods, records in ((self.methods(), "generated_record"), (self.map_methods(), "map_record")):
            if method in methods and self.has(records):
                path = getattr(self.inputs, records)[methods.index(method)]
                return json.loads(Path(path).read_text()).get("GenerativeModel", {})
        return {}

    def generated(self, method: str) -> tuple[np.ndarray, GradientTable, np.ndarray, dict]:
        """Return a method's series, its gradients, which volumes were made, and the record of how."""
        i, k = self.inputs, self.methods().index(method)
        data = read_image(i.generated[k])[0]
        gradients = read_gradients(i.generated_bval[k], i.generated_bvec[k], data.shape[3], i.b0_threshold)
        made, record = np.ones(data.shape[3], bool), self.record(method)
        made[kept_volumes(record)] = False
        return data, gradients, made, record

    def spread(self, method: str) -> np.ndarray:
        """Return the standard deviation of the samples of a method's series."""
        drawn = list(self.inputs.drawn_methods) if self.has("drawn_methods") else self.methods()
        if method not in drawn or not self.has("generated_std"):
            raise Missing(ONE_SAMPLE if method in drawn else NOTHING_RANDOM)
        return read_image(self.inputs.generated_std[drawn.index(method)])[0]

    def left_out(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (K,) preprocessed volumes and (X, Y, Z, K) what the method made of them without them."""
        if not self.has("generated_left_out"):
            raise Missing("no direction was left out")
        with np.load(self.inputs.generated_left_out[self.methods().index(method)]) as file:
            volumes, mean = file["volumes"], file["mean"]
        if not len(volumes):
            raise Missing("no direction could be left out, or the method adds none")
        return volumes, mean

    def removed(self, method: str) -> np.ndarray:
        """Return (X, Y, Z, K) input minus output of the generated volumes that re-make an acquired one."""
        data, gradients, made, _ = self.generated(method)
        pairs = same_volumes(self.preproc.gradients, gradients, made)
        if not pairs:
            raise Missing("no acquired volume of the same direction")
        if not self.preproc.mask.any():
            raise Missing("the brain mask is empty")
        ours, theirs = (list(volumes) for volumes in zip(*pairs, strict=True))
        return self.preproc.data[..., ours] - data[..., theirs]

    def maps(self, kind: str) -> dict[str, np.ndarray]:
        """Return source -> map for `fa`, `md` or `dec`."""
        self.need(kind)
        files = getattr(self.inputs, kind)
        return {source: read_image(path)[0] for source, path in zip(self.inputs.map_sources, files, strict=True)}

    def tensor_check(self, method: str) -> TensorCheck:
        """Return what the tensor of a method's maps leaves of every acquired volume of the shell they stand on."""
        from .tensor_check import check_maps

        if method not in self.tensor_checks:
            bvals = [float(key.removeprefix("b=")) for key in self.record(method).get("Volumes", {}) if "=" in key]
            if not bvals:
                raise Missing("the record does not say which shell the maps stand on")
            try:
                maps = (self.maps(kind)[method] for kind in MAP_KINDS)
                self.tensor_checks[method] = check_maps(self.preproc, bvals[0], *maps)
            except GradientError as reason:
                raise Missing(str(reason)) from None
        return self.tensor_checks[method]

    def map_spread(self, method: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return `fa`, `md` and `dec` -> mean and standard deviation of the samples of a method that made maps."""
        k, spread = self.map_methods().index(method), {}
        for kind in MAP_KINDS:
            if not self.has(f"{kind}_std"):
                raise Missing(ONE_SAMPLE)
            spread[kind] = self.maps(kind)[method], read_image(getattr(self.inputs, f"{kind}_std")[k])[0]
        return spread


def same_volumes(acquired: GradientTable, generated: GradientTable, made: np.ndarray) -> list[tuple[int, int]]:
    """Return (acquired, generated) volumes of one b-value (within 2 %) and direction (within 1 degree)."""
    pairs, taken = [], set()
    for theirs in np.flatnonzero(made & ~generated.is_b0):
        cosine = np.abs(acquired.bvecs @ generated.bvecs[theirs])
        close = np.abs(acquired.bvals - generated.bvals[theirs]) <= 0.02 * generated.bvals[theirs]
        fits = [int(v) for v in np.flatnonzero(close & (cosine > SAME_DIRECTION_COSINE)) if v not in taken]
        if fits:
            # A direction measured twice: the volume at the same place in the series is meant.
            ours = int(theirs) if int(theirs) in fits else fits[0]
            taken.add(ours)
            pairs.append((ours, int(theirs)))
    return pairs
