"""Write the results of a method: a series or maps, their uncertainty, and a series in the template's space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from ..bids.tables import write_gradients
from ..methods.base import Generated, InTemplate
from ..methods.spec import MethodSpec
from .io import image_in_template, image_on_grid, open_image, write_image
from .standard_grid import placed, standard_grid


def write_maps(generated: Generated, image: nib.Nifti1Image, folder: Path) -> dict[str, str]:
    """Write a method's maps on the grid of `image`; return output -> path."""
    named = generated.named_maps()
    return {f"out_{name}": str(write_image(folder / f"{name}.nii", volume, image)) for name, volume in named.items()}


def write_errors(errors: Mapping[str, np.ndarray], image: nib.Nifti1Image, folder: Path) -> dict[str, str]:
    """Write the standard error of each map, by name, on the grid of `image`; return output -> path."""
    return {
        f"out_{name}_std": str(write_image(folder / f"{name}_std.nii", values, image))
        for name, values in errors.items()
    }


def sample_writer(generated: Generated, image: nib.Nifti1Image, folder: Path) -> Callable[[int, np.ndarray], None]:
    """Return a function of the number of a sample and the sample that writes it, as `sample_path`.

    A sample of maps is that of the tensor, from which the others follow; without a tensor it is all maps.
    """

    def write(number: int, values: np.ndarray) -> None:
        if generated.maps:
            named = generated.named_maps(values)
            values = named.get("tensor", values)
        write_image(sample_path(folder, number), values, image)

    return write


def sample_path(folder: Path, number: int) -> Path:
    """Return the path of a sample in a folder."""
    return folder / f"sample{number + 1}.nii"


def write_in_template(series: InTemplate, template_brain: str, folder: Path) -> dict[str, str]:
    """Write a series in the space of a template, on its standard grid; return output -> path."""
    template = open_image(template_brain)
    shape, affine = standard_grid(template.shape, template.affine)
    data = placed(series.mean, series.affine, shape, affine)
    paths = [folder / f"template.{end}" for end in ("nii", "bval", "bvec")]
    write_image(paths[0], data, image_in_template(data.shape, affine))
    write_gradients(series.gradients, *paths[1:])
    return {f"out_template_{name}": str(path) for name, path in zip(("file", "bval", "bvec"), paths, strict=True)}


def write_series(generated: Generated, image: nib.Nifti1Image, folder: Path) -> dict[str, str]:
    """Write a method's series and the predictions of left-out volumes; return output -> path.

    The series is on the grid of `image`, or on `generated.grid` in the same world.
    """
    if generated.grid is not None:
        image = image_on_grid(generated.grid.mask.shape, generated.grid.affine, image)
    left, none = generated.left_out, np.zeros((*generated.mean.shape[:3], 0), np.float32)
    np.savez(
        folder / "left_out.npz",
        volumes=np.zeros(0, int) if left is None else left.volumes,
        mean=none if left is None else left.mean,
    )
    assert generated.gradients is not None  # every series has gradients
    write_gradients(generated.gradients, folder / "generated.bval", folder / "generated.bvec")
    return {
        "out_file": str(write_image(folder / "generated.nii", generated.mean, image)),
        "out_bval": str(folder / "generated.bval"),
        "out_bvec": str(folder / "generated.bvec"),
        "out_left_out": str(folder / "left_out.npz"),
    }


def write_extra(generated: Generated, spec: MethodSpec, image: nib.Nifti1Image, folder: Path) -> list[str]:
    """Write the extra maps in a method's specification, on the grid of `image`; return their paths in that order."""
    paths = ((folder / f"extra_{extra.param}.nii", generated.extra[extra.param]) for extra in spec.extra_maps)
    return [str(write_image(path, values, image)) for path, values in paths]
