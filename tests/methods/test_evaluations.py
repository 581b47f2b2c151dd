"""`--steps` means one thing in all methods: how often the network is asked for each image."""

from dataclasses import replace

import numpy as np
import pytest

from bids_dmrigen.dwi.gradients import GradientTable, even_directions
from bids_dmrigen.dwi.series import Scan
from bids_dmrigen.methods import REGISTRY, load, spec_of
from bids_dmrigen.methods.base import Population, Request
from bids_dmrigen.methods.denoise import difusion_model
from bids_dmrigen.methods.directions.qid2_model import SIZES as QID2_SIZES
from bids_dmrigen.methods.maps import diffdti_model
from bids_dmrigen.methods.synthesis import phydiff_model
from bids_dmrigen.nets.direction_unet import DirectionUNet
from bids_dmrigen.nets.fefm import FusedUNet

AFFINE = np.diag([2.0, 2, 2, 1])
SHAPE, SLICES = (16, 12, 3), 3
ASKED = 6  # even, for methods that ask twice at each time, and divisible by three
LEARNT = [n for n in REGISTRY if "paper" in spec_of(n).sizes and (spec_of(n).draws or n == "rishldm")]


def scan_of(n):
    bvecs = even_directions(n) if n else np.zeros((0, 3))
    gradients = GradientTable(np.r_[0.0, np.full(n, 1000.0)], np.concatenate([np.zeros((1, 3)), bvecs]))
    rng = np.random.default_rng(0)
    data = 100 * np.exp(-gradients.bvals * 0.8e-3) * rng.uniform(0.8, 1.2, (*SHAPE, 1))
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2] = True
    return Scan((data + rng.normal(0, 1, data.shape)).astype(np.float32), AFFINE, gradients, mask)


def narrow(name, size):
    """Return a network of a method, as deep as those of size `paper` and narrow."""
    if size == "small":
        return load(name).network("small")
    if name == "qid2":
        return DirectionUNet(replace(QID2_SIZES["paper"], base=32, head=32, context=8, feed=1), 6)
    if name == "diffdti":
        fen = replace(diffdti_model.FEN["paper"], width=16, layers=1, heads=2)
        net = FusedUNet(replace(diffdti_model.SIZES["paper"], base=32, blocks=1), fen, 0)
        net.register_buffer("spread", load("diffdti").network("small").spread[..., :5])  # of its maps
        return net
    spec = replace(phydiff_model.SIZES["paper"], widths=(64, 64), depths=(1, 1), mapping_width=32)
    return phydiff_model.TractHDiT(spec)


def request_for(name, size, sampler, steps, **options):
    adc = np.full((*SHAPE, 1), 1e-3, np.float32)
    of_method = {
        "difusion": {"variant": "published", "training_steps": 1, "csnr": np.inf},  # a walk without an early stop
        "qid2": {"directions": 8},
        "phydiff": {"table": GradientTable(np.full(2, 1000.0), even_directions(2))},
    }.get(name, {})
    return Request(
        size=size, sampler=sampler, steps=steps, precision="fp32", options=of_method | options,
        population=Population(adc, np.array([1000.0])),
    )  # fmt: skip


def evaluations_per_image(monkeypatch, name, size, request):
    """Return the number of network evaluations per generated image, as counted and as in the record."""
    seen = []

    def watch(net):
        net.register_forward_hook(lambda module, given, generated: seen.append(len(given[0])))

    net, scan = None, scan_of({"phydiff": 0, "rishldm": 12}.get(name, 6))
    if name == "difusion":
        original = difusion_model._Work.denoise

        def denoise(work, network, times, sample):
            watch(network)
            return original(work, network, times, sample)

        monkeypatch.setattr(difusion_model._Work, "denoise", denoise)
        images = 6 * SLICES * (4 if request.sampler == "paper" else 1)  # in four flips
    else:
        net = narrow(name, size)
        watch(net.unet if name == "rishldm" else net)
        starts = 3 if size == "small" else 1  # series whose maps are averaged
        images = {"qid2": 2 * SLICES, "diffdti": starts * SLICES, "phydiff": 2 * SLICES, "rishldm": 3}[name]
    generated = load(name).generate(net, scan, request)
    if name == "diffdti" and size == "small":
        assert len(generated.record["StartsFrom"]) == starts
    return sum(seen) / images, generated.record["Sampler"]["NetworkEvaluations"]


@pytest.mark.parametrize("sampler", ["fast", "paper"])
@pytest.mark.parametrize("name", LEARNT)
def test_the_number_of_evaluations_is_the_requested_one(monkeypatch, name, sampler):
    request = request_for(name, "small", sampler, ASKED)
    assert evaluations_per_image(monkeypatch, name, "small", request) == (ASKED, ASKED)


@pytest.mark.parametrize("name", ["qid2", "diffdti", "phydiff"])
def test_networks_of_size_paper_too(monkeypatch, name):
    request = request_for(name, "paper", "paper", 2)
    assert evaluations_per_image(monkeypatch, name, "paper", request) == (2, 2)


def test_guidance_is_counted(monkeypatch):
    request = request_for("rishldm", "small", "paper", ASKED, guidance=[1.0, 1.0, 1.0], noise=[50, 100, 200])
    assert evaluations_per_image(monkeypatch, "rishldm", "small", request) == (ASKED, ASKED)


def test_the_record_has_the_number_of_evaluations_that_were_done(monkeypatch):
    request = request_for("diffdti", "small", "paper", 7)  # the corrector and the predictor ask in pairs
    assert evaluations_per_image(monkeypatch, "diffdti", "small", request) == (6, 6)
