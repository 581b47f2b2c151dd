"""Execution: killed workers, progress, plugin arguments."""

import os
import re
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from nipype.interfaces.utility import Merge
from nipype.pipeline import engine as pe
from nipype.pipeline.plugins import LinearPlugin

from bids_dmrigen.workflow.failures import LAST_ERROR
from bids_dmrigen.workflow.plugin import ResilientMultiProcPlugin, make_plugin, prepare_batch, why_it_died
from bids_dmrigen.workflow.progress import Progress
from bids_dmrigen.workflow.settings import SettingsError, plugin_arguments

from ..conftest import slurm_stand_ins


class _Input(BaseInterfaceInputSpec):
    value = traits.Int(0, usedefault=True)


class _Output(TraitedSpec):
    value = traits.Int()


class Suicide(SimpleInterface):
    """Die of the signal whose number is the value."""

    input_spec, output_spec = _Input, _Output

    def _run_interface(self, runtime):
        os.kill(os.getpid(), self.inputs.value)


class Pass(SimpleInterface):
    """Return a number plus one."""

    input_spec, output_spec = _Input, _Output

    def _run_interface(self, runtime):
        self._results["value"] = self.inputs.value + 1
        return runtime


@pytest.mark.parametrize(("death", "said"), [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "crashed (SIGSEGV)")])
def test_killed_worker_fails_its_node_alone(tmp_path, death, said):
    wf = pe.Workflow("wf", base_dir=str(tmp_path))
    wf.config["execution"] = {"crashdump_dir": str(tmp_path / "crash"), "crashfile_format": "txt"}
    dies = pe.Node(Suicide(value=int(death)), name="dies")
    after = pe.Node(Pass(), name="after")
    lives = pe.Node(Pass(value=1), name="lives")
    last = pe.Node(Pass(), name="last")
    wf.connect(dies, "value", after, "value")
    wf.connect(lives, "value", last, "value")
    plugin = ResilientMultiProcPlugin({"n_procs": 1, "memory_gb": 4, "mp_context": "forkserver"})
    with pytest.raises(RuntimeError):
        wf.run(plugin=plugin)
    crash = "".join(path.read_text() for path in (tmp_path / "crash").glob("*dies*"))
    assert f"the worker process {'was ' * (said == 'killed')}{said}" in crash
    assert ("memory" in crash) == (said == "killed" and "outside" not in crash)
    assert (tmp_path / "wf" / "last" / "result_last.pklz").is_file()
    assert not (tmp_path / "wf" / "after" / "result_after.pklz").is_file()


@pytest.mark.parametrize(
    ("codes", "kills", "now", "said"),
    [
        ([-9], 3, 4, "because memory ran out"),
        ([-9], 3, 3, "killed from outside (SIGKILL)"),
        ([-9], None, None, "most likely because memory ran out"),
        ([-15], 3, 4, "killed from outside (SIGTERM)"),
        ([-11], 3, 3, "crashed (SIGSEGV)"),
        ([-7], 3, 3, "the disk is full"),
        ([1], 3, 3, "crashed (status 1)"),
    ],
)
def test_memory_is_blamed_only_where_it_ran_out(monkeypatch, codes, kills, now, said):
    monkeypatch.setattr("bids_dmrigen.workflow.plugin.memory_kills", lambda: now)
    message = why_it_died(codes, kills)
    assert said in message
    assert ("memory" in message) == ("memory" in said)


class _Named:
    def __init__(self, fullname):
        self.fullname = fullname


def test_progress_counts_found_steps_as_done_but_not_as_worked(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 100.0, 100.0, 100.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress({"a": ("sub-1", "first", 50), "b": ("sub-1", "second", 25), "c": ("sub-1", "third", 25)})
    progress(_Named("a"), "start")
    progress(_Named("a"), "end")  # 100 s for a weight of 50: 2 s per unit
    progress(_Named("b"), "end")  # was in the work folder
    progress(_Named("c"), "start")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["[  0%] sub-1: first", "[ 75%, 50 s left] sub-1: third"]


def test_a_graph_that_cannot_be_built_is_the_fault_of_its_run(tmp_path, monkeypatch):
    from bids_dmrigen.workflow import participant
    from bids_dmrigen.workflow.plan import plan_run

    from .test_plan import make_run, settings

    def build(plan, **_):
        if plan.run.entities["subject"] == "odd":
            raise ValueError("an odd graph")
        return pe.Workflow(plan.node_name)

    monkeypatch.setattr("bids_dmrigen.workflow.run.init_run_wf", build)
    wf = pe.Workflow("participant")
    runs = [make_run(tmp_path / name, subject=name) for name in ("odd", "sound")]
    plans = [participant._add_run(wf, plan_run(run, settings(), "TPL")) for run in runs]
    assert [bool(plan.fault) for plan in plans] == [True, False]
    assert wf.get_node("run_sub_sound") is not None
    participant._keep_traces(tmp_path / "logs", plans)
    (log,) = (tmp_path / "logs").iterdir()
    assert "ValueError: an odd graph" in log.read_text()
    error = participant.unfinished(plans, tmp_path)["sub-odd"]
    assert (error.step, error.message[:24]) == ("checks", "ValueError: an odd graph")
    assert error.log == log.read_text()


def test_odd_values_of_a_sidecar_are_no_values(tmp_path):
    from nipype.interfaces.base import isdefined

    from bids_dmrigen.bids.run import Partner
    from bids_dmrigen.workflow.plan import plan_run
    from bids_dmrigen.workflow.preprocess import init_preprocess_wf

    from .test_plan import make_run, settings

    odd = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": "n/a", "SliceEncodingDirection": ""}
    partner = Partner(make_run(tmp_path, subject="PA").image, "j")
    wf = init_preprocess_wf(plan_run(make_run(tmp_path, metadata=odd, partner=partner), settings(), "TPL"), threads=1)
    assert not isdefined(wf.get_node("susceptibility").inputs.readout_time)
    assert not isdefined(wf.get_node("susceptibility").inputs.opposite_bval)
    assert wf.get_node("gibbs").inputs.slice_axis == 2


def test_a_field_map_goes_to_its_node_and_from_there_to_resampling_and_figures(tmp_path):
    from bids_dmrigen.bids.run import FieldMap
    from bids_dmrigen.workflow.plan import plan_run
    from bids_dmrigen.workflow.run import init_run_wf

    from .test_plan import make_run, settings

    run = make_run(tmp_path, metadata={"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05})
    fieldmap = FieldMap("phases", (run.image, run.image), run.image, (0.004, 0.006), declared="IntendedFor")
    plan = plan_run(replace(run, fieldmap=fieldmap), settings(), "TPL")
    graph = init_run_wf(plan, template="TPL", links={"raw": tmp_path}, threads=1)
    inputs = graph.get_node("preprocess.susceptibility").inputs
    assert (inputs.kind, inputs.images, inputs.magnitude) == ("phases", [str(run.image)] * 2, str(run.image))
    assert (inputs.echo_times, inputs.readout_time, inputs.phase_encoding_direction) == ([0.004, 0.006], 0.05, "j-")
    edges = {node.name: data["connect"] for _, node, data in graph._graph.out_edges(graph.get_node("preprocess"), True)}
    for name in ("figures", "metrics"):
        fed = {target: source for source, target in edges[name]}
        assert fed["field_magnitude"] == "output.field_magnitude"
        assert fed["sdc_after"] == "output.corrected_b0"
        assert "reverse_after" not in fed
    inner = graph.get_node("preprocess")._graph
    (between,) = (d for a, b, d in inner.edges(data=True) if (a.name, b.name) == ("susceptibility", "resample"))
    assert between["connect"] == [("out_field", "in_field")]


def test_multiproc_by_name_is_the_default(tmp_path):
    """The plugin of Nipype would use every processor, fork, and wait for ever for a killed worker."""
    from bids_dmrigen.workflow.participant import Resources, _plugin

    from .test_plan import settings

    resources = Resources(n_cpus=1, threads=1, memory_gb=3.0)
    plugin = _plugin(settings(nipype_plugin="MultiProc", device="cpu"), resources, {})
    assert isinstance(plugin, ResilientMultiProcPlugin)
    assert (plugin.processors, plugin.memory_gb) == (1, 3.0)
    assert plugin.pool._mp_context.get_start_method() == "forkserver"
    file = tmp_path / "plugin.toml"
    file.write_text("[plugin_args]\nn_procs = 2\n")
    plugin = _plugin(settings(nipype_plugin="MultiProc", nipype_plugin_file=file, device="cpu"), resources, {})
    assert (plugin.processors, plugin.memory_gb) == (2, 3.0)
    assert isinstance(_plugin(settings(nipype_plugin="Linear"), resources, {}), LinearPlugin)


ENDED = 'echo "Submitted batch job $$"; exit'


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """The folder of stand-ins for SLURM's commands, which is on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("bids_dmrigen.workflow.plugin.POLLING", {"poll_sleep_duration": 0.1, "job_finished_timeout": 1})
    return slurm_stand_ins(tmp_path / "bin")


def run_by_slurm(wf, arguments=()):
    plugin = make_plugin("SLURM", dict(arguments))
    prepare_batch(wf, plugin)
    wf.run(plugin=plugin)


def two_steps(folder, step: str = "dies") -> pe.Workflow:
    """Return a graph of a step, one that needs it, and one that does not."""
    wf = pe.Workflow("wf", base_dir=str(folder))
    wf.config["execution"] = {"crashdump_dir": str(folder / "crash"), "crashfile_format": "txt"}
    # Not an interface of this module: the job is a new process, which must import the interface by its name.
    first = pe.Node(Merge(1, in1=["a"]), name=step, n_procs=3, mem_gb=1.5)
    after = pe.Node(Merge(1), name="after", n_procs=1, mem_gb=0.3)
    wf.connect(first, "out", after, "in1")
    wf.add_nodes([pe.Node(Merge(1, in1=["b"]), name="lives")])
    return wf


def has_run(wf) -> set[str]:
    return {path.parent.name for path in Path(wf.base_dir).glob("wf/*/result_*.pklz")}


def crash(folder) -> str:
    """Return the message of the one crash file, as the app reads it."""
    (log,) = (folder / "crash").glob("crash-*-dies-*.txt")
    return LAST_ERROR.findall(log.read_text())[-1][1]


def test_slurm_jobs_request_the_resources_of_their_steps(tmp_path, monkeypatch, commands):
    monkeypatch.delenv("LOGNAME", raising=False)
    wf = two_steps(tmp_path, "first")
    run_by_slurm(wf, {"sbatch_args": "--partition=long --mem=8G"})
    assert has_run(wf) == {"first", "after", "lives"}
    asked = {words[1]: words for words in map(str.split, (commands / "asked").read_text().splitlines())}
    assert asked["--job-name=first.wf"][2:-1] == ["--cpus-per-task=3", "--mem=1536M", "--partition=long", "--mem=8G"]
    assert asked["--job-name=after.wf"][2:-1] == ["--cpus-per-task=1", "--mem=308M", "--partition=long", "--mem=8G"]
    batch = tmp_path / "wf" / "batch"
    for words in asked.values():
        assert words[0] == f"--output={batch / 'slurm-%j.out'}"
        script = Path(words[-1]).read_text().splitlines()
        assert script[0] == "#!/bin/bash"
        python, job = shlex.split(script[-1])
        assert python == sys.executable
        assert Path(job).parent == batch


def test_slurm_steps_that_use_a_gpu_request_one(tmp_path, commands):
    class Gpu(Pass):
        input_spec = type("_GpuInput", (_Input,), {"use_gpu": traits.Bool(True, usedefault=True)})

    (tmp_path / "job.sh").touch()
    for interface in (Gpu(), Pass()):
        node = pe.Node(interface, name="step", base_dir=str(tmp_path))
        make_plugin("SLURM", {})._submit_batchtask(str(tmp_path / "job.sh"), node)
    gpu, cpu = ((commands / "asked").read_text()).splitlines()
    assert gpu.split() == [*cpu.split()[:-1], "--gres=gpu:1", cpu.split()[-1]]


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (ENDED, "^SLURM job [0-9]+ ended without a result, .* --time in sbatch_args of --nipype-plugin-file$"),
        (f'echo error: oom_kill > "$log"; {ENDED}', r"result.*slurm-[0-9]+\.out ends with: error: oom_kill$"),
        (f'touch "$log"; {ENDED}', r"result.*slurm-[0-9]+\.out ends with: nothing$"),
        (f"mkdir wf/dies; echo > wf/dies/result_dies.pklz; {ENDED}", "the result of SLURM job [0-9]+ cannot be read"),
        ("echo Invalid partition >&2; exit 1", r"^sbatch took no job for this step \(status 1\): Invalid partition$"),
    ],
)  # fmt: skip
def test_a_job_without_a_result_fails_its_step_alone(tmp_path, monkeypatch, commands, instead, message):
    monkeypatch.chdir(tmp_path)
    slurm_stand_ins(commands, "dies", instead)
    wf = two_steps(tmp_path)
    with pytest.raises(RuntimeError):
        run_by_slurm(wf, {"retry_timeout": 0})
    assert "lives" in has_run(wf)
    assert "after" not in has_run(wf)
    assert re.search(message, crash(tmp_path))


def test_the_result_of_an_earlier_call_does_not_count_for_a_job_that_never_starts(tmp_path, commands):
    run_by_slurm(two_steps(tmp_path))
    slurm_stand_ins(commands, "dies", ENDED)
    wf = two_steps(tmp_path)
    wf.get_node("dies").inputs.in1 = ["other"]
    with pytest.raises(RuntimeError):
        run_by_slurm(wf)
    assert "without a result" in crash(tmp_path)


def test_a_job_that_was_refused_is_submitted_again(tmp_path, commands):
    """SLURM may have accepted the job without a reply in time: the same job must not run twice at once."""
    refusal = 'if (($(grep -c dies "$(dirname "$0")/asked") < 3)); then echo Socket timed out >&2; exit 1; fi'
    slurm_stand_ins(commands, "dies", refusal)
    wf = two_steps(tmp_path)
    run_by_slurm(wf, {"retry_timeout": 0})
    assert has_run(wf) == {"dies", "after", "lives"}
    first, *again = [line for line in (commands / "asked").read_text().splitlines() if "dies" in line]
    assert again == 2 * [f"--dependency=singleton {first}"]


@pytest.mark.parametrize(
    ("squeue", "pending"),
    [
        ("echo 7 long conform me R 0:01 1 node1", True),
        ("true", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
        ("echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1", True),
    ],
)
def test_a_job_is_over_when_squeue_says_so(commands, squeue, pending):
    slurm_stand_ins(commands, squeue=squeue)
    assert make_plugin("SLURM", {})._is_pending(7) is pending


def test_a_squeue_that_does_not_answer_is_reported_once(commands, capsys):
    slurm_stand_ins(commands, squeue="echo Socket timed out >&2; exit 1")
    plugin = make_plugin("SLURM", {})
    assert plugin._is_pending(7)
    assert plugin._is_pending(8)
    assert capsys.readouterr().out == "note: squeue does not answer, waiting for it: Socket timed out\n"
    (commands / "squeue").unlink()
    assert plugin._is_pending(8), "a shared folder that is gone for a moment"


@pytest.mark.parametrize(("name", "slow"), [("SLURM", True), ("PBS", True), ("LSF", True), ("Linear", False)])
def test_batch_systems_are_asked_every_few_seconds(name, slow):
    wf = pe.Workflow("wf")
    prepare_batch(wf, make_plugin(name, {}))
    assert (float(wf.config["execution"]["poll_sleep_duration"]) >= 5) is slow


def test_plugin_file(tmp_path):
    path = tmp_path / "slurm.toml"
    path.write_text('[plugin_args]\nsbatch_args = "--time=60"\n')
    assert plugin_arguments(path) == {"sbatch_args": "--time=60"}
    path.write_text("nonsense")
    with pytest.raises(SettingsError, match="--nipype-plugin-file"):
        plugin_arguments(path)


def test_weights_and_directions_reach_the_node(tmp_path):
    from bids_dmrigen.diffusion.weights import Card, save_weights
    from bids_dmrigen.methods.denoise.difusion_model import DiFusion
    from bids_dmrigen.workflow.generate import generate_node
    from bids_dmrigen.workflow.plan import plan_run
    from bids_dmrigen.workflow.settings import directions_of

    from .test_plan import make_run, settings

    card = Card("difusion", "small", {}, {}, 1, 0.1, 0, "a test", {}, "Apache-2.0")
    path = save_weights(tmp_path / "weights", "trial", DiFusion().network("small"), card)
    given = settings(methods=("difusion",), weights=("difusion=trial",), weights_dir=path.parent)
    plan = plan_run(make_run(tmp_path), given, "TPL")
    node = generate_node(plan, plan.methods[0], threads=1)
    assert node.inputs.weights == str(path)
    assert len(node.inputs.weights_sha256) == 64
    assert directions_of("90") == 90
    (tmp_path / "wanted.bvec").write_text("1 0\n0 1\n0 0\n")
    assert directions_of(str(tmp_path / "wanted.bvec")) == ((1, 0, 0), (0, 1, 0))


def test_a_training_that_was_cut_off_finds_its_checkpoint(tmp_path):
    """Nipype empties a node's folder before it runs it again, unless the interface says that it can resume."""
    from bids_dmrigen.interfaces.generate import Generate

    assert Generate(method="difusion").can_resume


def test_no_clock_ends_the_training_of_a_deterministic_result(tmp_path):
    from bids_dmrigen.workflow.generate import generate_node
    from bids_dmrigen.workflow.plan import plan_run

    from .test_plan import make_run, settings

    run, minutes = make_run(tmp_path), {}
    for deterministic in (False, True):
        call_settings = settings(methods=("difusion",), difusion_minutes=2.5, deterministic=deterministic)
        plan = plan_run(run, call_settings, "TPL")
        minutes[deterministic] = generate_node(plan, plan.methods[0], threads=1).inputs.minutes
    assert minutes == {False: 2.5, True: None}


def test_deterministic_results_have_a_separate_cache(tmp_path):
    from bids_dmrigen.workflow.participant import cache_folder

    from .test_plan import settings

    assert cache_folder(settings()) != cache_folder(settings(deterministic=True))
    assert cache_folder(settings()) == cache_folder(settings(seed=3))


def test_results_that_another_call_overwrote_are_stored_again(tmp_path):
    from bids_dmrigen.interfaces.sink import FigureSink, Sink
    from bids_dmrigen.workflow.participant import _rerun_lost
    from bids_dmrigen.workflow.plan import plan_run

    from .test_plan import make_run, settings

    plan = plan_run(make_run(tmp_path), settings(), "TPL")
    folder = tmp_path / "work/participant" / plan.node_name
    results = {name: tmp_path / f"made.{name}" for name in ("tsv", "json", "svg")}
    for path in results.values():
        path.write_text("made by one call")
    out = {"out_dir": str(tmp_path / "out")}
    sinks = {
        "sink_preproc": Sink(**out, in_files=[results["tsv"]], targets=["x.tsv"], sidecars=[{"Description": "x"}]),
        "sink_metrics": Sink(**out, in_files=[results["json"]], targets=["m.json"], sidecars=[{}]),
        "sink_figures": FigureSink(**out, figures=[("fa", str(results["svg"]))], entities={"subject": "1"}),
    }

    def kept_after(change) -> set[str]:
        for name, sink in sinks.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            sink.run(cwd=str(folder / name))
        change()
        _rerun_lost([plan], tmp_path / "work")
        return {path.name for path in folder.iterdir()}

    figure = tmp_path / "out/sub-1/figures/sub-1_desc-fa_dwi.svg"
    assert kept_after(lambda: None) == set(sinks)
    assert kept_after((tmp_path / "out/x.json").unlink) == set(sinks) - {"sink_preproc"}
    assert kept_after(lambda: (tmp_path / "out/m.json").write_text("by another")) == set(sinks) - {"sink_metrics"}
    assert kept_after(lambda: os.utime(figure, (1, 1))) == set(sinks)  # the same content at another time
    assert kept_after(lambda: figure.write_text("by another")) == set(sinks) - {"sink_figures"}


@pytest.mark.parametrize("n_directions", [3, 6])
def test_the_graph_of_a_method_that_generates_maps(tmp_path, n_directions):
    from bids_dmrigen.workflow.plan import plan_run
    from bids_dmrigen.workflow.run import init_run_wf

    from ..conftest import diffdti_weights
    from .test_plan import make_run, promised, settings

    weights = (f"diffdti={diffdti_weights(tmp_path / 'weights')}",)
    methods = ("diffdti", "interp") if n_directions == 6 else ("diffdti",)
    asked = settings(methods=methods, weights=weights, n_samples=2)
    plan = plan_run(make_run(tmp_path, n_directions, subject="1"), asked, "TPL")
    wf = init_run_wf(plan, template="TPL", links={"raw": tmp_path}, threads=1)
    sinks = [wf.get_node(name) for name in wf.list_node_names() if name.startswith("sink_") and "figures" not in name]
    pairs = [pair for s in sinks for pair in zip(s.inputs.targets, s.inputs.sidecars, strict=True)]
    stored = {target.rsplit("/", 1)[-1]: sidecar for target, sidecar in pairs}
    assert stored.keys() == promised(plan)
    fa_map = stored["sub-1_model-tensor_param-fa_desc-diffdti_dwimap.nii.gz"]
    assert fa_map["Sources"] == ["bids::sub-1/dwi/sub-1_desc-preproc_dwi.nii.gz"]
    assert "Parameters" not in fa_map["Model"]
    for name in ("figures", "metrics"):
        inputs = wf.get_node(name).inputs
        assert inputs.map_methods == ["diffdti"]
        series = ["interp"] if n_directions == 6 else []
        assert inputs.methods == series
        assert inputs.uncertain_methods == ["diffdti"]
        assert inputs.map_sources == (["preproc", "diffdti", "interp"] if n_directions == 6 else ["diffdti"])
    given = {link["connect"][0][1] for node, _, link in wf._graph.in_edges(wf.get_node("metrics"), data=True)}
    assert {"fa", "md", "dec", "fa_std", "md_std", "map_record"} <= given
    assert ("generated" in given) == (n_directions == 6)
    assert "maps_diffdti" not in wf.list_node_names()


def test_a_method_in_the_templates_space_has_the_name_of_the_template(tmp_path):
    from bids_dmrigen.workflow.plan import plan_run
    from bids_dmrigen.workflow.run import init_run_wf

    from .test_plan import make_run, settings

    plan = plan_run(make_run(tmp_path), settings(methods=("atlas",)), "TPL")
    node = init_run_wf(plan, template="TPL", links={"raw": tmp_path}, threads=1).get_node("generate_atlas")
    for name in ("template_brain", "to_template", "from_template"):
        (tmp_path / name).touch()
        setattr(node.inputs, name, str(tmp_path / name))
    assert node.interface._template_files().template == "TPL"


def test_the_graph_of_a_finer_grid(tmp_path):
    from bids_dmrigen.workflow.plan import plan_run
    from bids_dmrigen.workflow.run import init_run_wf

    from ..conftest import rishldm_weights
    from .test_plan import make_run, method_of, promised, settings

    rishldm_weights(tmp_path / "weights")
    asked = {"methods": ("rishldm", "interp"), "weights_dir": tmp_path / "weights", "qid2_directions": "20"}

    def built(**more):
        plan = plan_run(make_run(tmp_path, 15), settings(**asked, **more), "TPL")
        return plan, init_run_wf(plan, template="TPL", links={"raw": tmp_path}, threads=1)

    def given(wf, name):
        edges = wf._graph.in_edges(wf.get_node(name), data=True)
        return {end: node.name for node, _, link in edges for _, end in link["connect"]}

    plan, wf = built(rishldm_voxel_size=1.5)
    sinks = [wf.get_node(name) for name in wf.list_node_names() if name.startswith("sink_") and "figures" not in name]
    assert {target.rsplit("/", 1)[-1] for sink in sinks for target in sink.inputs.targets} == promised(plan)
    node = wf.get_node("generate_rishldm")
    assert node.inputs.options["voxel_mm"] == 1.5
    assert given(wf, "maps_rishldm")["in_mask"] == given(wf, "features_rishldm")["in_mask"] == "finer_mask"
    assert given(wf, "maps_interp")["in_mask"] != "finer_mask"
    assert set(given(wf, "list_fa").values()) == {"maps_preproc", "onto_map_rishldm_fa", "maps_interp"}
    assert set(given(wf, "list_generated").values()) == {"onto_generated_rishldm", "generate_interp"}
    assert set(given(wf, "list_rish_after").values()) == {f"onto_rish_map_rishldm_rish{k}" for k in (0, 2, 4)}
    own_plan, same_grid = built()
    assert "voxel_mm" not in same_grid.get_node("generate_rishldm").inputs.options
    assert not [name for name in same_grid.list_node_names() if "onto" in name or "finer" in name]
    assert node.mem_gb > same_grid.get_node("generate_rishldm").mem_gb + method_of(plan, "rishldm").finer_gb
    assert method_of(own_plan, "rishldm").finer_gb == 0
