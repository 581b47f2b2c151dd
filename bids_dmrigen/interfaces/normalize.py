"""Nipype interface of the registration of a scan to its T1w and to the template."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits


class _NormalizeInputSpec(BaseInterfaceInputSpec):
    in_reference = File(exists=True, mandatory=True, desc="mean b0 of the preprocessed scan")
    in_mask = File(exists=True, mandatory=True, desc="the scan's brain")
    in_fa = File(exists=True, desc="the scan's FA; helps where there is no T1w")
    in_t1w = File(exists=True, desc="T1w of the same head, whole or brain-extracted")
    template_name = traits.Str(desc="TemplateFlow name; not given: the embedded template")
    template_t1w = File(exists=True, desc="the template's T1w")
    template_mask = File(exists=True, desc="the template's brain mask")
    template_fa = File(exists=True, desc="the template's FA, where it has one")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="ITK threads")
    random_seed = traits.Int(1, usedefault=True, desc="seed of the metric's sampling")


class _NormalizeOutputSpec(TraitedSpec):
    out_to_t1w = File(desc="rigid .mat that resamples the scan onto the T1w; only with a T1w")
    out_from_t1w = File(desc="rigid .mat that resamples the T1w onto the scan; only with a T1w")
    out_to_template = File(exists=True, desc=".h5 that resamples the scan onto the template")
    out_from_template = File(exists=True, desc=".h5 that resamples an atlas onto the scan")
    out_t1w = File(desc="T1w on the scan's grid; only with a T1w")
    out_brain_template = File(exists=True, desc="the template's brain on its own 2 mm grid, uint8")
    out_template_mask = File(exists=True, desc="the template's brain on the scan's grid, uint8")
    out_template_t1w = File(exists=True, desc="the template's T1w on the scan's grid")
    out_report = File(exists=True, desc="JSON: template, Dice of its brain with the scan's, mutual information")


class Normalize(SimpleInterface):
    """Register a scan to its T1w, where there is one, and to the template."""

    input_spec = _NormalizeInputSpec
    output_spec = _NormalizeOutputSpec

    def _run_interface(self, runtime):
        from ..diffusion.storage import write_text
        from ..spatial.ants_tools import set_threads, write_matrix
        from ..spatial.checks import check_mask
        from ..spatial.io import read_image, read_volume, write_image
        from ..spatial.normalize import load_template, normalize

        inputs, folder, results = self.inputs, Path(runtime.cwd), self._results
        set_threads(inputs.num_threads)
        b0, image = read_image(inputs.in_reference)
        mask = read_image(inputs.in_mask)[0] > 0.5
        check_mask(mask, b0.shape, inputs.in_mask)
        template = load_template(self._template())
        fa = read_image(inputs.in_fa)[0] if isdefined(inputs.in_fa) else None
        t1w = None
        if isdefined(inputs.in_t1w):
            values, t1w_image = read_volume(inputs.in_t1w)
            t1w = values, t1w_image.affine
        normalized = normalize(b0, image.affine, mask, template, folder, fa=fa, t1w=t1w, seed=inputs.random_seed)
        if normalized.t1w_to_scan is not None:
            results["out_to_t1w"] = str(write_matrix(folder / "to_t1w.mat", normalized.t1w_to_scan))
            results["out_from_t1w"] = str(write_matrix(folder / "from_t1w.mat", np.linalg.inv(normalized.t1w_to_scan)))
        results["out_to_template"] = str(normalized.to_template.rename(folder / "to_template.h5"))
        results["out_from_template"] = str(normalized.from_template.rename(folder / "from_template.h5"))
        in_template = nib.Nifti1Image(np.zeros(template.mask.shape, np.uint8), template.affine)
        for images, like in ((normalized.on_scan, image), ({"brain_template": template.mask}, in_template)):
            for name, data in images.items():
                kind = np.uint8 if data.dtype == bool else np.float32
                results[f"out_{name}"] = str(write_image(folder / f"{name}.nii", data, like, kind))
        results["out_report"] = str(write_text(folder / "normalize.json", json.dumps(normalized.report, indent=2)))
        return runtime

    def _template(self):
        """Return the files of the template; None means the embedded one."""
        from ..spatial.templates import Template

        i = self.inputs
        if not isdefined(i.template_t1w):
            return None
        fa = Path(i.template_fa) if isdefined(i.template_fa) else None
        return Template(i.template_name, Path(i.template_t1w), Path(i.template_mask), fa=fa)
