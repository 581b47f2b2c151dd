"""Training on two processes that torchrun starts: the steps of one process with the batches of both."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bids_dmrigen.diffusion.noise import generator
from bids_dmrigen.diffusion.parallel import process_group, rank, world_size
from bids_dmrigen.diffusion.training import Plan, train

PLAN = Plan(steps=20, evaluate_every=5, save_every=7, warmup=3, learning_rate=0.05, patience=100, clip=0.5)


class Interrupted(Exception):
    pass


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batch(index):
    x = torch.from_numpy(generator(0, sample=index).standard_normal((16, 3)))
    return x, x.square().sum(1, keepdim=True)


def loss(net, examples):
    x, y = examples
    return (net(x) - y).square().mean()


@torch.no_grad()
def held_out(net):
    return float(loss(net, batch(10**6)))


def interrupted(index):
    if index >= 2 * 11:
        raise Interrupted
    return batch(index)


def two_processes(folder: Path) -> None:
    """What each of the two processes does; the results go to `folder`."""
    with process_group(torch.device("cpu")) as device:
        assert (world_size(), device.type) == (2, "cpu")
        net, log = network(seed=rank()), folder / "log.csv"  # the first process's weights are everyone's
        trained = train(net, batch, loss, held_out, PLAN, log=log)
        torch.save((net.state_dict(), trained.history), folder / f"whole-{rank()}.pt")
        checkpoint, resumed = folder / "state.safetensors", network(seed=5)
        try:
            train(network(), interrupted, loss, held_out, PLAN, checkpoint=checkpoint)
        except Interrupted:
            train(resumed, batch, loss, held_out, PLAN, checkpoint=checkpoint)
        torch.save(resumed.state_dict(), folder / f"resumed-{rank()}.pt")
        # a budget of minutes: the clocks of the two differ, their steps may not
        timed = train(network(), batch, loss, held_out, replace(PLAN, steps=10**6, minutes=0.005, patience=10**6))
        (folder / f"timed-{rank()}.txt").write_text(f"{timed.steps} {timed.stopped_because}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = Path(__file__).parents[2]
    # Both processes are here: they meet on the loopback, whatever the machine's name resolves to.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    for _ in range(2):  # the port that torchrun chose may be taken before it listens there
        folder = tmp_path_factory.mktemp("parallel")  # a checkpoint of the first try must not be continued
        done = subprocess.run(
            [*launch, folder], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    return folder


def test_both_processes_have_bit_identical_weights(folder):
    for what in ("whole", "resumed"):
        first, second = (torch.load(folder / f"{what}-{k}.pt", weights_only=True) for k in (0, 1))
        first, second = (v[0] if what == "whole" else v for v in (first, second))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_they_take_the_steps_of_one_process_with_both_batches(folder):
    weights, history = torch.load(folder / "whole-0.pt", weights_only=True)
    net = network()

    def both(index):
        return tuple(torch.cat(parts) for parts in zip(batch(2 * index), batch(2 * index + 1), strict=True))

    trained = train(net, both, loss, held_out, PLAN)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-12)
    assert [h["held_out"] for h in history] == pytest.approx([h["held_out"] for h in trained.history])
    assert trained.held_out_loss < 0.9 * trained.start_loss


def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(folder):
    whole = torch.load(folder / "whole-0.pt", weights_only=True)[0]
    resumed = torch.load(folder / "resumed-0.pt", weights_only=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_minutes_end_both_at_the_same_step(folder):
    first, second = ((folder / f"timed-{k}.txt").read_text() for k in (0, 1))
    assert first == second
    assert first.endswith("minutes")


def test_the_first_writes_the_log(folder):
    assert len((folder / "log.csv").read_text().splitlines()) == 6


def test_without_torchrun_there_is_nothing_to_join(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group(torch.device("cpu")) as device:
        assert (device, world_size(), rank()) == (torch.device("cpu"), 1, 0)


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
