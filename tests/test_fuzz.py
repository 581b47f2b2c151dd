"""Damaged and odd inputs from one seed: a clear error or a sound plan for each; no traceback, no hang, no nonsense."""

import json
import os
import random
import signal
import struct
from contextlib import contextmanager, suppress
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pytest

from bids_dmrigen.bids.images import VOXEL_MM
from bids_dmrigen.bids.query import DatasetError, SelectionError, find_runs, open_layout
from bids_dmrigen.bids.run import OPPOSITE
from bids_dmrigen.cli.parser import parse_settings
from bids_dmrigen.diffusion.weights import Card, WeightsError, list_weights, read_card
from bids_dmrigen.dwi.series import ScanError
from bids_dmrigen.spatial.io import read_scan
from bids_dmrigen.workflow.plan import plan_run
from bids_dmrigen.workflow.settings import SettingsError
from tests.diffusion.test_weights import CARD
from tests.workflow.test_plan import make_run, settings

SEED = 17
LONGEST_S = 10
ODD_WORDS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e400",
    "1e9",
    "1e-9",
    "abc",
    "0x10",
    "",
    "\x00",
    "ż",
    "1,5",
    "1;2",
    "--",
    "9" * 400,
)
ODD_VALUES = (None, True, -1, 0, 1e308, "x" * 5000, "", [], {}, [[]], {"a": {"b": []}}, float("nan"), float("inf"),
              "\x00", "ż", 10**40, ["j", 1], "j", "j-", 0.05)  # fmt: skip


@contextmanager
def no_hang(case):
    """Fail where the case takes too long, also where it waits for something."""

    def late(*_):
        raise TimeoutError(f"case {case} hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plan_is_sound(run, case):
    """Return whether the run is planned; fail where a fault was not foreseen or the plan makes no sense."""
    with no_hang(case):
        plan = plan_run(run, settings(methods=("interp",)), "TPL")
    assert not plan.trace, f"case {case}: {plan.trace}"
    if plan.fault:
        assert str(run.image) in plan.fault or str(run.bval) in plan.fault or str(run.bvec) in plan.fault, plan.fault
        return False
    table = plan.table
    assert len(table) == plan.shape[3]
    assert np.isfinite(table.bvals).all()
    assert (table.bvals >= 0).all()
    assert table.bvals.max() <= 1e5
    np.testing.assert_allclose(np.linalg.norm(table.bvecs[~table.is_b0], axis=1), 1, atol=1e-6)
    return True


def test_damaged_headers(tmp_path):
    rng = random.Random(SEED)
    run = make_run(tmp_path, 6, (6, 5, 4))
    image = run.image.with_name("sub-1_dwi.nii")
    nib.save(nib.load(run.image), image)
    whole = image.read_bytes()
    run = type(run)(run.entities, image, run.bval, run.bvec)
    planned = 0
    for case in range(400):
        damaged = bytearray(whole)
        if case % 4 == 0:  # without an sform the affine comes from the sizes of the voxels
            damaged[254:256] = bytes(2)
            at = rng.choice((80, 84, 88, 112, 116))  # pixdim[1] to [3], scl_slope, scl_inter
            damaged[at : at + 4] = struct.pack("<f", rng.choice((0, 0, np.inf, -np.inf, 1e-9, 1e9, 2)))
        for _ in range(rng.choice((1, 1, 2, 4))):
            damaged[rng.randrange(348)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        image.write_bytes(damaged)
        if not plan_is_sound(run, case):
            continue
        planned += 1
        # The bytes of the file: on reading, nibabel replaces what is impossible.
        stored = nib.Nifti1Header(bytes(damaged[:348]), check=False)
        assert not np.isinf([stored["scl_slope"], stored["scl_inter"]]).any(), f"case {case}: infinite scaling"
        zooms = np.linalg.norm(nib.load(image).affine[:3, :3], axis=0)
        if stored["sform_code"] <= 0:
            zooms = np.abs(stored["pixdim"][1:4])
        assert VOXEL_MM[0] <= zooms.min() <= zooms.max() <= VOXEL_MM[1], f"case {case}: voxels of {zooms} mm"
        with suppress(ScanError), no_hang(case):
            read_scan(image, run.bval, run.bvec)
    assert 40 < planned < 400  # most bytes describe nothing that matters; some do


def test_odd_tables(tmp_path):
    rng = random.Random(SEED)
    run = make_run(tmp_path, 6, (6, 5, 4))
    texts = {path: path.read_text() for path in (run.bval, run.bvec)}
    planned = 0
    for case in range(300):
        path = rng.choice((run.bval, run.bvec))
        rows = [line.split() for line in texts[path].splitlines()]
        for _ in range(rng.choice((1, 1, 3))):
            row = rng.choice(rows)
            action = rng.choice(("replace", "drop", "double", "scale", "row"))
            at = rng.randrange(len(row)) if row else 0
            if action == "replace" and row:
                row[at] = rng.choice(ODD_WORDS)
            elif action == "drop" and row:
                del row[at]
            elif action == "double" and row:
                row.insert(at, row[at])
            elif action == "scale":
                factor = rng.choice((1e-3, 1e6, -1, 10))
                row[:] = [str(float(v) * factor) if v.replace(".", "").replace("-", "").isdigit() else v for v in row]
            else:
                rows.append(list(row))
        text = "\n".join(" ".join(row) for row in rows)
        path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16", "iso8859-2"))))
        planned += plan_is_sound(run, case)
        path.write_text(texts[path])
    assert planned < 150


@pytest.mark.parametrize("name", ["dataset_description.json", "dwi.json", "sub-01/dwi/sub-01_dwi.json"])
def test_odd_json_of_a_dataset(dataset, name):
    rng = random.Random(SEED)
    path = dataset / name
    keys = ("PhaseEncodingDirection", "TotalReadoutTime", "SliceEncodingDirection", "B0FieldSource", "IntendedFor",
            "Name", "EffectiveEchoSpacing", "ReconMatrixPE", "PhaseEncodingAxis", "GeneratedBy",
            "DatasetType")  # fmt: skip
    messages = []
    for case in range(25):
        content = {key: rng.choice(ODD_VALUES) for key in rng.sample(keys, 5)}
        text = rng.choice((json.dumps(content), json.dumps([content]), "[" * 10**5, '{"a": ' * 10**5, "", "{", "nul"))
        path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16")))[: rng.choice((None, None, 20))])
        try:
            with no_hang(case):
                runs = find_runs(open_layout(dataset))
        except DatasetError as error:
            messages.append(str(error))
            continue
        for run in runs:
            assert run.phase_encoding in (None, *OPPOSITE)
            assert run.readout_s is None or 0 < run.readout_s < float("inf")
            if run.fault is None:
                plan_is_sound(run, case)
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "nothing"])
@pytest.mark.parametrize(
    "name", ["dataset_description.json", "sub-01/dwi/sub-01_dwi.json", "sub-01/dwi/sub-01_dwi.bval"]
)
def test_what_is_no_file(dataset, name, kind):
    path = dataset / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    try:
        with no_hang((name, kind)):
            runs = find_runs(open_layout(dataset))
    except DatasetError:
        return
    with no_hang((name, kind)):
        plans = [plan_run(run, settings(), "TPL") for run in runs]
    assert [bool(plan.fault) for plan in plans] == [True, False]
    assert not any(plan.trace for plan in plans)


def test_odd_settings_files(tmp_path):
    rng = random.Random(SEED)
    path = tmp_path / "settings.toml"
    call = [str(tmp_path), str(tmp_path / "out"), "participant", "--config-file", str(path)]
    values = (
        "1",
        "-1",
        "nan",
        "inf",
        "true",
        '"x"',
        "[]",
        "[1]",
        '["a", 1]',
        "{}",
        "1e400",
        '"\\u0000"',
        "99999999",
        "1979-05-27",
    )
    names = {"methods": ("methods", "n_samples", "seed", "qid2_directions", "rishldm_voxel_size", "difusion_steps"),
             "preprocessing": ("denoise", "b0_threshold", "gibbs"), "resources": ("n_cpus", "mem_gb", "device"),
             "selection": ("participant_label", "derivatives"), "nonsense": ("a",)}  # fmt: skip
    for case in range(150):
        table = rng.choice(list(names))
        lines = [f"{rng.choice(names[table])} = {rng.choice(values)}" for _ in range(rng.choice((1, 2)))]
        text = "\n".join([f"[{table}]", *lines])
        if rng.random() < 0.2:
            text = rng.choice(("[" * 10**5, "a = " + "[" * 10**5, text[: len(text) // 2], "\x00", "= 1"))
        path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "utf-16"))))
        try:
            with no_hang(case):
                parsed = parse_settings(call)
        except SettingsError:
            continue
        for value in (parsed.b0_threshold, parsed.mem_gb or 1.0, parsed.n_samples, parsed.seed):
            assert np.isfinite(value)


def test_odd_cards_of_weights(tmp_path):
    rng = random.Random(SEED)
    (tmp_path / "x.safetensors").write_bytes(b"x")
    card = tmp_path / "x.json"
    fine, messages = asdict(CARD), []
    for case in range(200):
        content = dict(fine)
        for key in rng.sample(list(content), rng.choice((1, 2))):
            content[key] = rng.choice(ODD_VALUES)
        text = json.dumps(content)
        if rng.random() < 0.2:
            text = rng.choice(("[" * 10**5, "[]", "", text[:50]))
        card.write_text(text)
        try:
            with no_hang(case):
                found = read_card(tmp_path / "x.safetensors")
        except WeightsError as error:
            messages.append(str(error))
            continue
        assert isinstance(found, Card)
        assert isinstance(found.steps, int)
        assert np.isfinite(found.minutes)
        list_weights(tmp_path)
    assert messages
    assert all(str(card) in message for message in messages)


def test_odd_filters(dataset, tmp_path):
    layout = open_layout(dataset)
    values = [*ODD_VALUES, {"a": 1}, [[1]], [{}], 10**400, "9" * 30, "\x00", "*", ["01", None]]
    entities = ["direction", "run", "subject", "suffix", "extension", "no_entity"]
    odd = [{key: value} for key in ("dwi", "t1w", "bold") for value in ODD_VALUES]
    odd += [{key: {name: value}} for key in ("dwi", "t1w") for name in entities for value in values]
    refused = 0
    for case, filters in enumerate(odd):
        try:
            with no_hang(case):
                find_runs(layout, filters=filters)
        except (SelectionError, DatasetError):
            refused += 1
    assert 0 < refused < len(odd)
