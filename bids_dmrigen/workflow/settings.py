"""All settings of the BIDS App, with type, default, help and group; the parser and the TOML file use them."""

from __future__ import annotations

import math
import os
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..diffusion.storage import TextError, read_object, read_text
from ..methods import REGISTRY, options, spec_of
from ..methods.spec import Directions, Option, OptionError

ANALYSIS_LEVELS = ("participant", "group")
DENOISERS = ("mppca", "patch2self", *(name for name in REGISTRY if spec_of(name).denoises), "none")
SAMPLERS = ("fast", "paper")

METHODS_GROUP = "methods"
GROUPS = {
    "selection": "which runs of the dataset",
    METHODS_GROUP: "what is generated, and how",
    "preprocessing": "what happens before; each step is skipped, with a reason, where the data do not allow it",
    "atlases": "templates; the default is embedded and needs no files",
    "resources": "processors, memory, accelerators, cluster",
    "running": "how this command runs",
}

NO_DIRECTIONS = "{path}: expected b-vectors, three rows of numbers, found only vectors of length 0"


class SettingsError(ValueError):
    """A setting that is not valid, with the expected value."""


def option(group: str, text: str, default: Any = MISSING, *, flag: str | None = None, **argparse: Any) -> Any:
    """Declare a setting: its group, its help, and those arguments of argparse that do not follow from its type."""
    metadata = {"group": group, "help": text, "flag": flag, "argparse": argparse}
    return field(default=default, metadata=metadata)


def _methods_for(kind: str) -> str:
    """Return the names of the methods that use this kind of population map."""
    return ", ".join(name for name in REGISTRY if kind in spec_of(name).population)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one call."""

    bids_dir: Path
    out_dir: Path
    analysis_level: str

    # -- selection
    participant_label: tuple[str, ...] = option(
        "selection",
        "subjects to process, with or without sub- (default: all)",
        (),
        nargs="+",
        metavar="LABEL",
    )
    session_label: tuple[str, ...] = option(
        "selection",
        "sessions to process, with or without ses- (default: all)",
        (),
        nargs="+",
        metavar="LABEL",
    )
    run_label: tuple[str, ...] = option(
        "selection", "values of the run entity to process (default: all)", (), nargs="+", metavar="LABEL"
    )
    bids_filter_file: Path | None = option(
        "selection", 'JSON file with pybids filters, e.g. {"dwi": {"direction": "AP"}}', None, metavar="FILE"
    )
    derivatives: tuple[str, ...] = option(
        "selection",
        "start from the preprocessed runs of a derivative dataset, e.g. qsiprep=/data/derivatives/qsiprep",
        (),
        nargs="+",
        metavar="NAME=PATH",
    )
    skip_bids_validation: bool = option(
        "selection",
        "do not check the input with the BIDS validator (bids-validator-deno, where it is installed)",
        False,
    )
    bids_database_dir: Path | None = option(
        "selection", "folder of a pybids database, made when absent: saves indexing a large dataset", None,
        metavar="DIR",
    )  # fmt: skip

    # -- methods
    methods: tuple[str, ...] = option(
        "methods",
        "methods to run, by name (default: none, preprocessing and maps alone)",
        (),
        nargs="+",
        choices=REGISTRY,
        metavar="METHOD",
    )
    size: str = option("methods", "network size (default: small)", "small", choices=("small", "paper"))
    weights: tuple[str, ...] = option(
        "methods",
        "trained weights, by name or path of a .safetensors file (default: those named METHOD-SIZE)",
        (),
        nargs="+",
        metavar="METHOD=NAME_OR_PATH",
    )
    weights_dir: Path | None = option(
        "methods", "folder with weights, searched before those of the package", None, metavar="DIR"
    )
    sampler: str | None = option(
        "methods", "the paper's sampler or a faster one (default: fast; paper with --size paper)", None,
        choices=SAMPLERS,
    )  # fmt: skip
    steps: int | None = option(
        "methods", "evaluations of the network for each image (default: the sampler's own)", None, metavar="N"
    )
    n_samples: int = option(
        "methods", "samples that the uncertainty of maps comes from; 1 for none, which is quicker (default: 8)", 8,
        metavar="N",
    )  # fmt: skip
    write_samples: bool = option(
        "methods", "store every sample of a result too: an analysis can then be run over them", False
    )
    seed: int = option("methods", "seed of every random number (default: 0)", 0, metavar="N")
    method_options: Mapping[str, Any] = field(default_factory=dict)  # options of methods, by `Option.name`

    # -- preprocessing
    denoise: str | None = option(
        "preprocessing",
        "denoising before everything else (default: as the series that an earlier call stored in the output folder, "
        "else mppca; none where a method is asked for that has to see the noise: "
        f"{', '.join(spec_of(name).title for name in REGISTRY if spec_of(name).on_acquired)})",
        None,
        choices=DENOISERS,
    )
    leave_out_trace: bool = option(
        "preprocessing",
        "leave out volumes at the end of a series that have a b-value but no direction: means over the directions",
        False,
    )
    gibbs: bool = option("preprocessing", "do not remove Gibbs ringing", True, flag="no-gibbs")
    motion: bool = option("preprocessing", "do not correct head motion and eddy currents", True, flag="no-motion")
    sdc: bool = option("preprocessing", "do not correct susceptibility distortion", True, flag="no-sdc")
    bias: bool = option("preprocessing", "do not correct the bias field", True, flag="no-bias")
    b0_threshold: float = option(
        "preprocessing", "volumes at or below this b-value, s/mm², are b0 (default: 50)", 50.0, metavar="B"
    )
    skip_preprocessing: bool = option(
        "preprocessing", "use the runs as they are: no denoising and no correction", False
    )

    output_spaces: tuple[str, ...] = option(
        "preprocessing",
        "grids of the results: the run's own, which is always written (dwi), and a 2 mm grid over the template too "
        "(template): brain mask, FA, MD, AD and RD, and the series of methods that make them there (default: dwi)",
        ("dwi",),
        nargs="+",
        choices=("dwi", "template"),
    )

    # -- atlases
    template_dir: Path | None = option(
        "atlases",
        "folder with tpl-NAME_*T1w.nii.gz and tpl-NAME_*desc-brain_mask.nii.gz "
        "(default: the embedded MNI152NLin2009aSym)",
        None,
        metavar="DIR",
    )

    xtract_dir: Path | None = option(
        "atlases",
        f"XTRACT's tracts, for {_methods_for('tracts')}: FSL's folder, or one 4-D file with its labels (default: none)",
        None,
        metavar="DIR_OR_FILE",
    )
    adc_atlas: Path | None = option(
        "atlases",
        f"ADC atlas in MNI space, for {_methods_for('adc')}, as `dmrigen prepare --adc-atlas` writes it (default: the "
        "packaged one)",
        None,
        metavar="FILE",
    )
    fibre_dir: Path | None = option(
        "atlases",
        f"fibre atlas in MNI space, for {_methods_for('fibres')}: a folder with T1w, brain_mask, "
        "tissue_wm_gm_csf_percent, peaks_world_ras and qa (default: analytic bundles)",
        None,
        metavar="DIR",
    )

    # -- resources
    n_cpus: int | None = option("resources", "processors to use in all (default: all there are)", None, metavar="N")
    omp_nthreads: int | None = option(
        "resources",
        "threads of one step (default: --n-cpus divided by the number of runs, at least 1 and at most 8; "
        "always 1 with --deterministic)",
        None,
        metavar="N",
    )
    mem_gb: float | None = option(
        "resources", "memory to use in all, GB (default: 90 %% of what there is)", None, metavar="GB"
    )
    device: str = option(
        "resources",
        "auto, cpu, cuda or cuda:N (default: auto, a GPU where there is one)",
        "auto",
        metavar="DEVICE",
    )
    precision: str = option(
        "resources", "arithmetic of the networks (default: auto, the faster one)", "auto",
        choices=("auto", "fp32", "bf16"),
    )  # fmt: skip
    deterministic: bool = option(
        "resources", "bit-identical results: one registration thread, no clock in any decision", False
    )
    nipype_plugin: str | None = option(
        "resources", "Nipype execution plugin, e.g. Linear, SLURM (default: MultiProc)", None, metavar="NAME"
    )
    nipype_plugin_file: Path | None = option(
        "resources", "TOML or JSON file with the plugin's arguments (plugin_args)", None, metavar="FILE"
    )

    # -- running
    work_dir: Path | None = option(
        "running", "intermediate results; keep it to resume (default: OUT_DIR/work)", None, flag="work-dir",
        short="-w", metavar="DIR",
    )  # fmt: skip
    dry_run: bool = option("running", "print every run, step and output, and stop", False)
    reports_only: bool = option("running", "rebuild the reports from the files in OUT_DIR", False)
    boilerplate_only: bool = option("running", "print the methods text with its citations, and stop", False)
    stop_on_first_crash: bool = option("running", "stop at the first failure", False)
    clean_workdir: bool = option("running", "remove this call's intermediate results after success", False)
    config_file: Path | None = option(
        "running", "TOML file with settings; the command line wins over it", None, metavar="FILE"
    )
    verbose: int = option("running", "say more; twice for everything", 0, short="-v", action="count")

    def __post_init__(self):
        for spec in fields(self):
            _check(spec, getattr(self, spec.name))
        self._check_folders()
        for name, least in (
            ("n_samples", 1),
            ("steps", 1),
            ("n_cpus", 1),
            ("omp_nthreads", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"--{name.replace('_', '-')}: expected at least {least}, found {value}")
        for name in ("b0_threshold", "mem_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"--{name.replace('_', '-')}: expected more than 0, found {value}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdigit():
            raise SettingsError(f"--device: expected auto, cpu, cuda or cuda:N, found {self.device}")
        for prefix, name in (("sub-", "participant_label"), ("ses-", "session_label"), ("run-", "run_label")):
            labels = tuple(label.removeprefix(prefix) for label in getattr(self, name))
            object.__setattr__(self, name, labels)
        for item in self.derivatives:
            name, _, path = item.partition("=")
            if not name or not path:
                raise SettingsError(f"--derivatives: expected NAME=PATH, found {item}")
            if Path(path).resolve() == self.out_dir.resolve():
                raise SettingsError(f"--derivatives: {path} is the output folder too; give another output folder")
        weights_by_method(self.weights)
        object.__setattr__(self, "method_options", self._checked_options())
        # Full paths, because steps run in other folders.
        for name in ("template_dir", "xtract_dir", "adc_atlas", "fibre_dir"):
            path = getattr(self, name)
            if path is not None and name != "template_dir" and not path.exists():
                raise SettingsError(f"--{name.replace('_', '-')}: {path} does not exist")
            object.__setattr__(self, name, path and path.resolve())

    def _check_folders(self) -> None:
        """Refuse output and work folders that cannot be used, or that would hide a part of the dataset."""
        for what, folder in (("output", self.out_dir), ("work", self.work_dir or self.out_dir)):
            try:
                if folder.resolve().exists() and not folder.is_dir():
                    raise SettingsError(f"the {what} folder {folder} is a file; give a folder")
            except (OSError, RuntimeError) as error:
                raise SettingsError(f"the {what} folder {folder} cannot be used ({error}); give another one") from None
        if set(",[]") & set(str(self.work)):
            raise SettingsError(f"the work folder {self.work} has one of , [ ] in its path, which ANTs cannot read")
        if self.out_dir.resolve() == self.bids_dir.resolve():
            raise SettingsError(
                f"the output folder is the input folder ({self.out_dir}); "
                f"give another one, e.g. {self.bids_dir / 'derivatives' / 'bids_dmrigen'}"
            )

        for what, folder in (("output", self.out_dir), ("work", self.work)):
            if subject := _subject_folder(self.bids_dir, folder):
                raise SettingsError(
                    f"the {what} folder {folder} is in {subject} of the input dataset, which would no longer be read; "
                    "give another one"
                )

    def _checked_options(self) -> dict[str, Any]:
        """Return the values of all options of all methods, by name; files as full paths."""
        all_options = {o.name: o for o in options()}
        if unknown := sorted(set(self.method_options) - set(all_options)):
            raise SettingsError(f"no method has an option {unknown[0]}; there are {', '.join(all_options)}")
        try:
            values = {
                name: _located(o, o.checked(self.method_options.get(name, o.default)))
                for name, o in all_options.items()
            }
            for method in self.methods:
                spec_of(method).check_options(values, self.b0_threshold)
        except OptionError as error:
            raise SettingsError(str(error)) from None
        return values

    @property
    def work(self) -> Path:
        """Folder of the intermediate results."""
        return (self.work_dir or self.out_dir / "work").resolve()

    @property
    def method_weights(self) -> dict[str, str]:
        """Method -> name or path of its weights, for methods with given weights."""
        return weights_by_method(self.weights)

    @property
    def denoiser(self) -> str:
        """The denoiser in use: the requested one, or else the default for the methods."""
        if self.skip_preprocessing:
            return "none"
        needs_noise = any(spec_of(method).on_acquired for method in self.methods)
        return self.denoise or ("none" if needs_noise else "mppca")

    @property
    def sampler_name(self) -> str:
        """The sampler in use: the requested one, or else the default for the network size."""
        return self.sampler or ("paper" if self.size == "paper" else "fast")

    def to_toml(self) -> str:
        """Return the settings as a TOML document, grouped, without the three positional arguments."""
        import tomli_w

        tables = {group: {s.name: getattr(self, s.name) for s in settings_of(group)} for group in GROUPS}
        tables[METHODS_GROUP] |= self.method_options
        return tomli_w.dumps({
            group: {name: _plain(value) for name, value in table.items() if value is not None}
            for group, table in tables.items()
        })  # fmt: skip


def weights_by_method(items: Iterable[str]) -> dict[str, str]:
    """Return method -> name or path of METHOD=NAME_OR_PATH items; `SettingsError` where one is not of that form."""
    pairs = {}
    for item in items:
        method, _, weights = item.partition("=")
        if method not in REGISTRY or not weights:
            names = ", ".join(REGISTRY)
            raise SettingsError(f"--weights: expected METHOD=NAME_OR_PATH, METHOD one of {names}, found {item}")
        pairs[method] = weights
    return pairs


def name_of_call() -> str:
    """Return a name for the files of one call: its time and a random part; containers have equal process numbers."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def settings_of(group: str) -> list[Field]:
    """Return the fields of a group, in order."""
    return [f for f in fields(Settings) if f.metadata.get("group") == group]


def _subject_folder(bids_dir: Path, folder: Path) -> str | None:
    """Return the subject folder of the dataset that a folder is in; None where it is in none."""
    try:
        parts = folder.resolve().relative_to(bids_dir.resolve()).parts
    except ValueError:
        return None
    return parts[0] if parts and parts[0].startswith("sub-") else None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, converted to their types.

    Raises
    ------
    SettingsError
        Where the file is missing, is not TOML, or contains a name that is not a setting.
    """
    try:
        document = tomllib.loads(read_text(path))
    except TextError as error:
        raise SettingsError(f"--config-file {error}") from None
    except (ValueError, RecursionError) as error:  # TOML errors, and a number of thousands of digits
        raise SettingsError(f"--config-file {path}: not valid TOML ({error})") from None
    settings = {f.name: f for f in fields(Settings) if "group" in f.metadata}
    method_options = {o.name: o for o in options()}
    values: dict[str, Any] = {}
    for table, content in document.items():
        if table not in GROUPS or not isinstance(content, dict):
            raise SettingsError(f"--config-file {path}: unknown table [{table}]; expected {', '.join(GROUPS)}")
        for name, value in content.items():
            name = name.replace("-", "_")
            value = tuple(value) if isinstance(value, list) else value
            if table == METHODS_GROUP and name in method_options:
                values.setdefault("method_options", {})[name] = value
                continue
            if name not in settings or settings[name].metadata["group"] != table:
                raise SettingsError(f"--config-file {path}: [{table}] has no setting {name}")
            values[name] = Path(str(value)) if "Path" in str(settings[name].type) else value
    return values


def plugin_arguments(path: Path | None) -> dict[str, Any]:
    """Return the arguments of Nipype's execution plugin from a file, TOML or JSON; none where there is no file.

    Raises
    ------
    SettingsError
        Where the file cannot be read, or holds no table of arguments.
    """
    if path is None:
        return {}
    try:
        document = read_object(path) if path.suffix == ".json" else tomllib.loads(read_text(path))
    except TextError as error:
        raise SettingsError(f"--nipype-plugin-file {error}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--nipype-plugin-file {path}: not valid TOML ({error})") from None
    arguments = document.get("plugin_args", document)
    if not isinstance(arguments, dict):
        raise SettingsError(f"--nipype-plugin-file {path}: expected a table plugin_args, found {arguments!r}")
    return arguments


def _check(spec: Field, value: Any) -> None:
    """Refuse a value of the wrong type, which may come from a settings file."""
    if "group" not in spec.metadata or value is None:
        return
    listed = isinstance(spec.default, tuple)
    values = value if listed and isinstance(value, tuple) else (value,)
    number = (int, float)
    kinds: dict[str, Any] = {"bool": bool, "int": int, "float": number, "str": str, "Path": Path}
    kinds |= {"tuple[str, ...]": str, "tuple[float, ...]": number}
    kind = kinds[str(spec.type).removesuffix(" | None")]
    flag = f"--{spec.metadata['flag'] or spec.name.replace('_', '-')}"
    fits = all(isinstance(v, kind) and (kind is bool or not isinstance(v, bool)) for v in values)
    fits = fits and all(math.isfinite(v) for v in values if isinstance(v, float))
    if (listed and not isinstance(value, tuple)) or not fits:
        raise SettingsError(f"{flag}: expected {'a list of ' if listed else ''}{spec.type}, found {value!r}")
    if any("\0" in str(v) for v in values):
        raise SettingsError(f"{flag}: expected no NUL character, found {value!r}")
    choices = spec.metadata["argparse"].get("choices")
    wrong = [v for v in values if choices and v not in choices]
    if wrong:
        raise SettingsError(f"{flag}: expected {', '.join(choices)}, found {wrong[0]!r}")


def directions_of(value: str | int) -> int | tuple[tuple[float, ...], ...]:
    """Return a number of directions, or the b-vectors in a file without those of b0s, which have length 0.

    Raises
    ------
    GradientError
        Where the file holds no unit vectors.
    """
    text = str(value)
    return int(text) if text.isdigit() else _vectors_in(text)


@cache
def _vectors_in(path: str) -> tuple[tuple[float, ...], ...]:
    import numpy as np

    from ..bids.tables import read_bvecs
    from ..dwi.gradients import GradientError, GradientTable

    vectors = read_bvecs(path)
    vectors = vectors[np.any(vectors, axis=1)]
    if not len(vectors):
        raise GradientError(NO_DIRECTIONS.format(path=path))
    try:
        table = GradientTable(np.full(len(vectors), 1000.0), vectors)
    except GradientError as error:
        raise GradientError(f"{path}, without rows of length 0: {error}") from None
    return tuple(map(tuple, table.bvecs.tolist()))


def _located(option: Option, value: Any) -> Any:
    """Return a value with full paths of files, because steps run in other folders."""
    if option.kind is not Directions or value is None:
        return value.resolve() if isinstance(value, Path) else value
    text = str(value)
    if text.isdigit() and int(text) > 0:
        return int(text)
    if not Path(text).is_file():
        raise OptionError(f"{option.flag}: expected a number above 0 or a file, found {text}")
    path = str(Path(text).resolve())
    try:
        directions_of(path)
    except (ValueError, OSError) as error:
        raise OptionError(f"{option.flag}: {error}") from None
    return path


def _plain(value: Any) -> Any:
    """Return a value in a form that TOML can store."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
