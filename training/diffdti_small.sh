#!/bin/sh
# Train the default weights of Diff-DTI: sh training/diffdti_small.sh ATLAS OUT
#
# ATLAS  folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# OUT    folder for the weights, OUT/diffdti-small.safetensors
#
# The training goes on where it stopped when this is called again; the spread of samples is calibrated at its end. The
# shipped weights had another history, which their card has: 48 minutes on smoother subjects, then 37 minutes on subjects as
# they are now, the first 500 of those steps with maps free of the noise floor.
set -eu
atlas=$1 out=$2

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # a process per core: one alone waits between short operations
torchrun --nproc-per-node 2 -m bids_dmrigen.cli.train diffdti --out "$out" --atlas "$atlas" --subjects 60 --batch 16 \
    --minutes 80 --precision bf16 --device cpu
dmrigen weights verify "$out/diffdti-small.safetensors"
