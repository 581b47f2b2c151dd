"""One method on image files: what is written for a method that makes maps, and the record beside it."""

import json

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bids_dmrigen.interfaces.generate import Generate
from bids_dmrigen.methods import REGISTRY, load

from ..conftest import diffdti_weights, tiny_gradients, tiny_series, write_run


@pytest.mark.parametrize("n_samples", [1, 2])
def test_maps_are_written_one_by_one_and_described_as_maps(tmp_path, n_samples):
    gradients, shape = tiny_gradients(3, 1), (16, 14, 4)
    data = tiny_series(gradients, shape)
    image = str(write_run(tmp_path, "sub-1", data, gradients))
    mask = nib.Nifti1Image((data[..., 0] > 100).astype(np.uint8), np.diag([-3.0, 3, 3, 1]))
    nib.save(mask, tmp_path / "mask.nii")
    table = {f"in_{end}": image.replace("nii.gz", end) for end in ("bval", "bvec")}
    outputs = Generate(
        in_file=image, **table, in_mask=str(tmp_path / "mask.nii"), method="diffdti", n_samples=n_samples,
        with_errors=n_samples > 1, with_samples=n_samples > 1, subject="1", run="sub-1", precision="fp32",
        weights=str(diffdti_weights(tmp_path / "weights")),
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    widths = {"fa": (), "md": (), "ad": (), "rd": (), "dec": (3,), "tensor": (6,)}
    for name, wide in widths.items():
        found = nib.load(getattr(outputs, f"out_{name}"))
        assert found.shape == shape + wide
        np.testing.assert_array_equal(found.affine, mask.affine)
        if wide:
            continue
        assert isdefined(getattr(outputs, f"out_{name}_std")) == (n_samples > 1)
        if n_samples > 1:
            error = nib.load(getattr(outputs, f"out_{name}_std")).get_fdata()
            assert error.shape == shape
            assert (error[mask.get_fdata() > 0] > 0).any()
    assert [nib.load(path).shape for path in outputs.out_samples or ()] == [(*shape, 6)] * (n_samples * (n_samples > 1))
    fa, md, dec = (nib.load(getattr(outputs, f"out_{name}")).get_fdata() for name in ("fa", "md", "dec"))
    assert 0 <= fa.min() < fa.max() <= 1
    assert 0 <= md.min() < md.max() < 0.02  # mm²/s
    assert not fa[mask.get_fdata() == 0].any()
    np.testing.assert_allclose(np.linalg.norm(dec, axis=3), fa, atol=1e-5)
    for absent in ("out_file", "out_bval", "out_bvec", "out_left_out"):
        assert not isdefined(getattr(outputs, absent))
    sidecar = json.loads((tmp_path / "sidecar.json").read_text())
    record = sidecar["GenerativeModel"]
    assert sidecar["Synthetic"] is True
    assert record["Maps"] == list(widths)
    assert record["Volumes"] == {"b0": [0], "b=1000": [1, 2, 3]}
    assert not {"AcquiredVolumes", "InputVolumes", "GeneratedVolumes", "LeftOutVolumes"} & set(record)
    assert "Checks" not in record  # all maps are of one tensor: nothing can disagree


def test_the_request_reaches_the_method(tmp_path, monkeypatch):
    """Noise is addressed by subject, run and seed: without them two subjects would share theirs."""
    from bids_dmrigen import methods

    gradients, seen = tiny_gradients(6, 1), []
    interp = methods.load("interp")

    class Dummy:
        spec = interp.spec

        def generate(self, net, scan, request):
            seen.append(request)
            return interp.generate(net, scan, request)

    monkeypatch.setattr(methods, "load", lambda name: Dummy())
    image = str(write_run(tmp_path, "sub-1", tiny_series(gradients, (6, 6, 4)), gradients))
    table = {f"in_{end}": image.replace("nii.gz", end) for end in ("bval", "bvec")}
    asked = {"subject": "07", "run": "sub-07_run-2", "seed": 5, "n_samples": 3, "sampler": "paper", "steps": 4,
             "left_out": 2, "minutes": 1.5, "options": {"directions": 9}}  # fmt: skip
    Generate(in_file=image, **table, method="interp", **asked).run(cwd=str(tmp_path))
    (request,) = seen
    assert {key: getattr(request, key) for key in asked} == asked


@pytest.mark.parametrize("name", REGISTRY)
def test_a_method_gives_a_series_or_the_maps_that_the_report_compares(name):
    spec = load(name).spec
    assert spec.gives_series == (not REGISTRY[name].startswith(".maps."))
    assert spec.maps in ((), ("fa", "md", "dec"), ("fa", "md", "ad", "rd", "dec", "tensor"))


def test_the_sidecar_of_a_series_on_finer_voxels_describes_its_grid(tmp_path):
    gradients, affine = tiny_gradients(6, 1), np.diag([-3.0, 3, 3, 1])
    data = tiny_series(gradients, (10, 9, 4))
    image = str(write_run(tmp_path, "sub-1", data, gradients, affine))
    table = {f"in_{end}": image.replace("nii.gz", end) for end in ("bval", "bvec")}
    outputs = (
        Generate(in_file=image, **table, method="bspline", options={"voxel_mm": 1.5}).run(cwd=str(tmp_path)).outputs
    )
    found = nib.load(outputs.out_file)
    assert found.shape == (20, 18, 8, 7)
    expected = np.diag([-1.5, 1.5, 1.5, 1])
    expected[:3, 3] = [0.75, -0.75, -0.75]  # a quarter of the larger voxel from its centre
    for matrix in (found.affine, found.get_sform(), found.get_qform()):
        np.testing.assert_allclose(matrix, expected, atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(outputs.out_bvec), gradients.bvecs.T, atol=1e-6)
    values = found.get_fdata()
    coarse = values.reshape(10, 2, 9, 2, 4, 2, 7).mean(axis=(1, 3, 5))
    assert np.corrcoef(coarse.ravel(), data.ravel())[0, 1] > 0.98
    record = json.loads((tmp_path / "sidecar.json").read_text())["GenerativeModel"]
    assert record["AcquiredVolumes"] == []
    assert record["VoxelSize"] == [1.5, 1.5, 1.5]
