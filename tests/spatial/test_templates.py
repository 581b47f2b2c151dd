"""The embedded standard brain, templates found in a directory, and atlases with fibre directions."""

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.simulate.atlas_file import AtlasError
from bids_dmrigen.spatial.templates import (
    TemplateError,
    check_fibre_atlas,
    check_template,
    embedded_mni,
    find_template,
    read_fibre_atlas,
)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_fibres(folder, **changed):
    """Write an atlas of one fibre direction, front to back; `changed` are other arrays, None to leave an image out."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (6, 7, 5)
    directions, strengths = np.zeros((*shape, 9), np.float32), np.zeros((*shape, 3), np.float32)
    directions[..., 1], strengths[..., 0] = 1, 0.3
    images = {
        "T1w": np.full(shape, 900, np.int16),
        "brain_mask": np.ones(shape, np.uint8),
        "tissue_wm_gm_csf_percent": np.stack([np.full(shape, p, np.uint8) for p in (70, 20, 10)], axis=-1),
        "peaks_world_ras": directions,
        "qa": strengths,
    }
    for name, array in (images | changed).items():
        if array is not None:
            nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1])), folder / f"{name}.nii.gz")
    return folder


def test_embedded_brain_is_a_partition_in_mni_orientation():
    arrays, affine = embedded_mni(4)
    shape = arrays["t1w"].shape
    assert all(a.shape == shape for a in arrays.values())
    assert arrays["brain"].dtype == bool
    assert float((arrays["white"] + arrays["grey"]).max()) <= 1.05
    assert (arrays["t1w"][~arrays["brain"]] == 0).all()
    litres = arrays["brain"].sum() * abs(np.linalg.det(affine[:3, :3])) / 1e6
    assert 1.5 < litres < 2.1

    def at(name, *world):
        return arrays[name][tuple(np.round(np.linalg.inv(affine) @ [*world, 1])[:3].astype(int))]

    assert at("white", 0, 28, 5) > 0.6  # genu of the corpus callosum: in front
    assert at("white", 0, -38, 13) > 0.6  # splenium: behind
    assert at("grey", 28, -60, -25) > 0.5  # cerebellum: below
    assert at("brain", 0, 0, 90) == 0


def test_templateflow_layout_is_found_at_its_finest_resolution(tmp_path):
    folder = tmp_path / "tpl-MNI152NLin6Asym"
    stems = [f"tpl-MNI152NLin6Asym_res-{res}" for res in ("02", "01")]
    for stem in stems:
        touch(folder, f"{stem}_T1w.nii.gz", f"{stem}_desc-brain_T1w.nii.gz", f"{stem}_desc-brain_mask.nii.gz")
    touch(folder, f"{stems[0]}_FA.nii.gz")
    for start in (folder, tmp_path):
        template = find_template(start)
        assert template.name == "MNI152NLin6Asym"
        assert template.t1w.name == f"{stems[1]}_T1w.nii.gz"
        assert template.mask.name == f"{stems[1]}_desc-brain_mask.nii.gz"
        assert template.fa is None, "an FA of another resolution lies on another grid"


def test_plain_files_are_enough(tmp_path):
    touch(tmp_path, "tpl-Own_T1w.nii.gz", "tpl-Own_mask.nii.gz", "tpl-Own_FA.nii.gz")
    template = find_template(tmp_path)
    assert (template.name, template.fa.name) == ("Own", "tpl-Own_FA.nii.gz")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"no \*_T1w.nii.gz found"),
        (["brain_T1w.nii.gz", "brain_mask.nii.gz"], "does not say which template"),
        (["tpl-A_T1w.nii.gz"], "no brain mask"),
        (["tpl-A_T1w.nii.gz", "tpl-A_mask.nii.gz", "tpl-B_T1w.nii.gz"], r"several templates \(A, B\)"),
    ],
)
def test_missing_files_are_named(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(TemplateError, match=message):
        find_template(tmp_path)


def test_a_template_is_read_whole_before_anything_is_computed(tmp_path):
    for name, shape in (("T1w", (6, 7, 5)), ("mask", (6, 7, 5))):
        nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.diag([2.0, 2, 2, 1])), tmp_path / f"tpl-A_{name}.nii.gz")
    template = find_template(tmp_path)
    check_template(template)
    whole = template.t1w.read_bytes()
    template.t1w.write_bytes(whole[:-6])
    with pytest.raises(TemplateError, match=r"tpl-A_T1w.*truncated or damaged"):
        check_template(template)
    template.t1w.write_bytes(whole)
    nib.save(nib.Nifti1Image(np.ones((6, 7, 4), np.uint8), np.diag([2.0, 2, 2, 1])), template.mask)
    with pytest.raises(TemplateError, match="the mask is not on the grid of tpl-A_T1w"):
        check_template(template)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(TemplateError, match="no such directory"):
        find_template(tmp_path / "nowhere")


def test_a_fibre_atlas_has_the_same_values_after_writing_and_reading(tmp_path):
    arrays, affine = read_fibre_atlas(write_fibres(tmp_path))
    np.testing.assert_array_equal(np.diag(affine), [2, 2, 2, 1])
    assert (arrays["directions"][0, 1] == 1).all()  # the first population, along y
    assert (arrays["directions"].sum(), arrays["strengths"][0, 0, 0, 0]) == (6 * 7 * 5, np.float32(0.3))
    np.testing.assert_allclose([arrays["white"].mean(), arrays["grey"].mean()], [0.7, 0.2], rtol=1e-6)


@pytest.mark.parametrize("function", [check_fibre_atlas, read_fibre_atlas])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qa": None}, r"qa.nii.gz: no such file; a fibre atlas holds T1w, brain_mask, "),
        ({"peaks_world_ras": np.zeros((6, 7, 5, 3), np.float32)}, r"peaks_world_ras.nii.gz: expected shape .*9\)"),
        ({"brain_mask": np.ones((6, 7, 4), np.uint8)}, r"brain_mask.nii.gz: .*, found \(6, 7, 4\)"),
        ({"T1w": np.ones((6, 7, 5, 2), np.float32)}, r"T1w.nii.gz: expected shape \(6, 7, 5\)"),
    ],
)
def test_a_folder_that_is_no_fibre_atlas_is_refused(tmp_path, function, changed, message):
    with pytest.raises(AtlasError, match=message):
        function(write_fibres(tmp_path, **changed))


def test_fibre_images_on_two_grids_and_files_that_are_no_images_are_refused(tmp_path):
    qa = write_fibres(tmp_path) / "qa.nii.gz"
    image = nib.load(qa)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([-2.0, 2, 2, 1])), qa)
    with pytest.raises(AtlasError, match=r"qa.nii.gz: expected .* with another affine"):
        check_fibre_atlas(tmp_path)
    qa.write_text("no image")
    with pytest.raises(AtlasError, match=r"qa.nii.gz: cannot be read as an image"):
        check_fibre_atlas(tmp_path)


def test_a_fibre_atlas_is_checked_by_its_headers(tmp_path):
    qa = write_fibres(tmp_path) / "qa.nii.gz"
    qa.write_bytes(qa.read_bytes()[:-20])  # the header is whole
    check_fibre_atlas(tmp_path)
