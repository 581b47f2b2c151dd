"""Head motion: the known motion of a simulated scan is estimated."""

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.spatial.motion import _keep_predicted, estimate_motion, framewise_displacement
from bids_dmrigen.spatial.rigid import motion_parameters

from .test_rigid import AFFINE, CENTER, rigid


def moved_head():
    """A textured head with contrast between b0 and DWI, each volume in another pose, computed from a formula."""
    rng = np.random.default_rng(1)
    shape = (41, 49, 33)
    gradients = GradientTable([0, 0, *[1000] * 5], np.r_[np.zeros((2, 3)), even_directions(5)])
    truth = [np.eye(4)] + [rigid(rng.uniform(-4, 4, 3), rng.uniform(-4, 4, 3)) for _ in range(len(gradients) - 1)]
    centers = rng.uniform(-1, 1, (60, 3)) * [38, 46, 30] * 0.8
    widths, heights = rng.uniform(5, 12, 60), rng.uniform(-0.6, 0.6, 60)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]

    def head(points, weighted):
        local = points - CENTER
        edge = 1 / (1 + np.exp(12 * (np.linalg.norm(local / [46, 56, 38], axis=-1) - 1)))
        texture = np.ones(points.shape[:-1])
        for center, width, height in zip(centers, widths, heights, strict=True):
            texture += height * np.exp(-((local - center) ** 2).sum(-1) / (2 * width**2))
        return edge * (600 / np.clip(texture, 0.3, 3) ** 0.7 if weighted else 1000 * np.clip(texture, 0.3, 3))

    volumes = []
    for volume, matrix in enumerate(truth):
        back = np.linalg.inv(matrix)
        clean = head(world @ back[:3, :3].T + back[:3, 3], not gradients.is_b0[volume])
        noise = rng.normal(0, 40, (2, *shape))
        volumes.append(np.hypot(clean + noise[0], noise[1]))
    mask = np.linalg.norm((world - CENTER) / [46, 56, 38], axis=-1) < 1
    return np.stack(volumes, -1).astype(np.float32), gradients, mask, np.stack(truth)


@pytest.fixture(scope="module")
def moved():
    return moved_head()


def test_known_motion_is_found(moved):
    data, gradients, mask, truth = moved
    found = estimate_motion(data, AFFINE, gradients, mask)
    np.testing.assert_allclose(found[0], np.eye(4), atol=1e-9)  # the reference space is the first b0's
    left = motion_parameters(np.linalg.inv(truth) @ found, CENTER)
    assert np.abs(left[:, :3]).max() < 0.35  # voxels of 3 mm; that of real anatomy: benchmarks/motion.py
    assert np.degrees(np.abs(left[:, 3:])).max() < 0.3


def test_only_shears_that_the_gradients_predict_are_kept():
    rng = np.random.default_rng(0)
    gradients = GradientTable(np.full(20, 1000.0), even_directions(20))
    predicted = gradients.bvecs @ rng.normal(0, 0.01, (3, 3))
    for shears, kept in ((predicted, predicted), (rng.normal(0, 0.01, (20, 3)), 0)):
        transforms = np.tile(np.eye(4), (20, 1, 1))
        transforms[:, 1, :3] += shears
        left = _keep_predicted(transforms, gradients, 1, np.zeros(3))[:, 1, :3] - [0, 1, 0] - kept
        assert np.sqrt((left**2).mean()) < 0.003


def test_eddy_currents_are_found_and_survive_the_tie_to_the_b0():
    from bids_dmrigen.simulate.artefacts import Artefacts
    from bids_dmrigen.simulate.atlas import procedural_atlas
    from bids_dmrigen.simulate.scanner import acquire, protocol, scan_grid
    from bids_dmrigen.spatial.templates import embedded_mni

    arrays, atlas_affine = embedded_mni(4)
    atlas = procedural_atlas(**arrays, affine=atlas_affine)
    shape = (46, 54, 40)
    affine = scan_grid(atlas, 4.0, shape)
    gradients = protocol(affine, 8, 1, 1000)
    simulated = acquire(atlas, gradients, affine, shape, snr=40, seed=1, artefacts=Artefacts(eddy_mm=5))
    found = estimate_motion(simulated.scan.data, affine, gradients, simulated.scan.mask, axis=1)
    field = simulated.truth["eddy"]  # shift in mm, slopes
    index = np.argwhere(simulated.scan.mask)[::31]
    along = field[1:, :1] + field[1:, 1:] @ ((index - (np.array(shape) - 1) / 2) * 4.0).T  # (N, P)
    points = np.column_stack([index, np.ones(len(index))]) @ affine.T
    moved = (points @ (found[1:] - np.eye(4)).transpose(0, 2, 1))[..., 1] * np.sign(affine[1, 1])
    assert np.abs(moved - along).mean() < 0.45 * np.abs(along).mean()  # rigid registration leaves nine tenths


def test_framewise_displacement_by_hand():
    translations = np.array([[0.0, 0, 0], [1, -2, 0], [1, -2, 0]])
    rotations = np.array([[0.0, 0, 0], [0, 0, 0], [0.01, 0, -0.01]])
    np.testing.assert_allclose(framewise_displacement(translations, rotations), [np.nan, 3.0, 1.0])
