"""Do the tests notice mistakes? Each mistake is put into a copy of the repository, and tests that should fail are run.

Usage: python benchmarks/mutations.py [--list] [--only WORD ...]

A mistake that no test notices has survived. It is a gap in the tests, or the line that it changes is not needed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LONGEST_S = 300  # longest time of the tests of one mutation; longer counts as failed, so that a hang is noticed
KILLED, SURVIVED = "killed", "SURVIVED"
TESTS_FAILED, ALL_PASSED, BROKEN_IMPORT = 1, 0, 2  # pytest's exit statuses


class Mutation(NamedTuple):
    """A mistake in one place."""

    what: str
    file: str  # in bids_dmrigen/
    before: str  # found exactly once
    after: str
    tests: tuple[str, ...]  # files in tests/, some with the name of one test behind ::


def mutation(what: str, file: str, before: str, after: str, *tests: str) -> Mutation:
    """Return a `Mutation` of these tests."""
    return Mutation(what, file, before, after, tests)


FRAMES = "methods/test_frames.py::test_"
COMPARED = "methods/test_compared.py::test_"
HIDDEN = "methods/maps/test_diffdti.py::test_what_is_hidden_from_the_network_is_what_the_tensors_of_its_input_predict"
MUTATIONS = [
    # -- frames of reference, and other properties on which the results depend
    mutation("Diff-DTI gets directions in voxel axes", "methods/maps/slices.py",
             "torch.as_tensor(scan.gradients.world_directions(scan.affine)[self.volumes]",
             "torch.as_tensor(scan.gradients.bvecs[self.volumes]",
             FRAMES + "diffdti_gets_world_directions"),
    mutation("QID2's wanted direction is in another frame than the acquired ones", "methods/directions/qid2_model.py",
             "torch.as_tensor(shell.wanted, dtype=torch.float32, device=device)[None] @ self.axes.to(device)",
             "torch.as_tensor(shell.wanted, dtype=torch.float32, device=device)[None]",
             FRAMES + "qid2_gets_acquired_and_wanted_directions_in_the_voxel_axes"),
    mutation("Phy-Diff's positions lack the translation", "methods/synthesis/phydiff_model.py",
             "(places + self.scan.affine[:3, 3, None, None])", "places",
             FRAMES + "phydiff_generates_the_same_at_a_position_on_every_grid_of_the_template"),
    mutation("Phy-Diff's directions are in voxel axes", "methods/synthesis/phydiff_model.py",
             "torch.as_tensor(table.world_directions(scan.affine), dtype=torch.float32)",
             "torch.as_tensor(table.bvecs.copy(), dtype=torch.float32)",
             FRAMES + "phydiff_generates_the_same_at_a_position_on_every_grid_of_the_template"),
    mutation("Di-Fusion noises the noisy target", "methods/denoise/difusion_model.py",
             "        return given.other\n\n    def network_input", "        return given.x\n\n    def network_input",
             "methods/denoise/test_difusion.py::test_no_image_to_denoise_contains_the_noise_of_the_target_volume"),
    mutation("buffers are not copied to the averaged network", "diffusion/training.py",
             "            kept.copy_(current)\n", "            pass\n", "diffusion/test_training.py"),
    mutation("a partner that nothing declares may be of another chunk", "bids/partners.py",
             'for e in ("session", "chunk")', 'for e in ("session",)', "bids/test_query.py"),
    mutation("b-values of a field-map EPI are ignored", "bids/partners.py",
             'texts.table(path, extension) for', 'None for', "bids/test_partners.py"),
    mutation("the partner with the fewest entities in common is used", "bids/partners.py",
             "(-in_common(c, run),", "(in_common(c, run),", "bids/test_partners.py"),
    mutation("the read-out takes as many echo spacings as lines", "bids/run.py",
             "spacing * (lines - 1)", "spacing * lines", "bids/test_partners.py"),
    mutation("a damaged gzip file is read as if whole", "bids/images.py",
             "while stream.read(READ_AT_ONCE):", "while False:", "spatial/test_headers.py"),
    mutation("an empty image counts as one", "bids/images.py",
             "if values.min() == values.max():", "if False:", "bids/test_partners.py"),
    mutation("the first volume counts as the b0 of a partner", "bids/partners.py",
             "<= b0_threshold).argmax())", "> -1).argmax())", "bids/test_partners.py"),
    mutation("a field is used whatever its units", "bids/fieldmaps.py",
             "if strongest <= STRONGEST_HZ:", "if True:", "bids/test_fieldmaps.py"),
    mutation("a field displaces to the other side", "spatial/fieldmap.py",
             '(-1 if direction.endswith("-") else 1)', '(1 if direction.endswith("-") else -1)',
             "spatial/test_fieldmap.py"),
    mutation("whole turns of a phase stay", "spatial/fieldmap.py",
             "smooth - 2 * np.pi * turns", "smooth", "spatial/test_fieldmap.py"),
    mutation("noise counts as much as the brain in a field", "spatial/fieldmap.py",
             "gaussian_filter(field * weight, SMOOTHING_MM /", "gaussian_filter(field, SMOOTHING_MM /",
             "spatial/test_fieldmap.py"),
    mutation("a field map stays where the scanner's coordinates put it", "spatial/fieldmap.py",
             "return passes[-1] if passes[-1].similarity > CLEAR_GAIN * passes[0].similarity else passes[0]",
             "return passes[0]", "spatial/test_fieldmap.py"),
    mutation("samples without signal are fitted", "dwi/tensor.py",
             "(values.amin(dim=0) <= 0)", "(values.amin(dim=0) < -1e30)", "dwi/test_tensor.py"),
    mutation("any dark voxel counts as missing", "spatial/coverage.py",
             "complete &= ~_flat_parts(zero)", "complete &= ~zero", "spatial/test_coverage.py"),
    mutation("missing slabs count as signal", "spatial/coverage.py",
             "complete &= ~_flat_parts(zero)", "pass", "spatial/test_coverage.py"),
    mutation("GeneratedVolumes is misspelt", "bids/sidecars.py",
             'record["GeneratedVolumes"] = [v', 'record["GeneratedVolume"] = [v', "bids/test_sidecars.py"),
    mutation("volumes are paired across shells", "qc/evaluation.py",
             "    cosine[np.abs(wanted.bvals[:, None] - candidates.bvals) > SAME_BVAL * wanted.bvals[:, None]] = -1\n",
             "", "qc/test_evaluation.py"),
    mutation("QID2's axes are those of the world", "methods/directions/qid2_model.py",
             "self.axes = torch.as_tensor(linear_part / np.linalg.norm(linear_part, axis=0), dtype=torch.float32)",
             "self.axes = torch.eye(3)", FRAMES + "qid2_gets_acquired_and_wanted_directions_in_the_voxel_axes"),
    mutation("a finer grid is not shifted to its first voxel", "methods/enhance/grid.py",
             "    finer[:3, 3] += finer[:3, :3] @ [p[0] for p in points]\n", "", "methods/enhance/test_rish_arms.py"),
    mutation("directions come back turned the wrong way", "spatial/template_space.py",
             "gradients.world_directions(self.affine) @ self.rotation\n",
             "gradients.world_directions(self.affine) @ self.rotation.T\n", "spatial/test_template_space.py"),
    mutation("images from the template's space are not masked", "spatial/in_template.py",
             "space.onto_scan(images).clip(0) * scan.mask[..., None]",
             "space.onto_scan(images).clip(0)",
             "spatial/test_in_template.py::test_the_b0_is_moved_to_the_template_and_the_images_are_moved_back_to_the_scan"),
    # -- dwi
    mutation("the FSL sign is the other one", "dwi/gradients.py",
             "-1.0 if np.linalg.det(linear) > 0", "-1.0 if np.linalg.det(linear) < 0", "dwi/test_gradients.py"),
    mutation("an antipode is no neighbour", "dwi/gradients.py",
             "cosine = np.abs(self.bvecs[members] @ self.bvecs[members].T)",
             "cosine = self.bvecs[members] @ self.bvecs[members].T", "dwi/test_gradients.py"),
    mutation("a shell spans half of its b-value", "dwi/gradients.py", "0.05 * lowest", "0.5 * lowest",
             "dwi/test_gradients.py"),
    mutation("negative b-values are accepted", "dwi/gradients.py", "if (bvals < 0).any():", "if False:",
             "dwi/test_gradients.py"),
    mutation("a table is turned the wrong way", "dwi/gradients.py",
             'np.einsum("nij,nj->ni", nearest_rotation', 'np.einsum("nji,nj->ni", nearest_rotation',
             "dwi/test_gradients.py"),
    mutation("a Rician mean lacks a factor", "dwi/noise.py",
             "(1 + 2 * half) * torch.special", "(1 + half) * torch.special", "dwi/test_noise.py"),
    mutation("the mean of a shell costs no degree of freedom", "dwi/noise.py",
             "freedom = dwis.shape[1] - 1", "freedom = dwis.shape[1]", "dwi/test_noise.py"),
    mutation("all noise is taken in every band", "dwi/fusion.py",
             "((v - share * local_mean(power, inside))", "((v - local_mean(power, inside))", "dwi/test_fusion.py"),
    mutation("samples of details are as far away as the noise", "dwi/fusion.py",
             "sum(w.sqrt() * d for w, d in zip(weights, drawn", "sum(d for w, d in zip(weights, drawn",
             "dwi/test_fusion.py"),
    mutation("few samples are believed", "dwi/uncertainty.py",
             "noise / found", "0 * noise", "dwi/test_uncertainty.py"),
    mutation("neighbours outside the mask count", "dwi/uncertainty.py",
             "np.where(mask, std.astype(np.float64) ** 2, 0)", "std.astype(np.float64) ** 2",
             "dwi/test_uncertainty.py"),
    mutation("the noise of left-out volumes counts as error of the method", "dwi/uncertainty.py",
             "(error / NORMAL_90) ** 2 - sigma**2", "(error / NORMAL_90) ** 2", "methods/test_calibration.py"),
    mutation("acquired volumes have no noise", "methods/uncertainty.py",
             "sigma = _sigma(scan) if len(acquired) else 0.0", "sigma = 0.0", "methods/test_uncertainty.py"),
    mutation("all shells have the factor of the first", "methods/calibration.py",
             "key=lambda b: abs(b - table.bvals[volume])", "key=lambda b: b", "methods/test_calibration.py"),
    mutation("a lesion replaces free water too", "simulate/medium.py",
             "amount = amounts[:, None] * solid", "amount = amounts[:, None]", "simulate/test_lesions.py"),
    mutation("lesions stay where they are in finer views", "simulate/examples.py",
             ".planted(blocks.lesions)", "", "simulate/test_lesions.py"),
    mutation("bands ignore the mask", "dwi/fusion.py", "split, rest = [], image * mask", "split, rest = [], image",
             "dwi/test_fusion.py"),
    mutation("harmonics lack the Condon-Shortley phase", "dwi/harmonics.py",
             "diagonal = -(2 * m + 1) * diagonal", "diagonal = (2 * m + 1) * diagonal", "dwi/test_harmonics.py"),
    mutation("an off-diagonal element counts once", "dwi/tensor.py",
             "b_matrix = np.stack([x * x, 2 * x * y,", "b_matrix = np.stack([x * x, x * y,", "dwi/test_tensor.py"),
    mutation("weights of the tensor fit are signals, not their squares", "dwi/tensor.py",
             "exponent = 2 * (design.to", "exponent = 1 * (design.to", "dwi/test_tensor.py"),
    mutation("RISH features are of the wrong shell", "dwi/rish.py",
             "return min(shells, key=", "return max(shells, key=", "dwi/test_rish.py"),
    mutation("ADC where there is no b0", "dwi/adc.py", "(mean * present)", "(mean)",
             "dwi/test_adc.py"),
    mutation("the tensor that predicts a volume has seen it", "dwi/prediction.py",
             "rest = np.delete(np.arange(len(design)), j)", "rest = np.arange(len(design))", "dwi/test_prediction.py"),
    mutation("a volume is among the others", "dwi/prediction.py", "    np.fill_diagonal(weights, 0.0)\n", "",
             "dwi/test_prediction.py"),
    mutation("voxel centres are half a voxel off", "dwi/spline.py",
             "(np.arange(wanted) + 0.5) * (n / wanted) - 0.5", "(np.arange(wanted) + 0.5) * (n / wanted)",
             "dwi/test_spline.py"),
    mutation("the slice above is the one below", "dwi/stack.py", "[z - 1, z, z + 1]", "[z - 1, z, z - 1]",
             "dwi/test_stack.py"),
    mutation("Gibbs: left and right change places", "dwi/gibbs.py",
             "torch.lerp(left, right, weight)", "torch.lerp(right, left, weight)", "dwi/test_gibbs.py"),
    # -- nets
    mutation("the learnt atlas is read with exchanged axes", "nets/template_atlas.py",
             "(high - low)[:, None, None] - 1).flip(1)", "(high - low)[:, None, None] - 1)",
             "nets/test_template_atlas.py"),
    mutation("products of directions lack the root", "nets/direction_unet.py", "root = 2**0.5", "root = 1.0",
             "nets/test_direction_unet.py"),
    mutation("fusion starts as nothing", "nets/fefm.py", "return f * (1 + scale) + shift", "return f * scale + shift",
             "nets/test_fefm.py"),
    mutation("latents are decoded in another unit", "nets/rish_ldm.py",
             "autoencoder.decode(latents * self.latent_scale)", "autoencoder.decode(latents)", "nets/test_rish_ldm.py"),
    # -- diffusion
    mutation("the posterior's mean has the wrong alpha", "diffusion/processes.py", "alpha_s * b2 * x0)",
             "alpha_t * b2 * x0)", "diffusion/test_processes.py"),
    mutation("DDIM adds a term that it should subtract", "diffusion/samplers.py", "_as(alpha_s - keep * alpha, x)",
             "_as(alpha_s + keep * alpha, x)", "diffusion/test_samplers.py"),
    mutation("the multistep correction is twice too large", "diffusion/samplers.py", "_as(h / (2 * before[1]), x)",
             "_as(h / before[1], x)", "diffusion/test_samplers.py"),
    mutation("inversion predicts at the next time", "diffusion/samplers.py", "noise = predicted(x, max(t, 1))",
             "noise = predicted(x, s)", "diffusion/test_samplers.py"),
    mutation("draws of one address overlap", "diffusion/noise.py", "counter=[0, 0, 0, draw]",
             "counter=[draw, 0, 0, 0]", "diffusion/test_noise.py"),
    mutation("patience is one longer", "diffusion/training.py", "state.stale >= plan.patience",
             "state.stale > plan.patience", "diffusion/test_training.py"),
    mutation("damaged weights are loaded", "diffusion/weights.py", "if _digest(data) != card.sha256:", "if False:",
             "diffusion/test_weights.py"),
    mutation("weights of another method are loaded", "diffusion/weights.py",
             "if (card.method, card.size) != (method, size):", "if card.size != size:", "diffusion/test_weights.py"),
    # -- simulate
    mutation("heads turn the wrong way", "simulate/signal.py", '"nji,nj->ni", turns', '"nij,nj->ni", turns',
             "simulate/test_signal.py"),
    mutation("dispersion is doubled", "simulate/signal.py", "torch.exp(-0.5 * (orders", "torch.exp(-1.0 * (orders",
             "simulate/test_signal.py"),
    mutation("the ADC of a shell includes a volume of the next shell", "simulate/adc.py",
             "slice(1 + k * n_directions, 1 + (k + 1) * n_directions)",
             "slice(1 + k * n_directions, 1 + (k + 1) * n_directions + 1)", "simulate/test_adc.py"),
    mutation("eddy currents grow with b, not its root", "simulate/artefacts.py",
             "strength = np.sqrt(gradients.bvals / max(gradients.bvals.max(), 1e-12))",
             "strength = (gradients.bvals / max(gradients.bvals.max(), 1e-12))", "simulate/test_artefacts.py"),
    mutation("b0s lose slices", "simulate/artefacts.py", "< dropout) & ~gradients.is_b0", "< dropout)",
             "simulate/test_artefacts.py"),
    mutation("coils each have the whole signal", "simulate/scanner.py",
             "amplitude = signal / np.float32(np.sqrt(coils))", "amplitude = signal", "simulate/test_scanner.py"),
    # -- methods
    mutation("left-out directions are not hidden", "methods/directions/task.py", "np.setdiff1d(members, hidden)",
             "members", "methods/directions/test_task.py"),
    mutation("gaps are filled beside antipodes", "methods/directions/task.py",
             "nearest = np.abs(candidates @ acquired.T).max(axis=1)", "nearest = (candidates @ acquired.T).max(axis=1)",
             "methods/directions/test_task.py"),
    mutation("neighbours get directions in voxel axes", "methods/maps/neighbours_model.py",
             "torch.as_tensor(scan.gradients.world_directions(scan.affine)[volumes]",
             "torch.as_tensor(scan.gradients.bvecs[volumes]",
             FRAMES + "colour_turns_with_the_fibres_and_fa_and_md_stay"),
    mutation("hidden volumes are seen", "methods/maps/hidden.py", "np.setdiff1d(np.arange(len(volumes)), chosen)",
             "np.arange(len(volumes))",
             "methods/maps/test_estimate.py::test_hidden_volumes_are_none_that_the_network_sees"),
    mutation("the noise of a volume counts as unknown", "methods/maps/hidden.py",
             "alike = (features @ features.T - 1 / 3) * (1 - torch.eye(len(features), device=features.device))",
             "alike = features @ features.T - 1 / 3",
             "methods/maps/test_estimate.py::test_the_power_that_fits_best_is_that_of_what_is_unknown_whatever_the_noise"),
    mutation("water has the kurtosis of tissue", "simulate/medium.py", "kurtosis[:, :, None] * _tissue_share(tensor)",
             "kurtosis[:, :, None] + 0 * _tissue_share(tensor)",
             "simulate/test_measured.py::test_water_has_no_kurtosis_and_no_signal_rises_with_b"),
    mutation("views are finer than the scan", "simulate/measured.py",
             "values[:, [1, 1, 2]]", "values[:, [0, 0, 1]] / 9",
             "simulate/test_measured.py::test_examples_of_anatomies_say_their_tensors_and_are_not_finer_than_the_scan"),
    mutation("noise counts as anisotropy", "methods/maps/balance.py",
             "anisotropic.square().sum(dim=1) - power)", "anisotropic.square().sum(dim=1))",
             "methods/maps/test_starts.py"),
    mutation("the last start is not smoothed", "methods/starts.py",
             '"mppca": smooth_contrast(denoised)', '"mppca": denoised', "methods/maps/test_starts.py"),
    mutation("b0s that pulsate decide the noise", "dwi/noise.py",
             "np.sqrt(near * estimate_sigma(repeated).sigma)", "estimate_sigma(repeated).sigma",
             "methods/maps/test_estimate.py"),
    mutation("neighbours outside the mask count", "nets/attention_fit.py",
             "logits.masked_fill((around == len(state))[..., None], -torch.inf)", "logits",
             "methods/maps/test_estimate.py::test_untrained_it_is_the_mean_of_both_fits_smoothed_by_a_gaussian"),
    mutation("slabs of an estimate have no margin", "methods/maps/estimator.py",
             "margin = ROUNDS * REACH + 2 * radii[2]", "margin = 0 * radii[2]",
             "methods/maps/test_estimate.py::test_slab_by_slab_is_the_same_as_at_once"),
    mutation("patches of MP-PCA count alike", "dwi/mppca.py", "1 / (1 + signal.sum(dim=1))",
             "torch.ones_like(signal[:, 0])", "dwi/test_mppca.py"),
    mutation("a generator trains its discriminator", "methods/adversarial.py",
             "{name: parameter.detach() for name", "{name: parameter for name",
             COMPARED + "generators_and_discriminators_share_no_gradient"),
    mutation("a darker image counts as less diffusion", "methods/maps/direct.py",
             "(brighter[:, :1] - brighter[:, 1:])", "(brighter[:, 1:] - brighter[:, :1])",
             COMPARED + "what_is_added_to_six_images_changes_the_tensor_that_is_fitted_to_them"),
    mutation("DDM² forgets how much signal is left", "methods/denoise/ddm2_model.py",
             "(sigma / alpha - float(rest.std()))", "(sigma - float(rest.std()))",
             COMPARED + "ddm2_begins_where_the_noise_of_its_process_is_that_of_the_run"),
    mutation("an interval shrinks with the number of pairs", "qc/differences.py", "/ len(pairs) ** 0.5", "/ len(pairs)",
             "qc/test_differences.py::test_the_interval_is_that_of_a_paired_t_test"),
    mutation("a jackknife counts its parts once", "qc/differences.py",
             "(count - 1) * np.var(without)", "np.var(without)",
             "qc/test_differences.py::test_the_jackknife_of_a_mean_is_the_t_interval"),
    mutation("a choice among arms is for free", "qc/differences.py", "(2 * max(among, 1))", "2",
             "qc/test_differences.py::test_the_best_of_several_needs_a_larger_gain"),
    mutation("an arm that failed on a scan may be called best", "qc/benchmark_page.py",
             "and set(values) == everywhere", "",
             "qc/test_differences.py::test_an_arm_that_failed_on_a_scan_is_not_called_best"),
    mutation("weights of another training are taken", "cli/benchmark.py",
             "and json.loads(note.read_text()) == _how(args, name)", "",
             "cli/test_benchmark.py::test_what_has_changed_is_done_again_and_nothing_else"),
    mutation("scores of another mask are taken", "cli/scoring.py", 'stored["made_of"] == made_of', "True",
             "cli/test_benchmark.py::test_what_has_changed_is_done_again_and_nothing_else"),
    mutation("half of what two sets share counts", "qc/fid.py",
             "- 2 * np.sqrt(values).sum()", "- np.sqrt(values).sum()",
             "qc/test_differences.py::test_the_frechet_distance_is_that_of_the_formula"),
    mutation("a bias has the wrong sign", "qc/regions.py",
             "mean - float(result.reference", "-mean + float(result.reference",
             "qc/test_regions.py::test_a_bias_is_the_mean_over_the_region_less_that_of_the_reference"),
    mutation("MD has no unit", "methods/maps/slices.py", "MD_UNIT * md", "md",
             "methods/maps/test_diffdti.py::test_colour_is_scaled_to_the_length_of_fa_and_the_mismatch_is_returned"),
    mutation("hidden directions are not turned", "methods/maps/examples.py",
             "dense_bvecs=a.dense_bvecs @ turn", "dense_bvecs=a.dense_bvecs", HIDDEN),
    mutation("hidden volumes are not mirrored", "methods/maps/examples.py",
             "images.flip(1 + axis), dense.flip(1 + axis)", "images.flip(1 + axis), dense", HIDDEN),
    mutation("missing samples are targets", "methods/maps/examples.py", "a._replace(mask=a.mask & present)", "a",
             "methods/maps/test_diffdti.py::test_the_brain_of_an_example_has_no_missing_samples"),
    mutation("noise of volumes trains the spread", "methods/maps/examples.py",
             "if a.noiseless else torch.ones_like", "if True else torch.ones_like", HIDDEN),
    mutation("sized tensors change their mean", "methods/maps/balance.py",
             "factor * anisotropic\n    anisotropic[:, :3] += mean[:, None]",
             "factor * anisotropic\n    anisotropic[:, :3] += factor * mean[:, None]",
             "methods/maps/test_starts.py::test_sized_tensors_keep_their_mean_and_directions_and_their_maps_agree"),
    mutation("colour is not as long as FA", "methods/maps/slices.py", "colour * fa / length.clamp_min(1e-6)",
             "colour",
             "methods/maps/test_diffdti.py::test_colour_is_scaled_to_the_length_of_fa_and_the_mismatch_is_returned"),
    mutation("ADC of other b-values is read the wrong way round", "methods/synthesis/inputs.py",
             "return (1 - share) * adc[each, place - 1][:, None] + share * adc[each, place][:, None]",
             "return share * adc[each, place - 1][:, None] + (1 - share) * adc[each, place][:, None]",
             "methods/synthesis/test_phydiff.py::test_the_adc_of_other_b_values_is_interpolated_between_those_of_the_atlas"),
    mutation("mirrored scans keep their directions", "methods/synthesis/examples.py",
             "torch.where(mirrored[:, None, None], bvecs * across, bvecs)", "bvecs",
             "methods/synthesis/test_phydiff.py::test_examples_of_scans_are_mirrored_together_with_their_places_and_directions"),
    mutation("a scan on the template's grid is turned the wrong way", "spatial/template_space.py",
             "rotation = nearest_rotation(np.linalg.inv(_linear(points, mask, affine)))",
             "rotation = nearest_rotation(_linear(points, mask, affine))",
             "spatial/test_template_space.py::test_a_whole_series_comes_onto_a_grid_of_the_template_with_its_directions"),
    mutation("an atlas reads b0s as weighted", "methods/synthesis/atlas.py", "sampled[..., 1:] / sampled[..., :1]",
             "sampled[..., 1:] / sampled[..., 1:2]", "methods/synthesis/test_atlas.py"),
    mutation("coarser voxels are allowed", "methods/enhance/task.py", "np.min(zooms_mm) + SAME_MM",
             "np.max(zooms_mm) + SAME_MM", "methods/enhance/test_rish_arms.py"),
    mutation("the network's strength is used whole", "methods/enhance/rishldm_model.py",
             "scale = (of_start + of_network * piece.scale.square()).sqrt()", "scale = piece.scale",
             "methods/enhance/test_rishldm.py::test_each_degree_has_the_strength_that_the_shares_say"),
    mutation("a half has its own noise in common with itself", "methods/enhance/rishldm_model.py",
             "cross_power(first.coefficients, second", "cross_power(first.coefficients, first",
             "methods/enhance/test_rishldm.py::test_the_anisotropy_is_that_of_both_halves_whatever_the_network_says"),
    mutation("noise hides the direction contrast", "methods/denoise/difusion_model.py",
             "covariance[:2, :2] - sigma**2 * np.eye(2)", "covariance[:2, :2]",
             "methods/denoise/test_difusion.py::test_noise_does_not_hide_the_direction_contrast"),
    mutation("an option may be at its bound", "methods/spec.py", "not value > self.above", "not value >= self.above",
             "cli/test_parser.py"),
    # -- bids
    mutation("any readout time is accepted", "bids/partners.py", "READOUT_TOLERANCE * max(own, other)",
             "max(own, other)", "bids/test_query.py"),
    mutation("a resolution has a point in its name", "bids/names.py", "voxel_mm.replace('.', 'p')", "voxel_mm",
             "bids/test_names.py"),
    mutation("values that are not finite are stored", "bids/store.py", "if not np.isfinite(data).all():", "if False:",
             "bids/test_store.py"),
    mutation("figures of an earlier call stay", "bids/store.py", "            stale.unlink(missing_ok=True)\n",
             "            pass\n", "bids/test_store.py"),
    mutation("figures of methods of earlier calls go", "bids/store.py", " - kept_paths:", ":",
             "bids/test_store.py"),
    mutation("content does not count", "bids/store.py", "if str(path).endswith(LARGE):", "if True:",
             "bids/test_store.py"),
    # -- spatial
    mutation("the middle axis's row has the wrong sign", "spatial/rigid.py", "* (-1.0 if axis == 1 else 1.0)", "",
             "spatial/test_rigid.py"),
    mutation("rotations count as radians, not mm", "spatial/motion.py", "turns = HEAD_RADIUS_MM * np.abs",
             "turns = np.abs", "spatial/test_motion.py::test_framewise_displacement_by_hand"),
    mutation("displacement in mm is taken for voxels", "spatial/resample.py",
             "displacement = field / scan.zooms_mm[axis]", "displacement = field", "spatial/test_resample.py"),
    mutation("signal is not multiplied by the stretch", "spatial/resample.py",
             "moved if stretch is None else moved * stretch", "moved", "spatial/test_resample.py"),
    mutation("the table turns with the transform, not its inverse", "spatial/resample.py",
             "turned(np.linalg.inv(rigid)[:, :3, :3]", "turned(rigid[:, :3, :3]", "spatial/test_resample.py"),
    mutation("three directions in rows are read as columns", "bids/tables.py", "if bvecs.shape[0] == 3:",
             "if bvecs.shape[1] != 3:", "spatial/test_io.py"),
    mutation("a mask of shares includes every voxel", "spatial/io.py", "return values > IN_MASK",
             "return values > -IN_MASK", "spatial/test_io.py"),
    mutation("a mask is grown by voxels, not mm", "spatial/brain_mask.py",
             "ndimage.distance_transform_edt(~mask, sampling=zooms_mm)", "ndimage.distance_transform_edt(~mask)",
             "spatial/test_brain_mask.py"),
    mutation("Dice is half", "spatial/similarity.py", "float(2 * (one & other).sum() / total)",
             "float((one & other).sum() / total)", "spatial/test_similarity.py"),
    # -- qc
    mutation("PSNR of the range, not its square", "qc/metrics.py", "np.log10(top**2 / error)", "np.log10(top / error)",
             "qc/test_metrics.py"),
    mutation("an antipode is another direction", "qc/metrics.py", "cosine = np.abs((e * r).sum(axis=1)[ok]",
             "cosine = ((e * r).sum(axis=1)[ok]", "qc/test_metrics.py"),
    mutation("SSIM looks beyond the mask", "qc/metrics.py", "np.pad(image[..., c] * mask,", "np.pad(image[..., c],",
             "qc/test_metrics.py"),
    mutation("neighbours are of any shell", "qc/iqm.py",
             "q = np.sqrt(gradients.bvals[dwi])[:, None] * gradients.bvecs[dwi]", "q = gradients.bvecs[dwi].copy()",
             "qc/test_iqm.py"),
    mutation("residuals are not inflated by the fit's parameters", "qc/iqm.py",
             "inflation = count / (count - TENSOR_PARAMETERS)", "inflation = 1.0", "qc/test_iqm.py"),
    mutation("DWI SNR is of the lowest shell", "qc/iqm.py", "shells[-1][1]][mask].mean", "shells[0][1]][mask].mean",
             "qc/test_iqm.py"),
    mutation("the mask of scores is eroded once", "qc/evaluation.py", "iterations=EROSIONS", "iterations=1",
             "qc/test_evaluation.py"),
    # -- interfaces, workflow, cli
    mutation("a tensor is fitted to all volumes", "interfaces/maps.py", "if i.volumes is not None:", "if False:",
             "interfaces/test_maps.py"),
    mutation("noise is the same for all subjects", "interfaces/generate.py", 'subject=i.subject or "",', 'subject="",',
             "interfaces/test_generate.py"),
    mutation("a mask of the series is not read", "interfaces/denoise.py",
             "mask = inputs.in_mask if inputs.in_mask else None", "mask = None", "interfaces/test_denoise.py"),
    mutation("a method continues without its normalisation", "workflow/failures.py",
             "failed |= {method.name for method in plan.methods if method.spec.in_template}", "pass",
             "workflow/test_failures.py"),
    mutation("memory is counted in half precision", "workflow/plan.py", "float(np.prod(self.shape)) * 4 / 1e9",
             "float(np.prod(self.shape)) * 2 / 1e9", "workflow/test_plan.py"),
    mutation("every run of only b0s counts as a partner", "workflow/plan.py",
             "if plan.only_b0 and notes:", "if plan.only_b0:", "workflow/test_plan.py"),
    mutation("results lose the series that they belong to", "workflow/plan.py", "    if not plan.kept:\n",
             "    if True:\n", "workflow/test_earlier.py"),
    mutation("the stored series is denoised otherwise", "workflow/plan.py",
             "settings.denoise or (stored if stored in DENOISERS else None)", "settings.denoise",
             "workflow/test_earlier.py"),
    mutation("eight slices are too few", "workflow/plan.py", "    flat = min(shape[:3]) < MIN_SLICES\n",
             "    flat = min(shape[:3]) <= MIN_SLICES\n", "workflow/test_plan.py"),
    mutation("a deterministic result depends on a clock", "workflow/generate.py",
             "minutes=None if settings.deterministic else method.plan.minutes", "minutes=method.plan.minutes",
             "workflow/test_execution.py::test_no_clock_ends_the_training_of_a_deterministic_result"),
    mutation("gigabytes are passed to SLURM as megabytes", "workflow/plugin.py", "math.ceil(1024 * node.mem_gb)",
             "math.ceil(node.mem_gb)",
             "workflow/test_execution.py::test_slurm_jobs_request_the_resources_of_their_steps"),
    mutation("b-values and numbers of directions need not match", "cli/simulate.py",
             "if len(args.directions) != len(args.bvals):", "if False:", "cli/test_tools.py"),
    mutation("a simulated dataset overwrites another", "cli/simulate.py",
             "if args.out_dir.exists() and (", "if False and (", "cli/test_tools.py"),
    mutation("an evaluation does not pass the wanted volumes to methods", "cli/evaluate.py",
             "{**plan.options, **spec.evaluation_options(wanted)}", "{**plan.options}",
             "cli/test_tools.py::test_evaluate_runs_a_method_on_the_kept_volumes"),
]  # fmt: skip


def place(one: Mutation, root: Path = ROOT) -> tuple[Path, str]:
    """Return the file of a mutation and its text with the mistake; `SystemExit` where it is not found exactly once."""
    path = root / "bids_dmrigen" / one.file
    text = path.read_text()
    if (count := text.count(one.before)) != 1:
        raise SystemExit(f"{one.what}: expected the text once in {one.file}, found it {count} times: {one.before!r}")
    return path, text.replace(one.before, one.after)


def copy_of_repository(folder: Path) -> Path:
    """Copy the files under version control, in their present state, and return the folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run_tests(copy: Path, tests: Sequence[str], longest_s: float | None = None) -> int:
    """Return pytest's exit status of some tests in a copy; tests that take too long have failed."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{t}" for t in tests)]
    try:
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=longest_s).returncode
    except subprocess.TimeoutExpired:
        return TESTS_FAILED


def outcome(one: Mutation, copy: Path) -> str:
    """Put a mistake into a copy, run its tests and undo it."""
    path, mistaken = place(one, copy)
    right = path.read_text()
    path.write_text(mistaken)
    try:
        status = run_tests(copy, one.tests, LONGEST_S)
    finally:
        path.write_text(right)
    if status not in (ALL_PASSED, TESTS_FAILED, BROKEN_IMPORT):
        raise SystemExit(f"{one.what}: pytest ended with status {status}; are its tests there? {one.tests}")
    return SURVIVED if status == ALL_PASSED else KILLED


def main() -> int:
    """Try all mistakes, print the outcome of each, and return 1 where one survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="list the mutations, and run nothing")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="mutations with one of these in file or description")
    args = parser.parse_args()
    chosen = [m for m in MUTATIONS if not args.only or any(word in f"{m.file} {m.what}" for word in args.only)]
    for one in chosen:
        place(one)
        if args.list:
            print(f"{one.file:42} {one.what}")
    if args.list:
        print(f"{len(chosen)} mutations")
        return 0
    results = []
    with tempfile.TemporaryDirectory() as folder:
        copy, begun = copy_of_repository(Path(folder)), time.monotonic()
        if status := run_tests(copy, sorted({test for one in chosen for test in one.tests})):
            raise SystemExit(f"the tests fail without any mutation (status {status}): the mutations would show nothing")
        print(f"{time.monotonic() - begun:6.1f} s  all tests pass without a mutation", flush=True)
        for one in chosen:
            begun = time.monotonic()
            results.append(outcome(one, copy))
            print(f"{time.monotonic() - begun:6.1f} s  {results[-1]:8}  {one.file:42} {one.what}", flush=True)
    survived = results.count(SURVIVED)
    print(f"{len(results)} mutations, {len(results) - survived} killed, {survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
