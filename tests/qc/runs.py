"""Runs on disk for the tests of figures and metrics: field of `RunFiles` -> value."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from ..conftest import tiny_gradients, tiny_series, write_run

AFFINE = np.diag([-3.0, 3, 3, 1])
NOISE = 8.0


def complete_run(folder: Path) -> dict:
    """Write all files of one run; the same series with little noise takes the place of a generated one."""
    table = tiny_gradients()
    data = tiny_series(table, noise=NOISE)
    mask = data[..., table.is_b0].mean(axis=3) > 100

    def image(name, values):
        path = folder / f"{name}.nii"
        nib.save(nib.Nifti1Image(np.asarray(values, np.float32), AFFINE), path)
        return str(path)

    raw = str(write_run(folder, "raw", data, table, AFFINE))
    bval, bvec = raw.replace(".nii.gz", ".bval"), raw.replace(".nii.gz", ".bvec")
    series = tiny_series(table, noise=1.0, seed=1)
    series[..., table.is_b0] = data[..., table.is_b0]
    record = {
        "Method": "Clean",
        "AcquiredVolumes": [0, 1, 2],
        "Checks": {"clean_evaluations": 4.0, "clean_direction_contrast": 0.7},
    }
    (folder / "record.json").write_text(json.dumps({"Synthetic": True, "GenerativeModel": record}))
    rng = np.random.default_rng(0)
    np.savez(folder / "left_out.npz", volumes=[3, 7], mean=series[..., [3, 7]])
    header = "trans_x\ttrans_y\ttrans_z\trot_x\trot_y\trot_z\tframewise_displacement"
    rows = [[*rng.normal(0, 0.1, 3), *rng.normal(0, 1e-3, 3), "n/a" if v == 0 else 0.2] for v in range(14)]
    lines = ["\t".join(map(str, row)) for row in rows]
    (folder / "confounds.tsv").write_text("\n".join([header, *lines]) + "\n")
    b0, fa = data[..., 0], rng.uniform(0, 1, mask.shape)
    return {
        "raw_dwi": raw, "raw_bval": bval, "raw_bvec": bvec,
        "preproc_dwi": raw, "preproc_bval": bval, "preproc_bvec": bvec,
        "mask": image("mask", mask), "dwiref": image("dwiref", b0), "sigma": NOISE,
        "confounds": str(folder / "confounds.tsv"), "t1w": image("t1w", 600 - b0),
        "dwiref_in_template": image("moved", b0), "template": image("template", b0),
        "mask_in_template": image("moved_mask", mask), "template_mask": image("template_mask", mask),
        "sdc_before": image("before", b0), "sdc_after": image("after", b0),
        "reverse_before": image("reverse_before", np.roll(b0, 3, axis=1)),
        "reverse_after": image("reverse_after", b0),
        "methods": ["clean"], "generated": [image("made", series)], "generated_bval": [bval],
        "generated_bvec": [bvec], "generated_record": [str(folder / "record.json")],
        "generated_left_out": [str(folder / "left_out.npz")],
        "map_sources": ["preproc", "clean"],
        "fa": [image("fa", fa), image("fa2", fa * 0.5)],
        "md": [image("md", np.full(mask.shape, 0.8e-3)), image("md2", np.full(mask.shape, 0.9e-3))],
        "dec": [image("dec", np.stack([fa] * 3, 3)), image("dec2", np.stack([fa] * 3, 3))],
        "uncertain_methods": ["clean"], "fa_std": [image("fa_std", 0.1 * fa)],
        "md_std": [image("md_std", np.full(mask.shape, 0.05e-3))],
    }  # fmt: skip


def with_maps(inputs: dict, folder: Path) -> dict:
    """The same run, with a method that generated maps and no series."""
    mask, affine = nib.load(inputs["mask"]).get_fdata() > 0, AFFINE

    def image(name, values):
        nib.save(nib.Nifti1Image(np.asarray(values, np.float32), affine), folder / name)
        return str(folder / name)

    fa = 0.25 * mask
    record = folder / "maps.json"
    model = {"Maps": ["fa", "md", "dec"], "Volumes": {"b0": [0], "b=1000": [1]}, "Checks": {"colour_mismatch": 0.03}}
    record.write_text(json.dumps({"Synthetic": True, "GenerativeModel": model}))
    added = {
        "fa": image("made_fa.nii", fa),
        "md": image("made_md.nii", 3e-3 * fa),
        "dec": image("made_dec.nii", np.stack([fa, 0 * fa, 0 * fa], 3)),
    }
    errors = {
        "uncertain_methods": [*inputs["uncertain_methods"], "mapped"],
        "fa_std": [*inputs["fa_std"], image("made_fa_std.nii", 0.2 * fa)],
        "md_std": [*inputs["md_std"], image("made_md_std.nii", 4e-4 * fa)],
    }
    lists = {kind: [*inputs[kind], path] for kind, path in added.items()}
    sources = [*inputs["map_sources"], "mapped"]
    return {**inputs, **lists, "map_sources": sources, "map_methods": ["mapped"], "map_record": [str(record)], **errors}
