"""`dmrigen demo` and `dmrigen to-scan`: a synthetic dataset to try the app on; an atlas in a scan's space."""

from __future__ import annotations

from pathlib import Path


def add(tools) -> None:
    """Add both tools to the parser of `dmrigen`."""
    demo = tools.add_parser("demo", help="write a synthetic BIDS dataset with known truth")
    demo.add_argument("out_dir", type=Path, help="folder to write; must be empty or absent")
    demo.add_argument("--seed", type=int, default=0, help="seed of anatomy, motion and noise (default: 0)")
    demo.set_defaults(run=_demo)
    to_scan = tools.add_parser(
        "to-scan", help="bring an atlas file from the template into a scan's space, by a stored transform"
    )
    to_scan.add_argument("atlas", type=Path, help="NIfTI file in the template's space: labels, 3-D or 4-D maps")
    to_scan.add_argument("transform", type=Path, help="*_from-<template>_to-dwi_mode-image_xfm.h5 of the run")
    to_scan.add_argument("reference", type=Path, help="*_dwiref.nii.gz of the run: the grid to write on")
    to_scan.add_argument("out_file", type=Path, help="NIfTI file to write")
    to_scan.add_argument("--labels", action="store_true", help="the atlas has labels: take the nearest")
    to_scan.set_defaults(run=_to_scan)


def _demo(args) -> None:
    from .demo import write_demo

    if args.out_dir.is_dir() and any(args.out_dir.iterdir()):
        raise ValueError(f"{args.out_dir} is not empty; give a new folder")
    print(f"writing a synthetic BIDS dataset to {args.out_dir}", flush=True)
    write_demo(args.out_dir, seed=args.seed)


def _to_scan(args) -> None:
    from ..spatial.io import read_image, write_image
    from ..spatial.normalize import apply_to_scan

    for path in (args.atlas, args.transform, args.reference):
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
    _, like = read_image(args.reference)
    write_image(args.out_file, apply_to_scan(args.atlas, args.transform, args.reference, args.labels), like)
