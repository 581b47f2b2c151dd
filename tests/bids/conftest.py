"""What tests of the dataset share."""

import json

import pytest


@pytest.fixture
def subject(tmp_path):
    """A dataset with one empty subject."""
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "case", "BIDSVersion": "1.10.0"}))
    return tmp_path / "sub-01"
