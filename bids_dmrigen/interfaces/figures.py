"""Nipype interfaces of a run's report figures and quality metrics; files that are absent are skipped."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits


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
    field_magnitude = File(exists=True, desc="magnitude image of the field map on the preprocessed series' grid")
    methods = traits.List(traits.Str, desc="methods that generated a series")
    generated = traits.List(File(exists=True), desc="their series, in that order")
    generated_bval = traits.List(File(exists=True), desc="b-values")
    generated_bvec = traits.List(File(exists=True), desc="directions")
    generated_record = traits.List(File(exists=True), desc="JSON with GenerativeModel: how each series was generated")
    generated_left_out = traits.List(File(exists=True), desc=".npz: left-out volumes and their predictions")
    map_sources = traits.List(traits.Str, desc="sources of the maps: preproc and methods")
    fa = traits.List(File(exists=True), desc="fractional anisotropy per source")
    md = traits.List(File(exists=True), desc="mean diffusivity per source, mm²/s")
    dec = traits.List(File(exists=True), desc="direction-encoded colour per source")
    map_methods = traits.List(traits.Str, desc="methods that generated only maps; they are among map_sources")
    map_record = traits.List(File(exists=True), desc="JSON with GenerativeModel: how these maps were generated")
    uncertain_methods = traits.List(traits.Str, desc="methods whose maps have standard errors")
    fa_std = traits.List(File(exists=True), desc="standard error of their fractional anisotropy, in that order")
    md_std = traits.List(File(exists=True), desc="standard error of their mean diffusivity, mm²/s")
    rish_before = traits.List(
        File(exists=True), desc="RISH maps of the preprocessed series: degrees 0, 2 and perhaps 4"
    )
    rish_methods = traits.List(traits.Str, desc="methods that change these features")
    rish_after = traits.List(File(exists=True), desc="RISH maps of their series, method after method")
    extra = traits.List(File(exists=True), desc="maps that methods generated beside their series or tensor maps")
    extra_methods = traits.List(traits.Str, desc="method of each of these maps")
    extra_titles = traits.List(traits.Str, desc="title of each of these maps")
    preproc_generated = traits.Bool(
        False, usedefault=True, desc="the preprocessed series was denoised by a generative method"
    )
    earlier_metrics = traits.Dict(desc="metrics of methods of earlier calls, by key")
    earlier_skipped = traits.List(traits.Str, desc="HTML items: missing figures of methods of earlier calls")


class _RunFiguresOutput(TraitedSpec):
    figures = traits.List(traits.Tuple(traits.Str, File(exists=True)), desc="(key of the figure, file)")
    skipped = traits.Dict(traits.Str, traits.Str, desc="figure -> why it is missing")


class RunFigures(SimpleInterface):
    """Draw every figure for which the inputs suffice; `skipped.html` lists the missing ones with the reasons."""

    input_spec = RunInput
    output_spec = _RunFiguresOutput

    def _run_interface(self, runtime):
        from ..qc.run_data import RunData, RunFiles
        from ..qc.run_figures import draw_figures

        run = RunData(RunFiles(**{name: value for name, value in self.inputs.get().items() if isdefined(value)}))
        self._results["figures"], self._results["skipped"] = draw_figures(run, Path(runtime.cwd))
        return runtime


class _QualityMetricsOutput(TraitedSpec):
    out_metrics = File(exists=True, desc="JSON: every number with unit, definition and better direction")


class QualityMetrics(SimpleInterface):
    """Compute the quality metrics of a run; metrics without their inputs are left out."""

    input_spec = RunInput
    output_spec = _QualityMetricsOutput

    def _run_interface(self, runtime):
        from ..diffusion.storage import write_text
        from ..qc.run_data import RunData, RunFiles
        from ..qc.run_metrics import measure

        run = RunData(RunFiles(**{name: value for name, value in self.inputs.get().items() if isdefined(value)}))
        text = json.dumps(measure(run), indent=2, ensure_ascii=False) + "\n"
        self._results["out_metrics"] = str(write_text(Path(runtime.cwd) / "metrics.json", text))
        return runtime
