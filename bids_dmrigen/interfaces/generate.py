"""Nipype interface of a generative method: the only place where a method is called with image files."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from nipype.interfaces.base import File, SimpleInterface, TraitedSpec, isdefined, traits

from ..spatial.io import read_scan
from .base import SeriesInputSpec


def progress_printer(label: str, every_s: float = 20.0):
    """Return a progress callback that prints a line at most every `every_s` seconds."""
    last = time.monotonic()
    starts: dict[str, tuple[float, int]] = {}

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        begun, first = starts.setdefault(what, (now, done))
        if now - last < every_s or done <= first:
            return
        last = now
        left = (now - begun) / (done - first) * (total - done)
        print(f"    {label}: {what} {done}/{total}, about {left:.0f} s left", flush=True)

    return report


class _GenerateInput(SeriesInputSpec):
    in_mask = File(exists=True, desc="brain mask (default: the whole field of view)")
    in_record = File(exists=True, desc="JSON: how the series was generated; not given: it was acquired")
    method = traits.Str(mandatory=True, desc="name in the registry of methods")
    size = traits.Str("small", usedefault=True, desc="network size")
    sampler = traits.Str("fast", usedefault=True, desc="paper or fast")
    steps = traits.Either(None, traits.Int, usedefault=True, desc="sampler steps")
    n_samples = traits.Int(1, usedefault=True, desc="samples")
    seed = traits.Int(0, usedefault=True, desc="seed")
    subject = traits.Str(desc="addresses the noise")
    run = traits.Str(desc="addresses the noise")
    device = traits.Str("cpu", usedefault=True, desc="auto, cpu, cuda or cuda:N")
    precision = traits.Str("auto", usedefault=True, desc="auto, fp32 or bf16")
    weights = traits.Either(None, traits.Str, usedefault=True, desc="path of the weights")
    weights_sha256 = traits.Str(desc="hash of the weights' file: Nipype runs again where it changes")
    minutes = traits.Either(None, traits.Float, usedefault=True, desc="training budget, minutes")
    to_template = File(exists=True, desc=".h5 that resamples the scan onto the template; for methods that work there")
    from_template = File(exists=True, desc=".h5 that resamples an atlas onto the scan")
    template_name = traits.Str(desc="TemplateFlow name of the template, for methods that work there")
    template_brain = File(exists=True, desc="brain mask of the template, on the template's grid")
    adc_atlas = File(exists=True, desc="ADC atlas (default: the packaged one)")
    xtract = traits.Either(None, File(exists=True), traits.Directory(exists=True), usedefault=True, desc="tracts")
    fibres = traits.Either(None, traits.Directory(exists=True), usedefault=True, desc="atlas with fibre directions")
    atlas_state = traits.Str(desc="digest of the files in those folders: Nipype runs again where it changes")
    options = traits.Dict(usedefault=True, desc="the method's own options, by key")
    left_out = traits.Int(0, usedefault=True, desc="acquired directions per shell that are left out as a check")
    tensor_volumes = traits.Either(
        None, traits.List(traits.Int), usedefault=True, desc="volumes of the tensor fit, for the record"
    )
    with_errors = traits.Bool(False, usedefault=True, desc="write the standard errors of scalar maps, from samples")
    with_samples = traits.Bool(False, usedefault=True, desc="write the samples")
    also_in_template = traits.Bool(False, usedefault=True, desc="write the series in the template's space too")
    deterministic = traits.Bool(False, usedefault=True, desc="bit-identical results, where the device allows it")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="occupies a GPU (read by Nipype)")


class _GenerateOutput(TraitedSpec):
    out_file = File(desc="generated series")
    out_bval = File(desc="b-values of the generated series")
    out_bvec = File(desc="directions of the generated series")
    out_sidecar = File(desc="JSON: how it was generated")
    out_left_out = File(desc=".npz: left-out volumes (K,) and their predictions (X, Y, Z, K); K may be 0")
    out_template_file = File(desc="b0 and generated volumes in the template's space, on its standard grid")
    out_template_bval = File(desc="their b-values")
    out_template_bvec = File(desc="their directions")
    out_template_sidecar = File(desc="JSON: how it was generated")
    out_extra = traits.List(File(exists=True), desc="additional maps, in the order of the method's specification")
    out_fa = File(desc="fractional anisotropy, from a method that generates maps instead of a series")
    out_md = File(desc="its mean diffusivity, mm²/s")
    out_ad = File(desc="its axial diffusivity, mm²/s")
    out_rd = File(desc="its radial diffusivity, mm²/s")
    out_dec = File(desc="its direction-encoded colour, (X, Y, Z, 3)")
    out_tensor = File(desc="its tensor, mm²/s, world axes, (X, Y, Z, 6)")
    out_fa_std = File(desc="standard error of fractional anisotropy, of maps or of a tensor fitted to the series")
    out_md_std = File(desc="standard error of mean diffusivity, mm²/s")
    out_ad_std = File(desc="standard error of axial diffusivity, mm²/s")
    out_rd_std = File(desc="standard error of radial diffusivity, mm²/s")
    out_samples = traits.List(File(exists=True), desc="samples: series, or tensors of maps, mm²/s, (X, Y, Z, 6)")


class Generate(SimpleInterface):
    """Run a method on a series and write the generated series or maps, with their record."""

    input_spec = _GenerateInput
    output_spec = _GenerateOutput
    _can_resume = True  # otherwise Nipype would empty the folder, which contains the checkpoint of the training

    def _run_interface(self, runtime):
        import torch

        from ..bids.sidecars import generative_model, template_record
        from ..diffusion.numerics import policy
        from ..diffusion.parallel import choose_device, current
        from ..methods import load
        from ..methods.base import Request
        from ..spatial.coverage import within_coverage
        from ..spatial.results import write_extra, write_in_template, write_maps, write_series

        i, cwd = self.inputs, Path(runtime.cwd)
        torch.set_num_threads(i.num_threads)
        mask = i.in_mask if isinstance(i.in_mask, str) else None
        scan, image = read_scan(i.in_file, i.in_bval, i.in_bvec, mask, i.b0_threshold)
        scan = within_coverage(scan)
        method = load(i.method)
        warnings = method.spec.check(scan)
        request = Request(
            size=i.size,
            sampler=i.sampler,
            steps=i.steps,
            n_samples=i.n_samples,
            seed=i.seed,
            subject=i.subject or "",
            run=i.run or "",
            device=choose_device(i.device),
            precision=i.precision,
            weights=i.weights,
            minutes=i.minutes,
            checkpoint=cwd / "training.pt",
            progress=progress_printer(f"{i.run}, {method.spec.title}"),
            left_out=i.left_out,
            options=dict(i.options),
        )
        with policy(i.deterministic), current(request.device):
            if method.spec.in_template:
                from ..spatial.in_template import generate_in_template

                files = self._template_files()
                generated = generate_in_template(method, scan, request, files, i.tensor_volumes, i.with_samples)
            else:
                generated = method.generate(None, scan, request)
            if generated.samples is not None and i.with_errors:
                generated = self._with_uncertainty(generated, scan, request, image, cwd)
        source = json.loads(Path(i.in_record).read_text()) if isdefined(i.in_record) else None
        sidecar = generative_model(method.spec, generated, warnings, source)
        (cwd / "sidecar.json").write_text(json.dumps(sidecar, indent=2))
        self._results["out_sidecar"] = str(cwd / "sidecar.json")
        self._results |= write_maps(generated, image, cwd) if generated.maps else write_series(generated, image, cwd)
        self._results["out_extra"] = write_extra(generated, method.spec, image, cwd)
        if i.also_in_template and generated.in_template is not None:
            self._results |= write_in_template(generated.in_template, i.template_brain, cwd)
            (cwd / "sidecar_template.json").write_text(json.dumps(template_record(sidecar), indent=2))
            self._results["out_template_sidecar"] = str(cwd / "sidecar_template.json")
        return runtime

    def _with_uncertainty(self, generated, scan, request, image, cwd: Path):
        """Write the standard errors, and samples where they are asked for; return the result, calibrated."""
        from ..methods.calibration import calibrated
        from ..methods.uncertainty import maps_of, standard_errors
        from ..spatial.results import sample_path, sample_writer, write_errors

        i, begun = self.inputs, time.monotonic()
        generated = calibrated(generated, scan, maps_of(generated, generated.mean, scan, i.tensor_volumes))
        write = sample_writer(generated, image, cwd) if i.with_samples else None
        errors = standard_errors(generated, scan, request, i.tensor_volumes, write)
        self._results |= write_errors(errors, image, cwd)
        if i.with_samples:
            self._results["out_samples"] = [str(sample_path(cwd, k)) for k in range(generated.samples.count)]
        seconds = {"UncertaintySeconds": round(time.monotonic() - begun, 1)}
        return replace(generated, record=generated.record | seconds)

    def _template_files(self):
        from ..spatial.in_template import TemplateFiles

        i = self.inputs
        adc = Path(i.adc_atlas) if isdefined(i.adc_atlas) else None
        xtract, fibres = (Path(path) if path else None for path in (i.xtract, i.fibres))
        places = (Path(i.template_brain), Path(i.to_template), Path(i.from_template))
        return TemplateFiles(*places, adc, xtract, fibres, i.template_name or None)
