"""Population maps: files that are read without change, and files that are refused."""

import json

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.simulate.atlas_file import AtlasError
from bids_dmrigen.spatial.population import (
    PACKAGED_ADC_ATLAS,
    STEP_MM2_PER_S,
    TRACTS,
    check_atlas,
    coarser,
    population_on,
    read_adc_atlas,
    read_xtract,
    write_adc_atlas,
)

SHAPE = (14, 16, 12)
AFFINE = np.array([[-4.0, 0, 0, 26], [0, 4.0, 0, -30], [0, 0, 4.0, -22], [0, 0, 0, 1]])  # as FSL stores: left last
BVALS = (1000.0, 2000.0)


def world(shape, affine):
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def ball_adc(shape=SHAPE, affine=AFFINE, radius=18.0):
    """Return diffusivities that rise to the right, twice as steep at the second b-value, in a ball."""
    points = world(shape, affine)
    inside = np.linalg.norm(points, axis=-1) < radius
    return np.stack([(1e-3 + k * 1e-5 * points[..., 0]) * inside for k in (1, 2)], axis=-1)


@pytest.fixture
def adc_atlas(tmp_path):
    return write_adc_atlas(tmp_path / "adc.nii.gz", ball_adc(), BVALS, AFFINE, {"Source": "a test", "Subjects": 3})


def tract_maps(seed=0, n=42):
    """Return percentages in which every tract k is another line of voxels."""
    tracts = np.zeros((*SHAPE, n), np.uint8)
    for k in range(n):
        tracts[k % 14, k // 14 + 3, 2:10, k] = 50 + k
    return tracts


def write_xml(path, names):
    labels = "".join(f'<label index="{k}" x="90" y="100" z="70">{name}</label>\n' for k, name in enumerate(names))
    path.write_text(f"<atlas><header><name>XTRACT</name></header><data>\n{labels}</data></atlas>\n")


def fsl_layout(folder, names=TRACTS, tracts=None):
    (folder / "XTRACT").mkdir(parents=True)
    image = nib.Nifti1Image(tract_maps() if tracts is None else tracts, AFFINE)
    nib.save(image, folder / "XTRACT" / "xtract-tract-atlases-prob-2mm.nii.gz")
    write_xml(folder / "XTRACT.xml", names)
    return folder / "XTRACT"


def one_file(folder, names=TRACTS, tracts=None):
    image = nib.Nifti1Image(tract_maps() if tracts is None else tracts, AFFINE)
    nib.save(image, folder / "own_percent.nii.gz")
    rows = "".join(f"{k}\t{name}\n" for k, name in enumerate(names))
    (folder / "own_labels.tsv").write_text(f"index\tname\n{rows}")
    return folder / "own_percent.nii.gz"


def test_an_adc_atlas_has_the_same_values_after_writing_and_reading(adc_atlas):
    data, bvals, affine = read_adc_atlas(adc_atlas)
    np.testing.assert_allclose(data, ball_adc(), atol=0.51 * STEP_MM2_PER_S)
    np.testing.assert_array_equal(bvals, BVALS)
    np.testing.assert_array_equal(affine, AFFINE)
    image = nib.load(adc_atlas)
    assert image.get_data_dtype() == np.int16
    assert int(image.header["sform_code"]) == 4  # MNI
    sidecar = json.loads((adc_atlas.parent / "adc.json").read_text())
    assert sidecar == {"BValues": [1000.0, 2000.0], "Units": "mm^2/s", "Source": "a test", "Subjects": 3}


@pytest.mark.parametrize(
    ("factor", "sidecar", "message"),
    [
        (1e3, {"BValues": BVALS}, "expected diffusivities in mm²/s, 0 to 0.006, found 0 to 1.28"),
        (-1.0, {"BValues": BVALS}, "expected diffusivities in mm²/s"),
        (np.nan, {"BValues": BVALS}, "expected diffusivities in mm²/s"),
        (1.0, {"BValues": [1000]}, "expected 2 rising BValues, one per volume"),
        (1.0, {"BValues": [2000, 1000]}, "expected 2 rising BValues"),
        (1.0, {"BValues": ["low", "high"]}, "expected JSON with BValues"),
        (1.0, {"Units": "mm^2/s"}, "expected JSON with BValues"),
        (1.0, None, "adc.json: no such file"),
    ],
)
def test_a_file_that_is_no_adc_atlas_is_refused(tmp_path, factor, sidecar, message):
    nib.save(nib.Nifti1Image((factor * ball_adc()).astype(np.float32), AFFINE), tmp_path / "adc.nii.gz")
    if sidecar is not None:
        (tmp_path / "adc.json").write_text(json.dumps(sidecar))
    for read in (read_adc_atlas, lambda path: check_atlas("adc", path)):
        with pytest.raises(AtlasError, match=message):
            read(tmp_path / "adc.nii.gz")


def test_an_absent_or_flat_image_is_refused(tmp_path):
    with pytest.raises(AtlasError, match="no such file"):
        read_adc_atlas(tmp_path / "adc.nii.gz")
    nib.save(nib.Nifti1Image(ball_adc()[..., 0].astype(np.float32), AFFINE), tmp_path / "adc.nii.gz")
    with pytest.raises(AtlasError, match="expected a 4-D image"):
        read_adc_atlas(tmp_path / "adc.nii.gz")


def test_a_coarser_atlas_keeps_values_and_places():
    adc, affine = coarser(ball_adc(), AFFINE, 6.0)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 6.0)
    points, old = world(adc.shape[:3], affine), world(SHAPE, AFFINE)
    inside = adc[..., 0] > 0
    np.testing.assert_allclose(points[inside].mean(axis=0), old[ball_adc()[..., 0] > 0].mean(axis=0), atol=0.6)
    core = np.linalg.norm(points, axis=-1) < 10
    np.testing.assert_allclose(adc[core][:, 1], 1e-3 + 2e-5 * points[core][:, 0], rtol=1e-4)
    litres = inside.sum() * 6.0**3, (ball_adc()[..., 0] > 0).sum() * 4.0**3
    assert litres[0] == pytest.approx(litres[1], rel=0.1)


@pytest.mark.parametrize("layout", [fsl_layout, one_file])
def test_tracts_are_shares_in_one_order(tmp_path, layout):
    order = np.random.default_rng(0).permutation(42)
    path = layout(tmp_path / "a" if layout is fsl_layout else tmp_path, [TRACTS[k] for k in order],
                  tract_maps()[..., order])  # fmt: skip
    tracts, names, affine = read_xtract(path)
    assert names == TRACTS
    np.testing.assert_allclose(tracts, tract_maps() / 100, atol=1e-6)
    np.testing.assert_array_equal(affine, AFFINE)


def test_labels_may_lie_in_fsl_s_folder_and_the_coarse_image_is_taken(tmp_path):
    folder = fsl_layout(tmp_path / "atlases")
    (folder.parent / "XTRACT.xml").rename(folder / "XTRACT.xml")
    (folder / "xtract-tract-atlases-prob-1mm.nii.gz").write_bytes(b"never read")
    assert read_xtract(folder)[0].shape == (*SHAPE, 42)


@pytest.mark.parametrize("layout", [fsl_layout, one_file])
@pytest.mark.parametrize(
    ("names", "tracts", "message"),
    [
        ((*TRACTS, "Muratoff Bundle L"), tract_maps(n=43), "42 tracts .* found 43 labels .*Muratoff Bundle L"),
        (TRACTS[1:], tract_maps(), "found 41 labels .*Anterior Commissure"),
        (("Bundle 1", *TRACTS[1:]), tract_maps(), r"found 42 labels .*Anterior Commissure, Bundle 1"),
        (TRACTS, tract_maps(n=41), "42 tracts .* found 41 volumes"),
        (TRACTS, (tract_maps() / 100).astype(np.float32), "expected percent of subjects, 0 to 100, found 0 to 0.91"),
        (TRACTS, 2 * tract_maps(), "found 0 to 182"),
        (TRACTS, tract_maps()[..., 0], "expected a 4-D image"),
    ],
)
def test_other_tracts_and_other_values_are_refused(tmp_path, layout, names, tracts, message):
    path = layout(tmp_path / "a" if layout is fsl_layout else tmp_path, names, tracts)
    with pytest.raises(AtlasError, match=message):
        read_xtract(path)
    if message.startswith(("expected percent", "found 0 to 182")):
        check_atlas("tracts", path)  # the check does not read the values
    else:
        with pytest.raises(AtlasError, match=message):
            check_atlas("tracts", path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(AtlasError, match=r"expected .*xtract-tract-atlases-prob-2mm.nii.gz or .*, found no such file"):
        read_xtract(tmp_path)
    with pytest.raises(AtlasError, match=r"expected .*absent.nii.gz, found no such file"):
        check_atlas("tracts", tmp_path / "absent.nii.gz")
    image = one_file(tmp_path)
    labels = tmp_path / "own_labels.tsv"
    labels.write_text(labels.read_text().replace("index", "number"))
    with pytest.raises(AtlasError, match="expected columns index"):
        read_xtract(image)
    labels.unlink()
    with pytest.raises(AtlasError, match=r"expected .*own_labels.tsv or .*own_percent_labels.tsv, found no such file"):
        read_xtract(image)
    folder = fsl_layout(tmp_path / "atlases")
    (folder.parent / "XTRACT.xml").write_text("<atlas><data>")
    with pytest.raises(AtlasError, match=r"XTRACT.xml: expected FSL's <label"):
        read_xtract(folder)
    (folder.parent / "XTRACT.xml").unlink()
    with pytest.raises(AtlasError, match=r"XTRACT.xml, found no such file"):
        read_xtract(folder)


def test_population_maps_are_resampled_to_the_grid_by_world_positions(tmp_path, adc_atlas):
    affine = np.array([[1.5, 0, 0, -22.3], [0, 1.5, 0, -24.0], [0, 0, 1.5, -21.1], [0, 0, 0, 1]])
    shape = (30, 32, 29)
    points = world(shape, affine)
    maps = population_on(shape, affine, adc_atlas, one_file(tmp_path))
    np.testing.assert_array_equal(maps.bvals, BVALS)
    core, rim = np.linalg.norm(points, axis=-1) < 10, maps.adc[..., 0] > 0
    np.testing.assert_allclose(maps.adc[core][:, 1], 1e-3 + 2e-5 * points[core][:, 0], atol=2e-7)
    assert maps.adc[rim][:, 0].min() > 0.75e-3  # the edge is not mixed with what is outside
    assert (maps.adc[np.linalg.norm(points, axis=-1) > 22] == 0).all()
    k = 20  # a line along z of the atlas's voxels (6, 4)
    line = AFFINE[:3] @ [6, 4, 6, 1]
    centre = np.average(points[..., :2].reshape(-1, 2), axis=0, weights=maps.tracts[..., k].ravel())
    np.testing.assert_allclose(centre, line[:2], atol=0.4)
    assert 0.5 < maps.tracts[..., k].max() <= 0.70 + 1e-6
    assert population_on(shape, affine, adc_atlas).tracts is None


def test_an_atlas_outside_mni_space_is_refused(adc_atlas):
    away = np.diag([2.0, 2, 2, 1])
    away[:3, 3] = 500
    with pytest.raises(AtlasError, match="expected an atlas in MNI coordinates"):
        population_on((5, 5, 5), away, adc_atlas)


def test_the_packaged_atlas_is_a_brain_in_mni_coordinates():
    data, bvals, affine = read_adc_atlas(PACKAGED_ADC_ATLAS)
    np.testing.assert_array_equal(bvals, [1000, 2000, 3000])
    litres = (data[..., 0] > 0).sum() * abs(np.linalg.det(affine[:3, :3])) / 1e6
    assert 1.6 < litres < 2.1

    def at(*mm):
        return data[tuple(np.round(np.linalg.inv(affine) @ [*mm, 1])[:3].astype(int))]

    assert min(at(side, -38, 13)[0] for side in (-24, 24)) > 1.6e-3  # atria of the ventricles: behind, above the middle
    for white in ((26, -20, 28), (-26, -20, 28)):
        assert 0.6e-3 < at(*white)[0] < 0.9e-3
        assert (np.diff(at(*white)) < 0).all()
    assert at(0, -60, 90)[0] == 0
    assert PACKAGED_ADC_ATLAS.stat().st_size < 1e6


@pytest.mark.real
def test_the_real_tracts_are_at_their_anatomical_positions(real_data):
    tracts, names, affine = read_xtract(real_data / "atlas" / "xtract42_percent.nii.gz")
    assert tracts.max() == pytest.approx(1.0)
    points = world(tracts.shape[:3], affine).reshape(-1, 3)

    def centre(name):
        return np.average(points, axis=0, weights=tracts[..., names.index(name)].ravel())

    for name in names:
        if name.endswith((" L", " R")):
            assert centre(name)[0] * (1 if name.endswith("R") else -1) > 3, name
    assert centre("Forceps Major")[1] < -50 < 20 < centre("Forceps Minor")[1]
    assert centre("Middle Cerebellar Peduncle")[2] < -25
