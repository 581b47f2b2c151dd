"""Measured scans as training data: one array file, read slice by slice as it is needed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..dwi.gradients import GradientTable
from ..dwi.series import Scan
from .storage import write_tensors

FORMAT = "bids_dmrigen prepared scans 1"
MARGIN = 2  # voxels kept around the mask
HELD_OUT = 10  # one subject in ten is held out

NOT_PREPARED = "{path}: not a file of prepared scans ({reason}); make one with `dmrigen prepare`"
NO_SHELL = "{path}: no shell has the {needed} directions between b = {low:.0f} and {high:.0f} s/mm² that training needs"
NO_SUCH_PARTS = (
    "{path}: its subjects are {found}, and {named} cannot be held out; name some of them, and leave others to train on"
)
EMPTY = "{path}: no scan to prepare"
DARK = "the median b0 signal in the mask is {scale:g}; expected a positive one: check mask and b0s"


@dataclass(frozen=True, eq=False)
class MeasuredSlices:
    """Random views of one measured scan.

    Parameters
    ----------
    signal
        (B, N, H, W[, D]) in units of the scan's median b0 in the brain; 0 outside the mask.
    mask
        (B, H, W[, D]) bool.
    bvals, directions
        (N,) s/mm² and (N, 3) unit vectors in world RAS+, zero for b0s.
    sigma
        Noise level in the signal's units.
    axes
        (3, 3) columns are the world directions of the axes H, W, D.
    scan
        Number of the scan in the file.
    affine
        (B, 4, 4) indices H, W, D of each view to world RAS+, mm.
    """

    signal: Tensor
    mask: Tensor
    bvals: Tensor
    directions: Tensor
    sigma: float
    axes: Tensor
    scan: int
    affine: Tensor


def write_prepared(path: Path, scans: Iterable[tuple[str, str, Scan, float]], template: str | None = None) -> int:
    """Write scans, cropped to their masks, as one array file; return how many.

    Signals are stored as float16 in units of the scan's median b0 in the mask (relative error at most 2^-11), slice
    by slice, so that one slice of all volumes is contiguous in the file. All scans are held in memory until they are
    written.

    Parameters
    ----------
    path
        File to write; .safetensors.
    scans
        (name, subject, scan, noise level in scanner units) each; nothing of a scan outside its mask is kept.
    template
        Name of the template whose grid the scans are on; None where each is on its own.

    Raises
    ------
    ValueError
        Where there is no scan, or one has no signal.
    """
    tensors: dict[str, Tensor] = {}
    about = []
    for k, (name, subject, scan, sigma) in enumerate(scans):
        scale = float(np.median(scan.mean_b0()[scan.mask])) if scan.mask.any() else 0.0
        if not scale > 0:
            raise ValueError(f"{name}: {DARK.format(scale=scale)}")
        box = _box(scan.mask)
        mask = scan.mask[box]
        signal = np.nan_to_num(np.asarray(scan.data[box], np.float32)) * mask[..., None] / scale
        affine = np.array(scan.affine, dtype=np.float64)
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        tensors |= {
            f"{k}.signal": torch.from_numpy(signal.transpose(2, 3, 0, 1).astype(np.float16)),
            f"{k}.mask": torch.from_numpy(mask.transpose(2, 0, 1).copy()),
            f"{k}.bvals": torch.from_numpy(scan.gradients.bvals.astype(np.float32)),
            f"{k}.directions": torch.from_numpy(scan.gradients.world_directions(scan.affine).astype(np.float32)),
            f"{k}.affine": torch.from_numpy(affine),
        }
        shells = [[round(b, 1), len(volumes)] for b, volumes in scan.gradients.shells()]
        about.append({
            "name": name, "subject": subject, "scale": scale, "sigma": float(sigma) / scale, "shells": shells,
            "b0_threshold": scan.gradients.b0_threshold,
        })  # fmt: skip
    if not about:
        raise ValueError(EMPTY.format(path=path))
    placed = {} if template is None else {"template": template}
    write_tensors(path, tensors, {"format": FORMAT, "scans": json.dumps(about), **placed})
    return len(about)


class Prepared:
    """The scans in a file that `write_prepared` made; the file is mapped into memory, not read.

    Parameters
    ----------
    path
        The file.
    device
        Device of the slices that are returned.
    part
        "all", or for training "train" or "held out", see `held_out_of`. Where there is only one subject, the middle
        tenth of its slices, at least one, is held out instead: a weaker test.
    subjects
        Subjects whose scans are used; None for all.
    held_out
        Subjects that are held out; None for every tenth.

    Raises
    ------
    ValueError
        Where the file does not hold prepared scans, or not those that are to be held out.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        part: str = "all",
        subjects: Collection[str] | None = None,
        held_out: Collection[str] | None = None,
    ):
        self.path, self.device, self.part = Path(path), torch.device(device), part
        try:
            self._file = safe_open(str(path), "pt")
            record = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(NOT_PREPARED.format(path=path, reason=error)) from None
        if record.get("format") != FORMAT:
            raise ValueError(NOT_PREPARED.format(path=path, reason=f"its format is {record.get('format')}"))
        self.about = json.loads(record["scans"])
        self.template = record.get("template")  # on whose grid the scans are; None where each is on its own
        # Brain voxels per slice: the chance of a slice to be drawn is its share of the brain.
        counts = [self._file.get_tensor(f"{k}.mask").flatten(1).sum(dim=1) for k in range(len(self.about))]
        kept = self._parts(counts, subjects, held_out)
        self.counts = [count * keep for count, keep in zip(counts, kept, strict=True)]

    def __len__(self) -> int:
        """Return the number of scans in the file."""
        return len(self.about)

    def scan(self, index: int) -> Scan:
        """Return a whole scan, cropped to its mask, in scanner units."""
        about, (mask, affine) = self.about[index], self.place(index)
        data = self._get(index, "signal").permute(2, 3, 0, 1).float().mul_(about["scale"]).numpy()
        bvals, directions = (self._get(index, name).numpy() for name in ("bvals", "directions"))
        table = GradientTable.from_world(bvals, directions, affine, about["b0_threshold"])
        return Scan(data, affine, table, mask)

    def place(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a scan's mask (X, Y, Z) and affine (4, 4), without reading its signals."""
        return self._get(index, "mask").permute(1, 2, 0).numpy(), self._get(index, "affine").numpy()

    def slices(
        self,
        generator: torch.Generator,
        batch: int,
        size: tuple[int, ...] = (96, 96),
        among: Sequence[int] | None = None,
    ) -> MeasuredSlices:
        """Return random windows of random slices of one random scan, each around a voxel of its brain.

        Parameters
        ----------
        generator
            See `simulate.examples.numbers_of_step`; one on a GPU only seeds what is drawn on the CPU.
        batch
            Number of windows.
        size
            (H, W), or (H, W, D) for blocks of D slices; voxels outside the scan are 0.
        among
            Numbers of the scans to draw from; None for all. The chance of a scan is its share of brain voxels.
        """
        if generator.device.type != "cpu":
            seed = torch.randint(2**62, (), generator=generator, device=generator.device)
            generator = torch.Generator().manual_seed(int(seed))
        height, width, depth = (*size, 1)[:3]
        chances = torch.tensor([
            float(count.sum()) * (among is None or k in among) for k, count in enumerate(self.counts)
        ])  # fmt: skip
        index = int(torch.multinomial(chances, 1, generator=generator))
        levels = torch.multinomial(self.counts[index].float(), batch, replacement=True, generator=generator)
        signals, masks = (self._file.get_slice(f"{index}.{name}") for name in ("signal", "mask"))
        n_slices, n, *plane = signals.get_shape()
        signal = torch.zeros((batch, n, height, width, depth))
        mask = torch.zeros((batch, height, width, depth), dtype=torch.bool)
        affine = self._get(index, "affine").float().repeat(batch, 1, 1)
        for k, z in enumerate(levels.tolist()):
            inside = masks[z : z + 1][0].nonzero()
            centre = inside[int(torch.randint(len(inside), (), generator=generator))].tolist()
            low = z - (depth - 1) // 2
            first, last = max(low, 0), min(low + depth, n_slices)
            rows, columns = (_window(c, m, w) for c, m, w in zip(centre, plane, (height, width), strict=True))
            to = (slice(first - low, last - low), rows[1], columns[1])
            block = signals[first:last][:, :, rows[0], columns[0]].float()  # (D, N, H, W)
            signal[k].permute(3, 0, 1, 2)[to[0], :, to[1], to[2]] = block
            mask[k].permute(2, 0, 1)[to] = masks[first:last][:, rows[0], columns[0]]
            corner = torch.tensor([float(part.start - inside.start) for part, inside in (rows, columns)] + [float(low)])
            affine[k, :3, 3] += affine[k, :3, :3] @ corner
        linear = affine[0, :3, :3]
        if len(size) == 2:
            signal, mask = signal[..., 0], mask[..., 0]
        return MeasuredSlices(
            signal.to(self.device), mask.to(self.device), self._get(index, "bvals").to(self.device),
            self._get(index, "directions").to(self.device), self.about[index]["sigma"],
            (linear / linear.norm(dim=0)).to(self.device), index, affine.to(self.device),
        )  # fmt: skip

    def shell_slices(
        self,
        generator: torch.Generator,
        batch: int,
        size: tuple[int, ...],
        needed: int,
        bvals: tuple[float, float],
        among: Sequence[int] | None = None,
    ) -> tuple[MeasuredSlices, Tensor, Tensor]:
        """Return random windows of a scan, its b0s, and the volumes of one of its shells, in random order.

        Parameters
        ----------
        generator, batch, size
            As `slices`.
        needed
            Smallest number of directions of the shell.
        bvals
            Lowest and highest b-value of the shell, s/mm².
        among
            As `slices`.

        Raises
        ------
        ValueError
            Where no scan has such a shell.
        """

        fitting = {
            index: [members for b, members in shells if len(members) >= needed and bvals[0] <= b <= bvals[1]]
            for index, shells in enumerate(self.shells) if self.counts[index].any()
        }  # fmt: skip
        fitting = {k: shells for k, shells in fitting.items() if shells and (among is None or k in among)}
        if not fitting:
            raise ValueError(NO_SHELL.format(path=self.path, needed=needed, low=bvals[0], high=bvals[1]))
        views = self.slices(generator, batch, size, list(fitting))
        shells = fitting[views.scan]
        which = int(torch.randint(len(shells), (), generator=generator, device=generator.device))
        volumes = torch.as_tensor(shells[which], device=self.device)
        order = torch.randperm(len(volumes), generator=generator, device=generator.device).to(self.device)
        b0s = (views.bvals <= self.about[views.scan]["b0_threshold"]).nonzero()[:, 0]
        return views, b0s, volumes[order]

    @cached_property
    def shells(self) -> list[list[tuple[float, np.ndarray]]]:
        """Return the shells of every scan: b-value and volumes."""
        tables = (
            GradientTable(self._get(k, "bvals").numpy(), self._get(k, "directions").numpy(), about["b0_threshold"])
            for k, about in enumerate(self.about)
        )
        return [table.shells() for table in tables]

    def _get(self, index: int, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(f"{index}.{name}")
        return tensor

    def _parts(
        self, counts: list[Tensor], subjects: Collection[str] | None, named: Collection[str] | None
    ) -> list[Tensor]:
        """Return for every scan which of its slices (Z,) belong to this part."""
        wanted = {a["subject"] for a in self.about if subjects is None or a["subject"] in subjects}
        if len(wanted) > 1:
            held_out = held_out_of(wanted, named, self.path)
            kept = [torch.full(c.shape, a["subject"] in held_out) for a, c in zip(self.about, counts, strict=True)]
        else:
            kept = []
            for count in counts:
                number, span = torch.arange(len(count)), max(len(count) // HELD_OUT, 1)
                start = (len(count) - span) // 2
                kept.append((number >= start) & (number < start + span))
        part = {"all": [torch.ones_like(k) for k in kept], "train": [~k for k in kept], "held out": kept}[self.part]
        return [slices_of_scan & (a["subject"] in wanted) for slices_of_scan, a in zip(part, self.about, strict=True)]


def held_out_of(subjects: Collection[str], named: Collection[str] | None, path: Path) -> set[str]:
    """Return which of the subjects in a file are held out: those that are named, or every tenth, at least one.

    Raises
    ------
    ValueError
        Where a subject that is named is not there, or none is left to train on.
    """
    held_out = set(sorted(subjects)[::HELD_OUT]) if named is None else set(named)
    if not held_out <= set(subjects) or held_out == set(subjects):
        raise ValueError(NO_SUCH_PARTS.format(path=path, named=sorted(held_out), found=sorted(subjects)))
    return held_out


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the mask's bounding box with a margin."""
    inside = np.argwhere(mask)
    low, high = np.maximum(inside.min(axis=0) - MARGIN, 0), inside.max(axis=0) + 1 + MARGIN
    x, y, z = (slice(int(a), int(min(b, n))) for a, b, n in zip(low, high, mask.shape, strict=True))
    return x, y, z


def _window(centre: int, extent: int, size: int) -> tuple[slice, slice]:
    """Return which voxels of an axis a window around a voxel covers, and where in the window they are."""
    low = centre - size // 2
    if extent >= size:  # no air where there is image
        low = min(max(low, 0), extent - size)
    first, last = max(low, 0), min(low + size, extent)
    return slice(first, last), slice(first - low, last - low)
