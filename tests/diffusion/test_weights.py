"""Weights: saved weights are found, verified and loaded; damaged or unsuitable ones are refused with their name."""

import hashlib
import json
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bids_dmrigen import __version__
from bids_dmrigen.diffusion import weights
from bids_dmrigen.diffusion.weights import (
    Card,
    WeightsError,
    find_weights,
    list_weights,
    load_weights,
    save_weights,
    verify_weights,
)

SHIPPED = weights.PACKAGED
CARD = Card(
    method="qid2",
    size="small",
    configuration={"width": 4},
    trained_on={"simulator": "0.1", "brains": 100},
    steps=1000,
    minutes=12.5,
    seed=0,
    hardware="2 CPU cores",
    held_out={"ssim": 0.9},
    licence="Apache-2.0",
)


def network(width=4, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 3))
    return net.to(memory_format=torch.channels_last)


@pytest.fixture
def saved(tmp_path):
    return save_weights(tmp_path, "qid2-small", network(), CARD)


@pytest.fixture(autouse=True)
def package(tmp_path_factory, monkeypatch):
    """Replace the folder of weights of the package."""
    folder = tmp_path_factory.mktemp("package")
    monkeypatch.setattr(weights, "PACKAGED", folder)
    return folder


def test_loaded_equals_saved(saved, tmp_path):
    net = network(seed=1)
    path, card = load_weights(net, "qid2-small", "qid2", "small", tmp_path)
    for name, value in network().state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert path == saved
    assert card == replace(CARD, name="qid2-small", bytes=saved.stat().st_size, sha256=card.sha256)
    assert card.code_version == __version__
    assert verify_weights(saved) == card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["qid2-small.json", "qid2-small.safetensors"]


def test_hash_is_that_of_the_file(saved):
    with open(saved, "rb") as file:
        assert verify_weights(saved).sha256 == hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_halves_the_file_and_keeps_counts(tmp_path, saved, dtype, digits):
    wide = nn.Linear(64, 64)
    full, half = (save_weights(tmp_path, str(d)[6:], wide, CARD, d) for d in (torch.float32, dtype))
    assert half.stat().st_size < 0.55 * full.stat().st_size
    path = save_weights(tmp_path, "half", network(), CARD, dtype)
    net = network(seed=1)
    card = load_weights(net, path, "qid2", "small")[1]
    assert card.precision == str(dtype)[6:]
    for name, value in network().state_dict().items():
        assert net.state_dict()[name].dtype == value.dtype
        torch.testing.assert_close(net.state_dict()[name], value, rtol=digits, atol=1e-7)


def test_numbers_beyond_float16_are_refused(tmp_path):
    net = network()
    net[0].bias.data[0] = 1e5
    with pytest.raises(
        WeightsError, match=r"weight 0\.bias does not fit into torch\.float16: its largest value is 100000"
    ):
        save_weights(tmp_path, "x", net, CARD, torch.float16)
    assert not list(tmp_path.iterdir())


def test_found_by_path_in_the_folder_and_in_the_package(saved, tmp_path, package):
    assert find_weights(saved) == find_weights(str(saved)) == saved
    with pytest.raises(WeightsError, match=r"no weights 'qid2-small' in .*; there are: none"):
        find_weights("qid2-small")
    packaged = save_weights(package, "qid2-small", network(), CARD)
    other = save_weights(package, "other", network(), replace(CARD, steps=5))
    assert find_weights("qid2-small") == packaged
    assert find_weights("qid2-small", tmp_path) == saved
    assert find_weights("other", tmp_path) == other
    assert [card.name for card in list_weights(tmp_path)] == ["other", "qid2-small"]
    with pytest.raises(WeightsError, match="there are: other, qid2-small"):
        find_weights("nonsense", tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        find_weights(tmp_path / "gone.safetensors")


def test_truncated_file_is_refused_with_both_sizes(saved):
    size = saved.stat().st_size
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=f"{size - 10} bytes, its card says {size}"):
        verify_weights(saved)


@pytest.mark.parametrize("where", [9, -1])  # in the header, in the numbers
def test_one_changed_bit_is_refused_with_both_hashes(saved, where):
    before = verify_weights(saved).sha256
    data = bytearray(saved.read_bytes())
    data[where] ^= 1
    saved.write_bytes(data)
    with pytest.raises(WeightsError, match=f"SHA-256 [0-9a-f]{{64}}, its card says {before}"):
        load_weights(network(), saved, "qid2", "small")


@pytest.mark.parametrize(("method", "size"), [("diffdti", "small"), ("qid2", "paper")])
def test_other_method_or_size_names_both(saved, method, size):
    with pytest.raises(WeightsError, match=f"method 'qid2', size 'small'; needed are '{method}', '{size}'"):
        load_weights(network(), saved, method, size)


def test_other_format_version_names_both(saved):
    card = saved.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format_version": 7}))
    with pytest.raises(WeightsError, match="format version 7, this program reads version 1"):
        verify_weights(saved)


def test_other_network_names_both(saved):
    with pytest.raises(
        WeightsError, match=r"made with \{'width': 4\} do not fit this Sequential: (.|\n)*\[5, 1, 3, 3\]"
    ):
        load_weights(network(width=5), saved, "qid2", "small")


def test_missing_and_foreign_cards_are_refused(saved):
    card = saved.with_suffix(".json")
    content = json.loads(card.read_text())
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ("[" * 10**5, "thousands deep"),
        ("9" * 5000, "cannot be read as JSON"),
        ("{}", "not a card of weights"),
        (json.dumps(content | {"steps": "many"}), "steps is 'many', expected a whole number"),
        (json.dumps(content | {"held_out": {"loss": float("nan")}}), "held_out is {'loss': nan}, expected an object"),
        (json.dumps(content | {"steps": 10**400}), "steps is a number beyond what can be stored, expected a whole"),
        (json.dumps(content | {"bytes": 10**400}), "bytes is a number beyond what can be stored, expected a whole"),
        (json.dumps(content | {"minutes": 10**400}), "minutes is a number beyond what can be stored, expected a num"),
        (json.dumps(content | {"held_out": {"a": 10**400}}), "held_out is {'a': 1000.*, expected an object of num"),
        (json.dumps(content)[:-1] + ', "x": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        (json.dumps(content | {"seed": True}), "seed is True, expected a whole number"),
        (json.dumps(content | {"precision": "float7"}), "precision is 'float7', expected float32 or float16 or bf"),
        (json.dumps(content | {"method": "\ud800"}), r"method is '\\ud800', expected text in one line"),
        (json.dumps(content | {"format_version": "1"}), "format_version is '1', expected a whole number"),
        (json.dumps(content | {"format_version": 1.0}), r"format_version is 1\.0, expected a whole number"),
        (json.dumps(content | {"configuration": [1]}), r"configuration is \[1\], expected an object"),
        (
            json.dumps({k: v for k, v in content.items() if k != "seed"} | {"x": 1}),
            r"missing \['seed'\], unknown \['x'\]",
        ),
    ):
        card.write_text(text)
        with pytest.raises(WeightsError, match=message):
            verify_weights(saved)
    card.unlink()
    with pytest.raises(WeightsError, match=r"its card qid2-small\.json is missing"):
        verify_weights(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value * float("nan"), "hold NaN or infinity"),
        (lambda value: value / 0, "hold NaN or infinity"),
        (lambda value: value.to(torch.int32), "another kind of number"),
        (lambda value: value.to(torch.float8_e4m3fn), "stored as float8_e4m3fn, expected float32, the precision on"),
        (lambda value: value.to(torch.complex64), "stored as complex64, expected float32"),
        (torch.Tensor.double, "stored as float64, expected float32"),
        (torch.Tensor.bfloat16, "stored as bfloat16, expected float32"),
        (lambda value: value * 0, "all of its numbers are 0"),
        (lambda value: value * 0 + 1e38, r"holds 1e\+38, expected at most 1e\+09"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(saved, change, message):
    """Also where the card says that the file is whole: it may have been written so."""
    tensors = {k: change(v) if v.is_floating_point() else v for k, v in load_file(saved).items()}
    save_file(tensors, saved)
    data = saved.read_bytes()
    card = json.loads(saved.with_suffix(".json").read_text()) | {"bytes": len(data), "sha256": weights._digest(data)}
    saved.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=message):
        load_weights(network(), saved, "qid2", "small")


def test_what_cannot_be_listed_is_said(saved):
    saved.with_suffix(".json").write_text("{")
    skipped = []
    list_weights(saved.parent, skipped)
    assert len(skipped) == 1
    assert str(saved.with_suffix(".json")) in skipped[0]


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("the pickle was opened",)

    path = tmp_path / "trap.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    digest = weights._digest(path.read_bytes())
    card = replace(CARD, name="trap", bytes=path.stat().st_size, sha256=digest)
    path.with_suffix(".json").write_text(json.dumps(asdict(card)))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_weights(network(), path, "qid2", "small")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a b"])
def test_unfit_names_are_refused(tmp_path, name):
    with pytest.raises(WeightsError, match="cannot be named"):
        save_weights(tmp_path, name, network(), CARD)


def test_packaged_weights_are_whole(monkeypatch):
    monkeypatch.setattr(weights, "PACKAGED", SHIPPED)
    assert SHIPPED.is_dir()
    for card in list_weights():
        verify_weights(find_weights(card.name))
