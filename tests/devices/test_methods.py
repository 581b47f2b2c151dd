"""Every method on the device with CUDA's rules: it breaks none of them, and what it makes is the processor's."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_dmrigen.diffusion.arrays import Prepared, write_prepared
from bids_dmrigen.diffusion.numerics import policy
from bids_dmrigen.diffusion.training import fixed_score, train
from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import REGISTRY, load
from bids_dmrigen.methods.base import Population, Request
from bids_dmrigen.methods.enhance import stages
from bids_dmrigen.methods.enhance.pairs import MeasuredPairs
from bids_dmrigen.methods.maps import diffdti_model
from bids_dmrigen.methods.synthesis import phydiff_model as phydiff
from bids_dmrigen.nets.rish_ldm import RishLDM, RishLDMSpec
from bids_dmrigen.nets.unet import UNetSpec
from bids_dmrigen.nets.vqvae import VQVAESpec

from ..conftest import tiny_series
from ..simulate.conftest import make_ball

SHAPE = (14, 16, 6)
CPU = torch.device("cpu")


def series(n_directions: int = 12, zoom: float = 3.0) -> Scan:
    gradients = GradientTable(
        np.r_[np.zeros(2), np.full(n_directions, 1000.0)], np.r_[np.zeros((2, 3)), even_directions(n_directions)]
    )
    data = tiny_series(gradients, SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[3:11, 3:13, 1:5] = True
    return Scan(data, np.diag([-zoom, zoom, zoom, 1]), gradients, mask)


def population() -> Population:
    rng = np.random.default_rng(1)
    adc = rng.uniform(0.5e-3, 1.5e-3, (*SHAPE, 2)).astype(np.float32)
    tracts = rng.uniform(0, 1, (*SHAPE, 42)).astype(np.float32)
    return Population(adc, np.array([1000.0, 2000.0]), tracts, make_ball())


def network(name: str):
    """Return a small network of a method, or None: none of its parts adds nothing, as untrained ones do."""
    net = load(name).network("small")
    if net is None:
        return None
    if name == "phydiff":  # the methods' own take long
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            spec = replace(phydiff.SIZES["small"], widths=(32, 32), depths=(1, 1), mapping_width=32)
            net = phydiff.TractHDiT(spec, with_atlas=True)
    if name == "rishldm":
        parts = {"multipliers": (1, 2), "blocks": 1, "attention": (1,), "groups": 4, "heads": 2}
        unet = UNetSpec(4, 4, base=8, context=8, dims=3, **parts)
        vqvae = VQVAESpec(widths=(8,), blocks=1, codes=16, code_width=4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = RishLDM(RishLDMSpec(vqvae, unet, width=8, blocks=1, told=net.spec.told))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02, generator=random)
    return net.requires_grad_(True)


# Method, options of the request, the rest of the request.
WANTED = GradientTable(np.full(3, 1000.0), even_directions(3))
GENERATED = {
    "difusion": ("difusion", {"training_steps": 2}, {"n_samples": 2}),
    "difusion published": ("difusion", {"training_steps": 1, "variant": "published"}, {"sampler": "paper", "steps": 3}),
    "qid2": ("qid2", {"directions": 14}, {}),
    "qid2 samples": ("qid2", {"directions": 14}, {"n_samples": 2, "steps": 2}),
    "qid2 paper's sampler": ("qid2", {"directions": 14}, {"sampler": "paper", "steps": 3}),
    "diffdti": ("diffdti", {}, {"n_samples": 2, "steps": 2}),
    "diffdti paper's sampler": ("diffdti", {}, {"sampler": "paper", "steps": 2}),
    "neighbours": ("neighbours", {}, {}),
    "phydiff": ("phydiff", {"table": WANTED}, {"n_samples": 2, "steps": 2}),
    "phydiff paper's sampler": ("phydiff", {"table": WANTED}, {"sampler": "paper", "steps": 2}),
    "rishldm": ("rishldm", {}, {"steps": 2}),
    "rishldm finer": ("rishldm", {"voxel_mm": 2.5}, {"steps": 2}),
    "interp": ("interp", {"directions": 14}, {}),
    "sh": ("sh", {"directions": 14}, {}),
    "gp": ("gp", {"directions": 14}, {}),
    "lls": ("lls", {}, {}),
    "wlls": ("wlls", {}, {}),
    "mppca": ("mppca", {}, {}),
    "patch2self": ("patch2self", {}, {}),
    "nlm": ("nlm", {}, {}),
    "ascm": ("ascm", {}, {}),
    "noisier2noise": ("noisier2noise", {"training_steps": 2}, {}),
    "dip": ("dip", {"training_steps": 2}, {}),
    "ddm2": ("ddm2", {"training_steps": 2}, {}),
    "bm4d": ("bm4d", {}, {}),
    **{name: (name, {}, {}) for name in ("mlp", "superdti", "deepdti", "cyclegan", "diffdtidirect")},
    **{name: (name, {"directions": 14}, {}) for name in ("cgan", "qgan", "qid2direct")},
    **{name: (name, {"table": WANTED}, {}) for name in ("qdl", "qdl2d", "unet2dwi", "unetpp", "smri2dwi")},
    **{name: (name, {"table": WANTED}, {}) for name in ("phydiffdirect", "ddpmhdit")},
    "latentdiffusion": ("latentdiffusion", {"table": WANTED}, {"n_samples": 2, "steps": 2}),
    **{name: (name, {}, {}) for name in ("refinement", "cnn7t", "gan7t")},
    "atlas": ("atlas", {"table": WANTED}, {}),
    "bspline": ("bspline", {"voxel_mm": 2.5}, {}),
    "rish": ("rish", {}, {}),
}


def generated(case: str, device: torch.device, precision: str):
    name, options, more = GENERATED[case]
    method = load(name)
    net = network(method.spec.weights_from or name)
    request = Request(
        subject="01", run="r", device=device, precision=precision, options=options, population=population(), **more
    )
    with policy(deterministic=True, strict=True):
        # Halves of 30 even directions determine a tensor, so that RISH latent diffusion uses its network.
        many = name == "patch2self" or "rish" in method.spec.fits
        return method.generate(net, series(30 if many else 12), request)


def apart(a: np.ndarray, b: np.ndarray, unit: np.ndarray | None = None) -> float:
    """Return how far two results are apart, relative to the spread of the second's values or others."""
    return float(np.abs(a - b).max() / np.std(b if unit is None else unit))


def test_no_method_is_left_out():
    assert {name for name, *_ in GENERATED.values()} == set(REGISTRY)


@pytest.mark.parametrize("case", GENERATED)
def test_results_are_the_same_as_on_the_processor(case, strict):
    result, expected = (generated(case, device, "fp32") for device in (strict, CPU))
    assert apart(result.mean, expected.mean) < 1e-3
    assert (result.samples is None) == (expected.samples is None)
    if result.samples is not None:
        assert apart(result.samples.draw(1), expected.samples.draw(1), expected.mean) < 1e-3
    numerics = {"Precision": "fp32", "TF32": False, "Deterministic": True}
    assert result.record.get("Numerics", numerics) == numerics


@pytest.mark.parametrize("case", ["difusion", "qid2 samples", "diffdti", "phydiff", "rishldm"])
def test_results_in_bfloat16_are_near_those_in_single_precision(case, strict):
    result, expected = generated(case, strict, "bf16"), generated(case, CPU, "fp32")
    assert np.isfinite(result.mean).all()
    assert 0 < apart(result.mean, expected.mean) < 0.5
    assert result.record["Numerics"]["Precision"] == "bf16"


@pytest.fixture
def _small_blocks(monkeypatch):
    """Let RISH latent diffusion's stages begin and step quickly."""
    monkeypatch.setitem(stages.CONSTANT_BATCHES, "small", 1)
    monkeypatch.setitem(stages.SIDE, "small", (12, 12, 6))


def subjects(method, device):
    return method.subjects(make_ball(), 1, device=device)


def prepared(path, device, n_directions: int = 12, zoom: float = 3.0) -> Prepared:
    write_prepared(path, [("a-run", "a", series(n_directions, zoom), 8.0)])
    return Prepared(path, device)


def steps_of(name: str, source, precision: str) -> list:
    """Return the losses and weights after two training steps of every training of a method."""
    method, found = load(name), []
    net = network(name).to(source.device)
    method.freeze(net, source)
    for stage in method.trainings(net):
        stage.begin(source, 1, 0)
        make = stage.examples(source, "small", 1, 0)
        plan = replace(stage.training_plan("small"), steps=2, evaluate_every=1, precision=precision)
        done = train(net, make, stage.loss, fixed_score(make, stage.loss, 1), plan)
        weights = torch.cat([p.detach().cpu().flatten() for p in net.parameters()])
        found.append(([row["held_out"] for row in done.history], weights))
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["qid2", "diffdti", "phydiff", "rishldm"])
@pytest.mark.usefixtures("_small_blocks")
def test_training_takes_the_processor_s_steps(name, precision, strict):
    result, expected = (steps_of(name, subjects(load(name), d), p) for d, p in ((strict, precision), (CPU, "fp32")))
    for (scores, weights), (expected_scores, expected_weights) in zip(result, expected, strict=True):
        assert scores == pytest.approx(expected_scores, rel=1e-3 if precision == "fp32" else 0.1)
        if precision == "fp32":
            torch.testing.assert_close(weights, expected_weights, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["qid2", "diffdti", "rishldm"])
@pytest.mark.usefixtures("_small_blocks")
def test_training_on_measured_scans(name, strict, tmp_path):

    source = prepared(tmp_path / "poor.safetensors", strict)
    if name == "rishldm":
        source = MeasuredPairs(source, prepared(tmp_path / "good.safetensors", strict, 20))
    for scores, weights in steps_of(name, source, "fp32"):  # a generator of a GPU draws other examples
        assert np.isfinite(scores).all()
        assert weights.isfinite().all()


def test_diffdti_is_calibrated(strict, monkeypatch):
    monkeypatch.setitem(diffdti_model.CALIBRATION_BATCH, "small", 2)
    monkeypatch.setattr("bids_dmrigen.methods.maps.diffdti_model.CALIBRATION_SAMPLES", 2)
    monkeypatch.setattr("bids_dmrigen.methods.maps.diffdti_model.STEPS", (2, 1, 2))
    method, factors = load("diffdti"), []
    for device in (strict, CPU):
        net = network("diffdti").to(device)
        with policy(deterministic=True, strict=True):
            method.calibrate(net, [subjects(method, device)], "small", 0, batches=1)
        factors.append(net.spread.cpu())
    torch.testing.assert_close(*factors, rtol=1e-2, atol=1e-3)


def test_weights_are_written_and_read(strict, tmp_path):
    from bids_dmrigen.diffusion.weights import Card, load_weights, save_weights

    net = network("qid2").to(strict)
    card = Card("qid2", "small", {}, {}, 1, 0.1, 0, "a test", {}, "Apache-2.0")
    save_weights(tmp_path, "trial", net, card, torch.float16)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_weights(other, "trial", "qid2", "small", tmp_path)
    for written, read in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(written.half().cpu(), read.half().cpu())
