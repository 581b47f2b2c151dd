"""The embedded standard brain, and templates found in a directory."""

import numpy as np
import pytest

from bids_dmrigen.interfaces.templates import TemplateError, embedded_mni, find_template


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


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
    touch(folder, f"{stems[1]}_T2w.nii.gz", f"{stems[0]}_FA.nii.gz")
    for start in (folder, tmp_path):
        template = find_template(start)
        assert template.name == "MNI152NLin6Asym"
        assert template.t1w.name == f"{stems[1]}_T1w.nii.gz"
        assert template.mask.name == f"{stems[1]}_desc-brain_mask.nii.gz"
        assert template.t2w.name == f"{stems[1]}_T2w.nii.gz"
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
def test_what_is_missing_is_said(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(TemplateError, match=message):
        find_template(tmp_path)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TemplateError, match="no such directory"):
        find_template(tmp_path / "nowhere")
