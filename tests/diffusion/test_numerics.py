"""The policy of numerics: the same for all, in force inside, undone outside, written in the record."""

import ast
import os
from pathlib import Path

import pytest
import torch

import bids_dmrigen
from bids_dmrigen.diffusion import numerics
from bids_dmrigen.diffusion.numerics import autocast, policy, resolve_precision
from bids_dmrigen.diffusion.training import Plan, train

CPU = torch.device("cpu")
# Settings that only the policy may change.
DECIDED = {"autocast", "use_deterministic_algorithms", "allow_tf32", "benchmark", "set_float32_matmul_precision"}


def in_force():
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def test_earlier_settings_are_restored(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = in_force()
    with policy(deterministic=False):
        assert in_force()[:4] == (False, False, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "for a training inside"
        with policy(deterministic=True, strict=True):
            assert in_force() == (False, False, False, True, False)
        with policy(deterministic=True):
            assert in_force() == (False, False, False, True, True)
        assert in_force()[3] is False
    assert in_force() == before


def test_a_cublas_setting_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with policy(deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_precision_is_the_requested_one():
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")
    with pytest.raises(ValueError, match="'fp16'; expected"):
        resolve_precision("fp16", CPU)


def test_fp32_is_fp32_inside_of_bf16():
    a = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
        with autocast(CPU, "fp32"):
            assert (a @ a).dtype == torch.float32


def test_the_record_contains_the_settings_in_force(monkeypatch):
    with policy(deterministic=True):
        assert numerics.record(CPU, "bf16") == {"Precision": "bf16", "TF32": False, "Deterministic": True}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # a call of a method without the policy
    assert numerics.record(torch.device("cuda"), "fp32") == {"Precision": "fp32", "TF32": True, "Deterministic": False}
    assert numerics.record(CPU, "fp32")["TF32"] is False, "a processor has none"


def test_training_scores_in_its_own_precision_and_by_strictly_deterministic_algorithms():
    seen = []

    def score(net):
        seen.append((in_force()[3:], net(torch.ones(1, 1)).dtype))
        return 1.0

    for precision in ("fp32", "bf16"):
        plan = Plan(steps=1, precision=precision)
        train(torch.nn.Linear(1, 1), lambda index: None, lambda net, _: net(torch.ones(1, 1)).sum(), score, plan)
    assert [kind for _, kind in seen] == 2 * [torch.float32] + 2 * [torch.bfloat16]
    assert {kept for kept, _ in seen} == {(True, False)}


def test_only_numerics_changes_these_settings():
    root = Path(bids_dmrigen.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path != root / "diffusion" / "numerics.py":
            used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not used & DECIDED, path
