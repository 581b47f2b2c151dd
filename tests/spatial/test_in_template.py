"""Methods in the template's space: what they see, and what comes back on the scan's grid."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import load
from bids_dmrigen.methods.base import Generated, Population, Request, Samples
from bids_dmrigen.methods.synthesis.task import wanted_table
from bids_dmrigen.spatial.in_template import TemplateFiles, generate_in_template
from bids_dmrigen.spatial.population import PACKAGED_ADC_ATLAS, write_adc_atlas
from tests.simulate.conftest import make_ball
from tests.spatial.test_population import AFFINE as ATLAS_AFFINE
from tests.spatial.test_population import ball_adc, fsl_layout, one_file
from tests.spatial.test_template_space import AFFINE, MOTION, SHAPE, TEMPLATE, ball
from tests.spatial.test_templates import write_fibres

ants = pytest.importorskip("ants")
TURN = np.linalg.svd(MOTION[:3, :3])
TURN = TURN[0] @ TURN[2]  # the rotation in it


class Stripes:
    """b0 times how much a direction points to the template's front: what it makes tells how directions were turned."""

    def __init__(self, *population):
        self.seen, self.spec = [], SimpleNamespace(population=population or ("adc", "fibres"), grid_mm=2.0)

    def generate(self, net, scan, request):
        table = request.options["table"]
        self.seen.append((scan, table, request.population))
        weight = np.abs(table.world_directions(scan.affine)[:, 1])
        mean = (scan.data * weight).astype(np.float32)
        samples = Samples(request.n_samples, lambda k: mean * (1 + k / 10)) if request.n_samples > 1 else None
        return Generated(mean, samples, table, (), np.zeros(len(table), bool), {"Sampler": {}})


def sha256(*paths):
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    import nibabel as nib

    from bids_dmrigen.spatial.ants_tools import write_matrix

    folder = tmp_path_factory.mktemp("template")
    brain, _ = ball((44, 52, 40), TEMPLATE, 50.0)
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), TEMPLATE), folder / "brain.nii")
    onto = write_matrix(folder / "to.mat", np.linalg.inv(MOTION))
    back = write_matrix(folder / "from.mat", MOTION)
    return TemplateFiles(folder / "brain.nii", onto, back)


@pytest.fixture(scope="module")
def scan():
    mask, points = ball(SHAPE, AFFINE, 32.0)
    world = np.concatenate([np.zeros((2, 3)), even_directions(8)])
    gradients = GradientTable.from_world(np.r_[0.0, 0, np.full(8, 1000.0)], world, AFFINE)
    smooth = 100 + 20 * np.sin(points / 8).prod(axis=-1)
    return Scan(np.stack([smooth * mask] * 10, axis=-1).astype(np.float32), AFFINE, gradients, mask)


def test_the_b0_is_moved_to_the_template_and_the_images_are_moved_back_to_the_scan(scan, files):
    method = Stripes()
    options = {"bvalues": [700.0, 1500.0], "directions": 5}
    generated = generate_in_template(method, scan, Request(left_out=3, options=options), files)
    (there, table, population), (again, hidden, _) = method.seen
    np.testing.assert_array_equal(again.data, there.data)
    assert there.data.shape[3] == 1, "acquired weighted volumes are not shown"
    assert np.allclose(np.diag(there.affine)[:3], 2.0)
    assert population.adc.shape[:3] == there.mask.shape
    assert population.anatomy is not None
    assert (len(table), len(hidden)) == (2 * 5, 3)

    np.testing.assert_array_equal(generated.mean[..., :10], scan.data)
    assert generated.acquired.tolist() == [True] * 10 + [False] * 10
    assert generated.gradients.bvals[10:].tolist() == [700.0] * 5 + [1500.0] * 5
    # Each image as its own direction, seen from the scan, says: turned there, read, and not turned again.
    world = generated.gradients.world_directions(scan.affine)[10:]
    expected = np.abs(world @ TURN.T)[:, 1]
    inner = ndimage.binary_erosion(scan.mask, iterations=3)
    ratio = (generated.mean[inner][:, 10:] / scan.data[inner][:, :1]).mean(axis=0)
    np.testing.assert_allclose(ratio, expected, atol=0.01)
    assert not generated.mean[~scan.mask][:, 10:].any()
    assert len(generated.left_out.volumes) == 3
    assert set(generated.left_out.volumes) <= set(range(2, 10))
    cosines = np.abs(scan.gradients.world_directions(AFFINE)[generated.left_out.volumes] @ TURN.T)[:, 1]
    ratio = (generated.left_out.mean[inner] / scan.data[inner][:, :1]).mean(axis=0)
    np.testing.assert_allclose(ratio, cosines, atol=0.01)
    assert generated.samples is None
    series = generated.in_template
    assert series.gradients.bvals.tolist() == [0.0, *[700.0] * 5, *[1500.0] * 5], "those left out are a check alone"
    np.testing.assert_array_equal(series.mean[..., :1], there.data)
    weight = np.abs(series.gradients.world_directions(series.affine)[1:, 1])
    np.testing.assert_allclose(series.mean[..., 1:], there.data * weight, rtol=1e-5)
    assert generated.record["Population"] == {
        "adc": {"Name": "packaged ADC atlas", "SHA256": sha256(PACKAGED_ADC_ATLAS)},
        "fibres": {"Name": "embedded analytic bundles"},
    }
    assert generated.warnings == ()


def test_images_are_as_bright_at_the_brains_rim_as_within(scan, files):
    """Without an anatomy the attenuation is the same everywhere: the image is b0 times one number in every voxel."""
    flat = replace(scan, data=np.full(scan.data.shape, 1000, np.float32))
    options = {"bvalues": [1000.0], "directions": 1}
    for method in (load("atlas"), load("phydiff")):
        maps = {"adc": np.full((*SHAPE, 1), 1e-3, np.float32), "bvals": np.array([1000.0])}
        table = wanted_table(flat, [1000.0], 1)
        net = method.network("small")
        population = Population(**maps, anatomy=make_ball(radius=300.0, affine=AFFINE, shape=SHAPE))
        generated = method.generate(
            net, flat, Request(precision="fp32", population=population, options={"table": table})
        )
        beyond = ndimage.binary_dilation(flat.mask, iterations=3)
        values = generated.mean[beyond]
        assert values.min() > 0.95 * values.max(), "a spline that reads across an edge of 0 darkens the rim"
    generated = generate_in_template(Stripes(), flat, Request(options=options), files)
    values = generated.mean[..., -1][flat.mask]
    assert values.std() < 0.002 * values.mean()


def test_samples_are_on_the_scans_grid_and_without_a_request_nothing_is_left_out(scan, files):
    options = {"bvalues": [1000.0], "directions": np.array([[0.0, 1, 0]])}
    generated = generate_in_template(Stripes(), scan, Request(n_samples=2, options=options), files)
    assert generated.left_out is None
    few = generate_in_template(
        Stripes(), scan, Request(n_samples=2, options=options | {"bvalues": [1000.0, 2000.0]}), files, [0, 10], False
    )
    drawn = few.samples.draw(1)
    np.testing.assert_allclose(drawn[..., 10], 1.1 * few.mean[..., 10], rtol=1e-4, atol=0.1)
    np.testing.assert_array_equal(drawn[..., 11], few.mean[..., 11])
    first, second = generated.samples
    np.testing.assert_array_equal(first, generated.mean)
    np.testing.assert_array_equal(second[..., :10], scan.data)
    np.testing.assert_allclose(second[..., 10], 1.1 * generated.mean[..., 10], rtol=1e-4, atol=0.1)


def test_the_record_names_what_was_used_by_its_files(tmp_path, files):
    fibres, folder, file = write_fibres(tmp_path / "hcp"), fsl_layout(tmp_path / "atlases"), one_file(tmp_path)
    with_atlases = replace(files, xtract=folder, fibres=fibres)
    images = [
        fibres / f"{n}.nii.gz" for n in ("T1w", "brain_mask", "tissue_wm_gm_csf_percent", "peaks_world_ras", "qa")
    ]
    assert with_atlases.record("fibres") == {"Name": "hcp", "SHA256": sha256(*images)}
    image = folder / "xtract-tract-atlases-prob-2mm.nii.gz"
    assert with_atlases.record("tracts") == {"Name": "XTRACT", "SHA256": sha256(image)}
    assert replace(with_atlases, xtract=file).record("tracts") == {"Name": "own_percent.nii.gz", "SHA256": sha256(file)}
    assert files.record("tracts") == {"Name": "none"}


@pytest.mark.parametrize(
    ("space", "template", "warned"),
    [
        ("MNI152NLin6Asym", "MNI152NLin6Asym", False),
        ("MNI152NLin6Asym", "MNI152NLin2009aSym", True),
        ("MNI152", "MNI152NLin2009aSym", False),
        ("MNI152", "Infant", True),
        (None, "Infant", False),
        ("MNI152NLin6Asym", None, False),
    ],
)
def test_an_adc_atlas_in_another_space_gives_a_warning(tmp_path, files, space, template, warned):
    about = {} if space is None else {"Space": space}
    adc = write_adc_atlas(tmp_path / "subjects.nii.gz", ball_adc(), (1000.0, 2000.0), ATLAS_AFFINE, about)
    said = replace(files, adc=adc, template=template).warnings(["adc", "tracts"])
    if template == "Infant":
        assert said[0].startswith("the template is Infant: weights and atlases are in MNI152")
        assert said[:1] == replace(files, adc=adc, template=template).warnings(["fibres"])
        said = said[1:]
    assert len(said) == warned
    if warned:
        assert said[0].startswith(
            f"the ADC atlas (subjects.nii.gz) is in {space}, the template is {template}: the two spaces"
        )


def test_the_packaged_adc_atlas_gives_a_warning_too_where_a_method_uses_it(scan, files):
    options = {"bvalues": [1000.0], "directions": 1}
    for kind, n in (("adc", 1), ("fibres", 0)):
        away = replace(files, template="MNI152NLin6Asym")
        generated = generate_in_template(Stripes(kind), scan, Request(options=options), away)
        assert generated.record["Population"].keys() == {kind}
        assert len(generated.warnings) == n
        assert all("(packaged ADC atlas) is in MNI152NLin2009aSym" in warning for warning in generated.warnings)
