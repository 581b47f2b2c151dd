"""Write boutiques/bids_dmrigen.json from the app's own parser, so that it never drifts from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import urlparse

from bids_dmrigen import __version__
from bids_dmrigen.bids.sidecars import CODE_URL
from bids_dmrigen.cli.parser import arguments, option_arguments, option_help
from bids_dmrigen.methods import options
from bids_dmrigen.workflow.settings import ANALYSIS_LEVELS, GROUPS, METHODS_GROUP, settings_of

DESCRIPTOR = Path(__file__).with_name("bids_dmrigen.json")
REGISTRY = "ghcr.io"  # where .github/workflows/image.yml puts the images of a release
LEFT_OUT = {"config_file", "nipype_plugin_file", "bids_filter_file", "verbose"}  # files beside the dataset, noise
NOT_YET_THERE = {"work_dir", "bids_database_dir"}
COMMAND = "mkdir -p [OUTPUT_DIR]; bids_dmrigen [BIDS_DIR] [OUTPUT_DIR] [ANALYSIS_LEVEL] [PARTICIPANT_LABEL]"
ERRORS = {
    1: "A run, method, label or report failed and is named; the rest is complete.",
    2: "Usage: an option or label that makes no sense.",
    3: "The input dataset cannot be used.",
    4: "Weights or a template are missing or wrong.",
    17: "The analysis level is not supported.",
}

TEST = {
    "name": "the plan of the demo dataset (make demo)",
    "invocation": {"bids_dir": "demo/data", "output_dir_name": "demo/out", "analysis_level": "participant",
                   "skip_bids_validation": True, "dry_run": True},
    "assertions": {"exit-code": 0},
}  # fmt: skip
OUTPUT = {
    "id": "output",
    "name": "Derivative dataset",
    "path-template": "[OUTPUT_DIR]",
    "description": "BIDS derivatives with reports.",
}
OUTPUT_GROUP = {
    "id": "output_folder",
    "name": "Output folder",
    "members": ["output_dir_name", "output_dir"],
    "mutually-exclusive": True,
    "one-is-required": True,
}


def build() -> dict:
    """Return the descriptor (Boutiques schema 0.5, BIDS-app form)."""
    inputs = [
        {"id": "bids_dir", "name": "BIDS dataset", "type": "File", "value-key": "[BIDS_DIR]",
         "description": "Root of the input BIDS dataset."},
        {"id": "output_dir_name", "name": "Output folder", "type": "String", "value-key": "[OUTPUT_DIR]",
         "description": "Derivative dataset to write.", "optional": True},
        {"id": "output_dir", "name": "Existing output folder", "type": "File", "value-key": "[OUTPUT_DIR]",
         "description": "Derivative dataset that is there already (group level).", "optional": True},
        {"id": "analysis_level", "name": "Analysis level", "type": "String", "value-key": "[ANALYSIS_LEVEL]",
         "description": "participant or group.", "value-choices": list(ANALYSIS_LEVELS),
         "default-value": "participant"},
    ]  # fmt: skip
    keys = []
    for group in GROUPS:
        entries = [_setting(spec) for spec in settings_of(group) if spec.name not in LEFT_OUT]
        if group == METHODS_GROUP:
            entries += [_input(o.flag.removeprefix("--"), option_help(o), option_arguments(o)) for o in options()]
        inputs += entries
        keys += [entry["value-key"] for entry in entries if entry["id"] != "participant_label"]
    version = __version__.split("+")[0].split(".dev")[0]
    image = f"{REGISTRY}{urlparse(CODE_URL).path}:{version}"
    return {
        "name": "bids_dmrigen",
        "tool-version": version,
        "schema-version": "0.5",
        "description": "Diffusion models for diffusion MRI, as a BIDS App.",
        "author": "The bids_dmrigen developers",
        "command-line": " ".join([COMMAND, *keys]),
        "container-image": {"type": "docker", "image": image, "index": "docker://"},
        "inputs": inputs,
        "output-files": [OUTPUT],
        "groups": [OUTPUT_GROUP],
        "error-codes": [{"code": code, "description": text} for code, text in ERRORS.items()],
        "suggested-resources": {"cpu-cores": 2, "ram": 4, "walltime-estimate": 3600},
        "tests": [TEST],
        "tags": {"domain": ["neuroinformatics", "diffusion MRI"]},
        "custom": {
            "cbrain:integrator_modules": {
                "BoutiquesBidsSingleSubjectMaker": "bids_dir",
                "BoutiquesFileTypeVerifier": {"bids_dir": ["BidsDataset"]},
            },
            "cbrain:readonly-input-files": True,
        },
    }


def _setting(spec) -> dict:
    """Return the input of a setting."""
    entry = _input(spec.metadata["flag"] or spec.name.replace("_", "-"), spec.metadata["help"], arguments(spec))
    if spec.name in NOT_YET_THERE:
        entry["type"] = "String"  # only what exists can be bound into a container
    return entry


def _input(flag: str, text: str, options: dict) -> dict:
    """Return the input of an option, from its name, its help and what argparse is told of it."""
    name = flag.replace("-", "_")  # no_gibbs, not gibbs: an input that is true puts its flag on the command line
    entry = {
        "id": name,
        "name": name.replace("_", " "),
        "description": text.replace("%%", "%"),
        "value-key": f"[{name.upper()}]",
        "command-line-flag": f"--{flag}",
        "optional": True,
    }
    if options.get("action", "").startswith("store"):
        return {**entry, "type": "Flag"}
    kind = options.get("type")
    entry["type"] = {int: "Number", float: "Number", Path: "File"}.get(kind, "String")
    if kind is int:
        entry["integer"] = True
    if options.get("nargs") == "+":
        entry["list"] = True
    if "choices" in options:
        entry["value-choices"] = list(options["choices"])
    return entry


def text() -> str:
    """Return the descriptor as it stands in the file."""
    return json.dumps(build(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DESCRIPTOR.write_text(text())
    sys.stdout.write(f"{DESCRIPTOR}\n")
