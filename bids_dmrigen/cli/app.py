"""The BIDS App: from a command line to a finished derivative dataset and an exit status."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..workflow.settings import Settings, SettingsError, plugin_arguments

DONE, SOME_FAILED, USAGE, BAD_DATASET, BAD_RESOURCE, BAD_LEVEL = 0, 1, 2, 3, 4, 17
NO_VALIDATOR = (
    "note: the BIDS validator (bids-validator-deno) is not installed: the dataset was not validated; "
    "--skip-bids-validation skips the validation and this note"
)
LOG_LEVELS = ("ERROR", "INFO", "DEBUG")
ATLASES = {"adc": "adc_atlas", "tracts": "xtract_dir", "fibres": "fibre_dir"}  # MethodSpec.population -> setting
# Nipype's plugins that wait until their jobs have ended, and the commands that they need
PLUGINS = {
    "MultiProc": (),
    "Linear": (),
    "SLURM": ("sbatch", "squeue"),
    "PBS": ("qsub", "qstat"),
    "SGE": ("qsub",),
    "LSF": ("bsub", "bjobs"),
    "OAR": ("oarsub", "oarstat"),
    "Condor": ("condor_qsub", "condor_q"),
}
UNUSED_ATLAS = "note: {option} is not used: none of the requested methods ({methods}) uses it"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app; return its exit status."""
    from .parser import UnsupportedLevel, parse_settings

    try:
        settings = parse_settings(argv)
    except UnsupportedLevel as error:
        return _fail(error, BAD_LEVEL)
    except SettingsError as error:
        return _fail(error, USAGE)
    print(f"bids_dmrigen {__version__}: {settings.analysis_level} level on {settings.bids_dir}", flush=True)

    from ..bids.query import DatasetError, SelectionError
    from ..diffusion.weights import WeightsError
    from ..qc.group import GroupError
    from ..simulate.atlas_file import AtlasError
    from ..spatial.templates import TemplateError
    from . import environment

    try:
        with environment.interrupted_by_signals():
            return _group(settings) if settings.analysis_level == "group" else _participants(settings)
    except (SelectionError, SettingsError) as error:
        return _fail(error, USAGE)
    except (DatasetError, GroupError) as error:
        return _fail(error, BAD_DATASET)
    except KeyboardInterrupt as stop:
        environment.stop_workers()
        by = f" by {stop}" if str(stop) else ""
        return _fail(InterruptedError(f"stopped{by}; call again to continue from here"), SOME_FAILED)
    except (AtlasError, TemplateError, WeightsError) as error:
        return _fail(error, BAD_RESOURCE)
    except OSError as error:
        # The user can repair full disks and read-only folders: print the message, not the traceback.
        if settings.verbose:
            raise
        from ..workflow.space import explained

        return _fail(OSError(explained(str(error), settings)), SOME_FAILED)


def _participants(settings: Settings) -> int:
    from . import environment

    _check_output(settings.out_dir)
    _device_exists(settings.device)
    _plugin_exists(settings.nipype_plugin or "MultiProc")
    plugin_arguments(settings.nipype_plugin_file)  # a file that cannot be read is told before anything is planned
    if not settings.dry_run:
        _writable(settings.out_dir, "output folder")
        _writable(settings.work, "work folder (-w/--work-dir)")
        _temporary_files()
    _atlases_fit(settings)
    _weights_fit(settings)
    runs, template = _discover(settings), _template_name(settings)
    problems = [*_labels_without_run(settings, runs), *_leftovers(settings)]

    from ..workflow.plan import describe, plan_runs

    n_cpus = settings.n_cpus or environment.cpus()
    threads = settings.omp_nthreads or max(1, min(8, n_cpus // max(1, min(len(runs), n_cpus))))
    if settings.deterministic:  # the order of additions in registration depends on the number of threads
        threads = 1
    if not settings.dry_run:
        environment.prepare(settings.work, threads, LOG_LEVELS[min(settings.verbose, 2)])
    plans = plan_runs(runs, settings, template)
    if settings.dry_run:
        print("\n".join([*(line for plan in plans for line in describe(plan)), *problems]))
        return SOME_FAILED if problems or any(plan.fault or plan.refused for plan in plans) else DONE
    for plan in plans:
        if plan.note:
            print(f"note: {plan.run.name} {plan.note}", flush=True)
    plans = [plan for plan in plans if not plan.note]

    from ..workflow import methods_text, participant, report

    if settings.boilerplate_only:
        print(methods_text.as_markdown(methods_text.paragraphs(plans)))
        return DONE
    links = _links(settings)
    report.write_dataset_files(settings, links)
    started = time.monotonic()
    if settings.reports_only:
        errors = participant.unfinished(plans, settings.out_dir)
    else:
        _enough_space(settings, plans)
        memory_gb = settings.mem_gb or 0.9 * environment.memory_gb()
        resources = participant.Resources(n_cpus, threads, memory_gb)
        errors = participant.execute(plans, settings, template, links, resources)
    pages, missing = report.write_reports(settings, plans, errors)
    return _finish(settings, plans, errors, problems + missing, pages, time.monotonic() - started)


def _labels_without_run(settings: Settings, runs) -> list[str]:
    from ..bids.query import labels_without_run

    return labels_without_run(runs, settings.participant_label, settings.session_label, settings.run_label)


def _leftovers(settings: Settings) -> list[str]:
    from ..bids.leftovers import leftovers

    return [] if settings.derivatives else leftovers(
        settings.bids_dir, settings.participant_label, settings.session_label
    )  # fmt: skip


def _discover(settings: Settings):
    from ..bids.query import SelectionError, fault_duplicates, find_preprocessed, find_runs, open_layout
    from ..diffusion.storage import TextError, read_object

    filters = None
    if settings.bids_filter_file:
        try:
            filters = read_object(settings.bids_filter_file)
        except TextError as error:
            raise SelectionError(f"--bids-filter-file: {error}") from None
    ours = (settings.out_dir, settings.work)
    layout = open_layout(settings.bids_dir, settings.bids_database_dir, exclude=ours)
    if not settings.skip_bids_validation:
        _validate(settings.bids_dir)
    labels = (settings.participant_label, settings.session_label, settings.run_label)
    if not settings.derivatives:
        return find_runs(layout, *labels, filters, settings.b0_threshold)
    # Here the raw dataset only provides the T1w images; the runs are selected from the derivative dataset.
    raw = find_runs(layout, filters={"t1w": filters["t1w"]} if filters and "t1w" in filters else None)
    runs = []
    for item in settings.derivatives:
        derivative = open_layout(Path(item.split("=", 1)[1]), derivative=True, exclude=ours)
        runs += find_preprocessed(derivative, raw, *labels, filters)
    return fault_duplicates(runs)


def _validate(bids_dir: Path) -> None:
    """Print the errors of the BIDS validator as notes, where it is installed.

    A dataset with an error in other files is still processed: the checks of each run decide.
    """
    validator = shutil.which("bids-validator-deno") or shutil.which(
        "bids-validator-deno", path=str(Path(sys.executable).parent)
    )
    if not validator:
        print(NO_VALIDATOR)
        return
    import subprocess

    try:
        result = subprocess.run(
            [validator, str(bids_dir), "--json"], capture_output=True, text=True, timeout=120, check=False
        )
        issues = json.loads(result.stdout)["issues"]["issues"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError, OSError) as error:
        print(f"note: the BIDS validator gave no answer ({type(error).__name__}): the dataset was not validated")
        return
    errors = [i for i in issues if i.get("severity") == "error"]
    for issue in errors[:10]:
        what = f"{issue.get('code')} {issue.get('subCode') or ''}".strip()
        print(f"note: BIDS validator: {what} at {issue.get('location', '')}")
    if len(errors) > 10:
        print(f"note: BIDS validator: {len(errors) - 10} more; run the validator itself to see all")


def _template_name(settings: Settings) -> str:
    from ..spatial.templates import EMBEDDED_NAME, check_template, find_template

    if settings.template_dir is None:
        return EMBEDDED_NAME
    template = find_template(settings.template_dir)
    check_template(template)
    return template.name


def _links(settings: Settings) -> dict[str, Path]:
    links = {"raw": settings.bids_dir}
    for item in settings.derivatives:
        name, path = item.split("=", 1)
        links[name] = Path(path)
    return links


def _check_output(folder: Path) -> None:
    """Refuse to write into a dataset of another program, because its description would be lost."""
    description = folder / "dataset_description.json"
    if not description.is_file():
        return
    from ..diffusion.storage import TextError, read_object

    try:
        generators = read_object(description).get("GeneratedBy", [])
        ours = any(program.get("Name") == "bids_dmrigen" for program in generators)
    except (TextError, AttributeError, TypeError):
        ours = False
    if not ours:
        raise SettingsError(
            f"the output folder {folder} is a dataset that bids_dmrigen did not write; give another one"
        )


def _device_exists(device: str) -> None:
    if not device.startswith("cuda"):
        return
    from ..diffusion.parallel import choose_device

    try:
        choose_device(device)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _plugin_exists(name: str) -> None:
    if name not in PLUGINS:
        raise SettingsError(f"--nipype-plugin: expected one of {', '.join(PLUGINS)}, spelt like this, found {name}")
    if missing := [command for command in PLUGINS[name] if not shutil.which(command)]:
        raise SettingsError(
            f"--nipype-plugin {name}: {' and '.join(missing)} cannot be called here (not on PATH); call the app where "
            "jobs are submitted, e.g. on a login node and not in a container, or leave the option out"
        )


def _weights_fit(settings: Settings) -> None:
    from ..methods import check_weights, given_weights, spec_of

    for method in settings.methods:
        given = given_weights(method, settings.method_weights)
        options = spec_of(method).options_by_key(settings.method_options)
        check_weights(method, settings.size, given, settings.weights_dir, options)


def _atlases_fit(settings: Settings) -> None:
    """Refuse a faulty atlas that a method will use; print a note about one that no method uses."""
    from ..methods import spec_of
    from ..spatial.population import check_atlas

    used = {kind for method in settings.methods for kind in spec_of(method).population}
    for kind, name in ATLASES.items():
        path = getattr(settings, name)
        if path is None:
            continue
        if kind in used:
            check_atlas(kind, path)
        else:
            option = f"--{name.replace('_', '-')}"
            print(UNUSED_ATLAS.format(option=option, methods=", ".join(settings.methods) or "none"), flush=True)


def _writable(folder: Path, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"the {what} {folder} cannot be written to ({error.strerror}); choose another") from error


def _temporary_files() -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OSError("there is no folder for small temporary files; in a container add one: --tmpfs /tmp") from error


def _enough_space(settings: Settings, plans) -> None:
    """Refuse to start without enough disk space; the needed space is estimated from the size of the input."""
    from ..workflow.participant import cache_folder
    from ..workflow.space import size_text

    needed = sum(1e9 * plan.space_gb for plan in plans if not plan.fault)
    free = shutil.disk_usage(settings.work).free
    cached = any((cache_folder(settings) / "participant").glob("run_*"))
    if needed > free and not cached:
        raise OSError(
            f"the work folder {settings.work} has {size_text(free)} free, these {len(plans)} runs need about "
            f"{size_text(needed)}; free some space or give another folder with --work-dir"
        )


def _finish(settings: Settings, plans, errors, problems, pages, seconds: float) -> int:
    """Print results and failures; return the exit status."""
    failures = [f"{name}, {error.step}: {error.message}" for name, error in errors.items()] + problems
    for failure in failures:
        print(f"\nFAILED {failure}", file=sys.stderr)
    for page in pages:
        print(f"report: {page}")
    done = len(plans) - len(errors)
    print(f"{'Ended' if failures else 'Finished'}: {done} of {len(plans)} runs complete in {seconds:.0f} s")
    if failures:
        return SOME_FAILED
    if settings.clean_workdir:
        from ..workflow.participant import cache_folder

        for plan in plans:
            shutil.rmtree(cache_folder(settings) / "participant" / plan.node_name, ignore_errors=True)
    return DONE


def _group(settings: Settings) -> int:
    from . import environment

    environment.prepare(settings.work, 1)
    from ..workflow.group import run_group

    for path in run_group(settings):
        print(f"report: {path}")
    return DONE


def _fail(error: Exception, status: int) -> int:
    print(f"bids_dmrigen: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
