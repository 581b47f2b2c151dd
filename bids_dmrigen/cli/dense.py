"""Dense scans that arms are scored on: scans of a user, and scans of simulated subjects that nothing was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dwi.blocks import finer_affine, in_blocks, whole_blocks
from ..dwi.gradients import GradientTable
from ..dwi.series import Scan, ScanError

if TYPE_CHECKING:
    from ..methods.base import Generated, Method, Request
    from ..spatial.in_template import TemplateFiles

SIMULATED: dict[str, Any] = {
    "directions": 60,
    "b0s": 4,
    "bval": 1000.0,
    "snr": 20.0,
    "voxel_mm": 3.0,
    "shape": (56, 66, 20),
}
FIRST_SEED = 500  # of simulated subjects, after `HELD_OUT`: none of them is trained on
LEAST_SLICES = 10
TOO_THIN = "to be registered to the template, a scan needs at least {least} slices, found {found}"
SAME_NAME = "{first} and {second} would have one name in the results: give each scan once, or rename a file"
MASKS = ("_mask", "_brainmask")
IN_TRACT = 0.3  # share of subjects


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense scan.

    Parameters
    ----------
    name
        For tables and files.
    scan
        With its brain mask.
    truth
        (X, Y, Z, N) signals without noise; None for a real scan.
    given
        What arms see of it, with larger voxels; None for the scan itself.
    """

    name: str
    scan: Scan
    truth: np.ndarray | None = None
    given: Scan | None = None

    @property
    def seen(self) -> Scan:
        """What arms see."""
        return self.scan if self.given is None else self.given


def image_files(given: list[Path]) -> list[Path]:
    """Return the diffusion series among files, and in folders and all that lies below them.

    Raises
    ------
    ValueError
        Where a folder has none.
    """
    found: list[Path] = []
    for path in given:
        inside = sorted(path.rglob("*_dwi.nii*")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path}: no file whose name ends with _dwi.nii or _dwi.nii.gz lies in it")
        found += inside
    return found


def scan_names(images: list[Path]) -> dict[str, Path]:
    """Return name -> image: names of files, with those of their folders where two files have the same.

    Raises
    ------
    ValueError
        Where two images still have one name, for instance because one was given twice.
    """
    stems = [stem_of(image) for image in images]
    named: dict[str, Path] = {}
    for image, stem in zip(images, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{image.resolve().parent.name}_{stem}"
        if name in named:
            raise ValueError(SAME_NAME.format(first=named[name], second=image))
        named[name] = image
    return named


def stem_of(image: Path) -> str:
    """Return the name of an image without its endings."""
    return image.name.removesuffix(".gz").removesuffix(".nii")


def read_dense(
    image: Path,
    bval: Path | None = None,
    bvec: Path | None = None,
    mask: Path | None = None,
    b0_threshold: float = 50.0,
) -> Scan:
    """Return a dense scan; b-values, b-vectors and mask are those beside the image where not given.

    Without a mask, the brain is found in b0 and mean DWI, without voxels where a volume is 0.
    """
    from ..spatial.brain_mask import brain_of
    from ..spatial.io import read_scan

    stem = stem_of(image)
    bval, bvec = bval or image.with_name(f"{stem}.bval"), bvec or image.with_name(f"{stem}.bvec")
    if mask is None:
        beside = [image.with_name(f"{stem.removesuffix('_dwi')}{end}.nii.gz") for end in MASKS]
        mask = next((path for path in beside if path.is_file()), None)
    scan, _ = read_scan(image, bval, bvec, mask, b0_threshold)
    # A voxel that is 0 in some volume would be an outlier of the tensor fit.
    return scan if mask is not None else replace(scan, mask=brain_of(scan) & (scan.data > 0).all(axis=3))


def coarser(name: str, scan: Scan, edge: int) -> Dense:
    """Return a dense scan of which arms see blocks of edge x edge x edge voxels; see `dwi.blocks.whole_blocks`."""
    if edge == 1:
        return Dense(name, scan)
    whole = whole_blocks(scan, edge)
    return Dense(name, whole, given=in_blocks(whole, edge))


def simulated(atlas_source: str, count: int, aligned: bool = False, edge: int = 1) -> Iterator[Dense]:
    """Yield scans of simulated subjects that nothing is trained on.

    Parameters
    ----------
    atlas_source
        Atlas of the subjects, see `cli.atlases`.
    count
        Number of subjects.
    aligned
        Whether they lie as if registered to the template.
    edge
        The scan has voxels this many times finer than what arms see, which is acquired by itself.
    """
    from ..simulate.anatomy import deform
    from ..simulate.examples import HELD_OUT
    from ..simulate.individual import ALIGNED
    from ..simulate.scanner import acquire, protocol, scan_grid
    from .atlases import load_atlas

    atlas = load_atlas(atlas_source)
    for k in range(count):
        subject = deform(atlas, HELD_OUT + FIRST_SEED + k, ALIGNED if aligned else None)
        affine = scan_grid(subject, SIMULATED["voxel_mm"], SIMULATED["shape"])
        table = protocol(affine, SIMULATED["directions"], SIMULATED["b0s"], SIMULATED["bval"])
        name, shape, snr = f"simulated {k + 1}", SIMULATED["shape"], SIMULATED["snr"]
        if edge == 1:
            made = acquire(subject, table, affine, shape, snr, seed=k)
            yield Dense(name, made.scan, made.clean)
            continue
        # The same points of the anatomy, and no coil bias: its random field is another one on another grid.
        seen = acquire(subject, table, affine, shape, snr, seed=k, bias=0, supersample=2 * edge).scan
        fine = acquire(subject, table, finer_affine(affine, edge), [n * edge for n in shape], snr, seed=k, bias=0)
        yield Dense(name, fine.scan, fine.clean, seen)


class InTemplate:
    """Arms that work in the template's space, on one scan, which is registered once.

    Parameters
    ----------
    dense
        The scan; those of simulated subjects are `simulated(..., aligned=True)`, and lie there already.
    folder
        Where transforms are kept.
    fibres
        Fibre atlas of the arm `atlas`, a folder; None for analytic bundles.

    The registration sees the b0 alone: the volumes that an arm has to make are not to be matched beforehand.
    """

    def __init__(self, dense: Dense, folder: Path, fibres: Path | None = None):
        self.dense, self.folder, self.fibres = dense, folder, fibres
        self._found: TemplateFiles | None = None

    def files(self) -> TemplateFiles:
        """Return the template's files and the transforms.

        Raises
        ------
        ScanError
            Where the scan has too few slices to be registered.
        """
        if self._found is None:
            self._found = self._registered()
        return self._found

    def arm(self, method: Method, request: Request) -> Callable[[Scan, GradientTable], Generated]:
        """Return an arm of `qc.evaluation` that makes the left-out volumes from the b0s."""
        return lambda kept, wanted: self._made(method, request, kept, wanted)

    def tracts(self, xtract: Path) -> dict[str, np.ndarray]:
        """Return tract -> (X, Y, Z) bool on the scan's grid: where at least `IN_TRACT` of the subjects have it.

        Raises
        ------
        ScanError
            Where the scan has too few slices to be registered.
        """
        from ..spatial.ants_tools import to_ants, warp
        from ..spatial.population import read_xtract

        shares, labels, affine = read_xtract(xtract)
        files, scan = self.files(), self.dense.scan
        grid = to_ants(scan.mask.astype(np.float32), scan.affine)
        found = {}
        for k, label in enumerate(labels):
            on_scan = warp(to_ants(shares[..., k], affine), grid, [files.from_template], "linear").numpy()
            found[label] = on_scan >= IN_TRACT
        return found

    def _made(self, method: Method, request: Request, kept: Scan, wanted: GradientTable) -> Generated:
        from ..methods.synthesis.task import BVALUES, DIRECTIONS
        from ..spatial.in_template import generate_in_template

        b0s = np.flatnonzero(kept.gradients.is_b0)
        order = np.r_[kept.gradients.bvals[b0s], wanted.bvals]
        table = GradientTable(order, np.concatenate([kept.gradients.bvecs[b0s], wanted.bvecs]), wanted.b0_threshold)
        # Volumes that the arm is asked for are empty: it does not look at them.
        empty = np.zeros((*kept.mask.shape, len(wanted)), np.float32)
        scan = Scan(np.concatenate([kept.data[..., b0s], empty], axis=3), kept.affine, table, kept.mask)
        options = {BVALUES.key: [float(wanted.bvals[0])], DIRECTIONS.key: 1}
        made = generate_in_template(method, scan, replace(request, left_out=len(wanted), options=options), self.files())
        assert made.left_out is not None  # `left_out` of the request
        places, is_b0 = made.left_out.volumes, np.arange(len(table)) < len(b0s)
        used = np.r_[np.flatnonzero(is_b0), places]
        mean = np.concatenate([scan.data[..., is_b0], made.left_out.mean], axis=3)
        return replace(made, mean=mean, samples=None, gradients=table[used], acquired=is_b0[used], left_out=None)

    def _registered(self) -> TemplateFiles:
        import nibabel as nib

        from ..spatial.ants_tools import write_matrix
        from ..spatial.in_template import TemplateFiles
        from ..spatial.normalize import load_template, register_to_template

        scan, template = self.dense.scan, load_template()
        self.folder.mkdir(parents=True, exist_ok=True)
        brain = self.folder / "brain.nii"
        nib.save(nib.Nifti1Image(template.mask.astype(np.uint8), template.affine), brain)
        if self.dense.truth is not None:
            there = write_matrix(self.folder / "same.mat", np.eye(4))
            return TemplateFiles(brain, there, there, fibres=self.fibres)
        if scan.mask.shape[2] < LEAST_SLICES:
            raise ScanError(TOO_THIN.format(least=LEAST_SLICES, found=scan.mask.shape[2]))
        to, back = self.folder / "template-InverseComposite.h5", self.folder / "template-Composite.h5"
        if not (to.exists() and back.exists()):
            register_to_template({"b0": scan.mean_b0()}, scan.affine, scan.mask, template, self.folder)
        return TemplateFiles(brain, to, back, fibres=self.fibres)
