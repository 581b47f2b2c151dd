"""The table of output names."""

import doctest

import pytest

from bids_dmrigen.bids import names

STEM = "sub-1/ses-b/dwi/sub-1_ses-b_acq-x_dir-AP_run-2_"


def test_doctests():
    assert doctest.testmod(names).failed == 0


@pytest.mark.parametrize(
    ("key", "fields", "expected"),
    [
        ("preproc", {}, STEM + "desc-preproc_dwi.nii.gz"),
        ("generated", {"method": "difusion"}, STEM + "desc-difusion_dwi.nii.gz"),
        ("sample", {"method": "qid2", "number": "3"}, STEM + "desc-qid2sample3_dwi.nii.gz"),
        ("map_low", {"method": "m", "param": "fa"}, STEM + "model-tensor_param-fa_desc-mq05_dwimap.nii.gz"),
        (
            "to_template",
            {"template": "MNI152NLin6Asym"},
            STEM + "from-dwi_to-MNI152NLin6Asym_mode-image_xfm.h5",
        ),
    ],
)  # fmt: skip
def test_conventions(key, fields, expected):
    entities = {"run": "2", "subject": "1", "direction": "AP", "session": "b", "acquisition": "x"}
    assert names.output_path(entities, key, **fields).as_posix() == expected


def test_names_are_distinct():
    entities = {"subject": "1"}
    fields = {"method": "m", "param": "fa", "source": "preproc", "template": "T", "number": "1"}
    paths = [names.output_path(entities, key, **fields) for key in names.DWI]
    assert len(set(paths)) == len(paths)


def test_bidsignore_has_no_trailing_slash():
    assert not any(line.endswith("/") for line in names.BIDSIGNORE)
