"""Run methods that work in the template's space: the b0 is resampled to the template, the result back to the scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..dwi.gradients import GradientTable, even_subset
from ..dwi.series import Scan
from ..methods.base import Generated, InTemplate, LeftOut, Method, Population, Request, Samples
from ..methods.synthesis.task import BVALUES, DIRECTIONS, wanted_table
from .template_space import TemplateSpace

DEFAULTS = {"adc": "packaged ADC atlas", "tracts": "none", "fibres": "embedded analytic bundles"}
OTHER_SPACE = (
    "the ADC atlas ({atlas}) is in {space}, the template is {template}: the two spaces differ by some millimetres; "
    "make an atlas in {template} with `dmrigen prepare --adc-atlas`"
)
OTHER_PLACES = (
    "the template is {template}: weights and atlases are in MNI152 space, which is a different one; "
    "use a template in MNI152 space"
)


@dataclass(frozen=True)
class TemplateFiles:
    """Files of the template, transforms between it and the scan, and atlases in its space.

    Parameters
    ----------
    brain
        The template's brain mask, on any grid.
    to_template, from_template
        Transforms as `Normalize` writes them.
    adc
        The ADC atlas; None for the packaged one.
    xtract
        FSL's folder of XTRACT or a 4-D file; None for no tracts.
    fibres
        Folder of an atlas with fibre directions; None for the embedded one.
    template
        TemplateFlow name of the template; None: no warning about atlases in other spaces.
    """

    brain: Path
    to_template: Path
    from_template: Path
    adc: Path | None = None
    xtract: Path | None = None
    fibres: Path | None = None
    template: str | None = None

    @property
    def adc_atlas(self) -> Path:
        """The ADC atlas that is used."""
        from .population import PACKAGED_ADC_ATLAS

        return self.adc or PACKAGED_ADC_ATLAS

    def called(self, kind: str) -> str:
        """Return the name of the adc, tracts or fibres in use, without folders: they may identify the subject."""
        path = {"adc": self.adc, "tracts": self.xtract, "fibres": self.fibres}[kind]
        return DEFAULTS[kind] if path is None else path.name

    def record(self, kind: str) -> dict[str, str]:
        """Return the name of the adc, tracts or fibres in use and, where they are read from files, the digest."""
        from .population import digest

        path = {"adc": self.adc_atlas, "tracts": self.xtract, "fibres": self.fibres}[kind]
        record = {"Name": self.called(kind)}
        return record if path is None else record | {"SHA256": digest(kind, path)}

    def warnings(self, kinds: Sequence[str]) -> tuple[str, ...]:
        """Return warnings where the template is not in MNI152 space, or not in that of the ADC atlas in use."""
        from .population import ANY_MNI, other_space

        if self.template is None:
            return ()
        messages = [] if self.template.startswith(ANY_MNI) else [OTHER_PLACES.format(template=self.template)]
        space = other_space(self.adc_atlas, self.template) if "adc" in kinds else None
        if space is not None:
            messages.append(OTHER_SPACE.format(atlas=self.called("adc"), space=space, template=self.template))
        return tuple(messages)


def generate_in_template(
    method: Method,
    scan: Scan,
    request: Request,
    files: TemplateFiles,
    tensor_volumes: Sequence[int] | None = None,
    every_volume: bool = True,
) -> Generated:
    """Run a method on a scan's b0 in the template's space; return acquired and generated volumes on the scan's grid.

    The method does not see acquired diffusion-weighted volumes. It also generates some of them, as a check.

    Parameters
    ----------
    method
        A method whose `spec.in_template` is true.
    scan
        The preprocessed series.
    request
        Options: bvalues, directions (see `wanted_table`). `left_out` acquired volumes per shell are generated too.
    files
        Files of the template.
    tensor_volumes
        Volumes of the result that a tensor may be fitted to, for the record; None for all.
    every_volume
        Whether samples are drawn of all volumes, and not only of those that a tensor is fitted to. Others are the same
        in all samples.
    """
    space = _space_of(scan, files, method.spec.grid_mm)
    scan_in_template = _b0_in_template(scan, space)
    options = request.options
    wanted = wanted_table(
        scan, options.get(BVALUES.key, BVALUES.default), options.get(DIRECTIONS.key, DIRECTIONS.default)
    )
    hidden = _checked(scan.gradients, request.left_out)
    kinds = method.spec.population
    maps = _population(kinds, files, space)

    def made(table: GradientTable, samples: int = request.n_samples) -> Generated:
        asked = {**options, "table": space.table_on_template(table)}
        settings = replace(request, population=maps, options=asked, n_samples=samples)
        return method.generate(None, scan_in_template, settings)

    drawn = np.arange(len(wanted))
    if tensor_volumes is not None and not every_volume:
        drawn = drawn[np.isin(len(scan.gradients) + drawn, tensor_volumes)]
    apart = request.n_samples > 1 and len(drawn) < len(wanted)
    generated = made(wanted, 1 if apart else request.n_samples)
    sampled = made(wanted[drawn]) if apart else generated
    fitted = {"TensorVolumes": list(tensor_volumes)} if tensor_volumes else {}
    sampling = {key: sampled.record[key] for key in ("Samples", "SampledBy") if key in sampled.record}
    record = generated.record | sampling | fitted | {"Population": {kind: files.record(kind) for kind in kinds}}
    in_template = InTemplate(
        np.concatenate([scan_in_template.data, generated.mean], axis=3),
        _joined(scan_in_template.gradients, space.table_on_template(wanted)),
        space.affine,
    )
    return replace(
        _onto_scan(generated, space, scan, wanted, sampled.samples, drawn),
        left_out=_left_out(made(scan.gradients[hidden]), space, scan, hidden) if len(hidden) else None,
        record=record,
        warnings=(*generated.warnings, *files.warnings(kinds)),
        in_template=in_template,
    )


def _space_of(scan: Scan, files: TemplateFiles, grid_mm: float) -> TemplateSpace:
    """Return the space of the template for a scan, on a grid of these voxels."""
    from .io import read_image

    brain, image = read_image(files.brain)
    places = [files.to_template], [files.from_template]
    return TemplateSpace.of(scan.mask, scan.affine, brain > 0.5, image.affine, *places, grid_mm)


def _population(kinds: Sequence[str], files: TemplateFiles, space: TemplateSpace) -> Population:
    """Return the population maps that a method asks for, on the template grid."""
    from .population import population_on
    from .templates import read_anatomy

    maps = Population()
    if "adc" in kinds:
        maps = population_on(space.shape, space.affine, files.adc_atlas, files.xtract if "tracts" in kinds else None)
    return replace(maps, anatomy=read_anatomy(files.fibres)) if "fibres" in kinds else maps


def _onto_scan(
    generated: Generated,
    space: TemplateSpace,
    scan: Scan,
    wanted: GradientTable,
    samples: Samples | None,
    drawn: np.ndarray,
) -> Generated:
    """Return acquired volumes, then the wanted ones, on the scan's grid; samples are of those in `drawn`."""
    images = _on_scan(generated.mean, space, scan)
    mean = np.concatenate([np.asarray(scan.data, np.float32), images], axis=3)

    def with_drawn(sample: np.ndarray) -> np.ndarray:
        series = mean.copy()
        series[..., len(scan.gradients) + drawn] = _on_scan(sample, space, scan)
        return series

    return replace(
        generated,
        mean=mean,
        samples=None if samples is None else samples.after(with_drawn),
        gradients=_joined(scan.gradients, wanted),
        acquired=np.arange(len(scan.gradients) + len(wanted)) < len(scan.gradients),
    )


def _left_out(generated: Generated, space: TemplateSpace, scan: Scan, hidden: np.ndarray) -> LeftOut:
    """Return what was made of acquired volumes, on the scan's grid."""
    std = None
    if generated.samples is not None:
        std = generated.samples.after(lambda drawn: _on_scan(drawn, space, scan)).std()
    return LeftOut(hidden, _on_scan(generated.mean, space, scan), std)


def _on_scan(images: np.ndarray, space: TemplateSpace, scan: Scan) -> np.ndarray:
    return space.onto_scan(images).clip(0) * scan.mask[..., None]


def _b0_in_template(scan: Scan, space: TemplateSpace) -> Scan:
    b0 = GradientTable(np.zeros(1), np.zeros((1, 3)), scan.gradients.b0_threshold)
    image = space.onto_template(scan.mean_b0())[..., None].clip(0)
    return Scan(image, space.affine, b0, space.onto_template(scan.mask, order=1) > 0.5)


def _checked(gradients: GradientTable, n: int) -> np.ndarray:
    """Return up to n volumes of each shell, with directions spread as evenly as possible."""
    shells = [members for _, members in gradients.shells()] if n else []
    chosen = [members[even_subset(gradients.bvecs[members], min(n, len(members)))] for members in shells]
    return np.sort(np.concatenate([*chosen, np.zeros(0, int)])).astype(int)


def _joined(first: GradientTable, second: GradientTable) -> GradientTable:
    """Return two tables in the same axes as one."""
    return GradientTable(
        np.concatenate([first.bvals, second.bvals]), np.concatenate([first.bvecs, second.bvecs]), first.b0_threshold
    )
