"""An atlas as an array file."""

import numpy as np
import pytest
import torch

from bids_dmrigen.simulate.atlas_file import AtlasError, read_atlas, save_atlas


def test_an_atlas_comes_back(ball, tmp_path):
    atlas = ball(direction=(1, 2, 0.5))
    back = read_atlas(save_atlas(tmp_path / "atlas.safetensors", atlas))
    np.testing.assert_array_equal(back.affine, atlas.affine)
    assert torch.equal(back.brain, atlas.brain)
    for name in ("fractions", "directions", "weights", "t1w", "texture"):
        torch.testing.assert_close(getattr(back, name), getattr(atlas, name), atol=1e-3, rtol=0)
    torch.testing.assert_close(back.fractions.sum(dim=0), back.brain.float())


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(AtlasError, match="prepare --atlas"):
        read_atlas(tmp_path / "x.safetensors")
    with pytest.raises(AtlasError, match="not an atlas file"):
        read_atlas(tmp_path / "absent.safetensors")
