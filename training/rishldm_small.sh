#!/bin/sh
# Train weights of RISH latent diffusion: sh training/rishldm_small.sh ATLAS OUT
#
# ATLAS   folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# OUT     folder for the weights, OUT/rishldm-small.safetensors
#
# Four trainings, one after the other; each goes on where it stopped when this is called again.
set -eu
atlas=$1 out=$2

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # a process per core: one alone waits between short operations
torchrun --nproc-per-node 2 -m bids_dmrigen.cli.train rishldm --atlas "$atlas" --subjects 40 --batch 2 --precision bf16 \
    --device cpu --out "$out" --minutes 112
dmrigen weights verify "$out/rishldm-small.safetensors"
