"""GPUs: counted without opening a context, given out one to each step, taken back however a step ends."""

import os
import signal
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from nipype.pipeline import engine as pe

from bids_dmrigen.diffusion.gpus import VARIABLE, given_gpu, use_gpu
from bids_dmrigen.diffusion.parallel import choose_device, current, usable_gpus
from bids_dmrigen.workflow.plugin import ResilientMultiProcPlugin

# Whatever opens a context on a GPU, or makes torch do so.
OPENING = ("init", "_lazy_init", "mem_get_info", "get_device_properties", "get_device_capability", "get_device_name",
           "set_device", "current_device", "synchronize", "memory_allocated", "empty_cache")  # fmt: skip


class _Input(BaseInterfaceInputSpec):
    use_gpu = traits.Bool(True, usedefault=True)
    end = traits.Enum("well", "crash", "killed", usedefault=True)
    seconds = traits.Float(0.0, usedefault=True)
    log = traits.Str()


class _Output(TraitedSpec):
    device = traits.Str()


class OnGpu(SimpleInterface):
    """Note from when to when it had which of four GPUs."""

    input_spec, output_spec = _Input, _Output

    def _run_interface(self, runtime):
        cuda = {"device_count": mock.Mock(return_value=4), "is_available": mock.Mock(return_value=True)}
        with mock.patch.multiple(torch.cuda, **cuda):
            device = str(choose_device("auto"))
        begun = time.time()
        time.sleep(self.inputs.seconds)
        name = f"{time.monotonic_ns()}-{os.getpid()}"
        Path(self.inputs.log, name).write_text(f"{device} {begun} {time.time()} {os.environ.get(VARIABLE)}")
        if self.inputs.end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.end == "crash":
            raise ValueError("crashed")
        self._results["device"] = device
        return runtime


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four GPUs, on which everything that opens a context fails."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in OPENING:
        monkeypatch.setattr(torch.cuda, name, mock.Mock(side_effect=AssertionError(f"{name} opens a context")))


def run(folder: Path, steps: dict[str, dict], gpus=(0, 1, 2, 3), n_procs: int = 4, **arguments):
    """Run independent steps; return what each noted: device, begin and end."""
    log = folder / "log"
    log.mkdir()
    wf = pe.Workflow("wf", base_dir=str(folder))
    wf.config["execution"] = {"crashdump_dir": str(folder / "crash"), "poll_sleep_duration": 0.02}
    wf.add_nodes([pe.Node(OnGpu(log=str(log), **inputs), name=name, mem_gb=0.1) for name, inputs in steps.items()])
    plugin = ResilientMultiProcPlugin(
        {"n_procs": n_procs, "memory_gb": 4, "mp_context": "forkserver", "gpus": gpus, **arguments}
    )
    failed = any(inputs.get("end", "well") != "well" for inputs in steps.values())
    if failed:
        with pytest.raises(RuntimeError):
            wf.run(plugin=plugin)
    else:
        wf.run(plugin=plugin)
    noted = [path.read_text().split() for path in sorted(log.iterdir())]
    return plugin, [(device, float(begun), float(ended)) for device, begun, ended, _ in noted]


def never_shared(noted) -> bool:
    return not any(
        one[0] == other[0] and one[1] < other[2] and other[1] < one[2]
        for k, one in enumerate(noted)
        for other in noted[:k]
    )


def test_steps_at_once_have_different_gpus_and_later_ones_those_that_came_back(tmp_path):
    plugin, noted = run(tmp_path, {f"step{k}": {"seconds": 0.5} for k in range(10)})
    assert len(noted) == 10
    assert {device for device, *_ in noted} == {"cuda:0", "cuda:1", "cuda:2", "cuda:3"}
    assert never_shared(noted)
    assert sorted(plugin._free_gpus) == [0, 1, 2, 3]
    running = max(sum(begun <= at < ended for _, begun, ended in noted) for _, at, _ in noted)
    assert running > 1, "they ran one after another: this test shows nothing"


def test_a_worker_that_had_a_gpu_takes_another(tmp_path):
    """One worker process and two GPUs: what a step is given is not what its process had before."""
    plugin, noted = run(tmp_path, {f"step{k}": {} for k in range(4)}, gpus=(2, 3), n_procs=1)
    assert [device for device, *_ in noted] == ["cuda:2", "cuda:3", "cuda:2", "cuda:3"]
    assert plugin._free_gpus == [2, 3]


def test_the_gpu_of_a_step_that_crashes_or_is_killed_comes_back(tmp_path):
    steps = {"crash": {"end": "crash"}, "killed": {"end": "killed"}, **{f"after{k}": {} for k in range(3)}}
    plugin, noted = run(tmp_path, steps, gpus=(1,), n_procs=1)
    assert [device for device, *_ in noted] == 5 * ["cuda:1"]
    assert plugin._free_gpus == [1]


def test_steps_without_a_gpu_are_given_none_and_do_not_wait_for_one(tmp_path):
    run(tmp_path, {"gpu": {}, "cpu": {"use_gpu": False}}, gpus=(1,), n_procs=2)
    assert {path.read_text().split()[-1] for path in (tmp_path / "log").iterdir()} == {"1", "None"}


def test_a_plugin_file_may_ask_for_fewer_steps_at_once_but_not_for_more():
    slots = [
        ResilientMultiProcPlugin({"n_procs": 1, "gpus": (0, 1), "mp_context": "forkserver", **more}).n_gpu_procs
        for more in ({}, {"n_gpu_procs": 1}, {"n_gpu_procs": 8})
    ]
    assert slots == [2, 1, 2]


@pytest.mark.parametrize(
    ("device", "numbers"), [("cpu", ()), ("auto", (0, 1, 2, 3)), ("cuda", (0, 1, 2, 3)), ("cuda:1", (1,))]
)
@pytest.mark.usefixtures("four_gpus")
def test_the_gpus_to_give_out(device, numbers):
    from bids_dmrigen.workflow.participant import Resources, _plugin

    from .test_plan import settings

    assert usable_gpus(device) == numbers
    plugin = _plugin(settings(device=device), Resources(n_cpus=1, threads=1, memory_gb=1.0), {})
    assert (plugin._free_gpus, plugin.n_gpu_procs) == (list(numbers), len(numbers))


@pytest.mark.parametrize(("device", "needs"), [("auto", True), ("cuda", True), ("cuda:3", True), ("cpu", False)])
@pytest.mark.usefixtures("four_gpus")
def test_building_a_graph_opens_no_context(tmp_path, device, needs):
    from bids_dmrigen.workflow.plan import plan_run
    from bids_dmrigen.workflow.run import init_run_wf

    from .test_plan import make_run, settings

    plan = plan_run(make_run(tmp_path), settings(methods=("difusion",), device=device), "TPL")
    wf = init_run_wf(plan, template="TPL", links={}, threads=4)
    node = wf.get_node("generate_difusion")
    assert bool(node.is_gpu_node()) is needs
    assert node.n_procs == (1 if needs else 4)


def test_without_a_gpu_no_step_takes_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert usable_gpus("auto") == ()
    with pytest.raises(ValueError, match="--device cuda: 0 GPUs are visible; use cpu"):
        choose_device("cuda")


@pytest.mark.usefixtures("four_gpus")
def test_a_device_without_a_number_is_the_one_given_or_the_first():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("cuda").index in (None, 0)
    with use_gpu(2):
        assert given_gpu() == 2
        assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:2")
        assert choose_device("cuda:1") == torch.device("cuda:1"), "who names one means it"
    assert given_gpu() is None
    with pytest.raises(ValueError, match="--device cuda:4: 4 GPUs are visible"):
        choose_device("cuda:4")


def test_gpu_memory_that_a_step_kept_is_released(monkeypatch):
    emptied = mock.Mock()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", emptied)
    with use_gpu(None):
        pass
    assert not emptied.called
    with use_gpu(0):
        assert not emptied.called
    assert emptied.called
    assert given_gpu() is None


def test_a_processor_has_no_number():
    with current(torch.device("cpu")):
        assert torch.zeros(1).device.type == "cpu"
