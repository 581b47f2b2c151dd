"""Anatomies of real scans: tensors fitted to all directions, denoised, which examples then measure anew.

Simulated anatomies are smoother than real ones, and their grey matter has less anisotropy. These have the texture of
real heads. What was noise in the scan counts as anatomy; it is little, because all directions were used.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..diffusion.arrays import held_out_of
from ..diffusion.storage import write_tensors
from .examples import LESIONED, SimulatedSubject, SimulatedSubjects
from .medium import TENSORS

FORMAT = "bids_dmrigen anatomies 1"
KURTOSIS, N_KURTOSES = (0.3, 1.0), 512  # of tissue; examples choose from so many values
NOT_ANATOMIES = "{path}: not a file of anatomies ({reason}); make one with `dmrigen prepare --anatomies`"
EMPTY = "{path}: no scan to make an anatomy of"


def write_anatomies(path: Path, anatomies: Iterable[tuple[str, str, Tensor, Tensor, Tensor, Tensor]]) -> int:
    """Write anatomies as one array file; return how many.

    Parameters
    ----------
    path
        File to write; .safetensors.
    anatomies
        (name, subject, brain (X, Y, Z) bool, affine (4, 4), b0 (V,), tensors (V, 6)) each, for the V voxels of the
        brain. The b0 is in units of its median; tensors are Dxx, Dyy, Dzz, √2 Dxy, √2 Dxz, √2 Dyz in world axes,
        1e-3 mm²/s.

    Raises
    ------
    ValueError
        Where there is no anatomy.
    """
    tensors: dict[str, Tensor] = {}
    about = []
    for k, (name, subject, brain, affine, b0, tensor) in enumerate(anatomies):
        about.append({"name": name, "subject": subject})
        tensors |= {f"{k}.brain": brain, f"{k}.affine": affine, f"{k}.b0": b0.half(), f"{k}.tensor": tensor.half()}
    if not about:
        raise ValueError(EMPTY.format(path=path))
    write_tensors(path, tensors, {"format": FORMAT, "anatomies": json.dumps(about)})
    return len(about)


class MeasuredAnatomies(SimulatedSubjects):
    """The anatomies in a file that `write_anatomies` made, as subjects to simulate scans of, some with lesions.

    Parameters
    ----------
    path
        The file.
    part
        "all", or for training "train" or "held out", see `diffusion.arrays.held_out_of`.
    device
        Device of data and computations.
    held_out
        Subjects that are held out; None for every tenth.

    Raises
    ------
    ValueError
        Where the file does not hold anatomies, or none is left to train on.
    """

    medium = TENSORS

    def __init__(
        self,
        path: str | Path,
        part: str = "all",
        device: torch.device | str = "cpu",
        held_out: Collection[str] | None = None,
    ):
        try:
            self._file = safe_open(str(path), "pt")
            record = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(NOT_ANATOMIES.format(path=path, reason=error)) from None
        if record.get("format") != FORMAT:
            raise ValueError(NOT_ANATOMIES.format(path=path, reason=f"its format is {record.get('format')}"))
        about = json.loads(record["anatomies"])
        kept = set() if part == "all" else held_out_of({a["subject"] for a in about}, held_out, Path(path))
        wanted = {"all": (True, False), "train": (False,), "held out": (True,)}[part]
        self.numbers = [k for k, a in enumerate(about) if (a["subject"] in kept) in wanted]
        self.names = [about[k]["name"] for k in self.numbers]
        self.device = torch.device(device)
        self.lesioned = LESIONED
        low, high = KURTOSIS
        self.tissues = torch.linspace(low, high, N_KURTOSES, device=self.device)[:, None]
        self._taken = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def subject(self, number: int) -> SimulatedSubject:
        """Return one of the anatomies."""
        if number not in self._taken:
            k = self.numbers[number]
            brain, affine, b0, tensor = (
                self._file.get_tensor(f"{k}.{part}").to(self.device) for part in ("brain", "affine", "b0", "tensor")
            )
            zeros = torch.zeros_like(b0)
            maps = torch.cat([torch.stack([zeros + 1, zeros, zeros, b0]), tensor.T]).float()
            self._taken[number] = SimulatedSubject.of(maps, brain, affine.float())
        return self._taken[number]

    def least_mm(self, subject: Tensor) -> Tensor:
        """Return the scans' own edges (B, 3), the smallest two first."""
        edges = torch.stack([self.subject(number).affine[:3, :3].norm(dim=0) for number in subject.tolist()])
        return edges.sort(dim=1).values[:, [1, 1, 2]]
