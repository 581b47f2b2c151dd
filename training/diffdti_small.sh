#!/bin/sh
# Train the default weights of Diff-DTI: sh training/diffdti_small.sh ATLAS SCANS OUT MINUTES
#
# ATLAS    folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# SCANS    folder that the app wrote of the scans of role train (roles.tsv), with --denoise none
# OUT      folder for the weights, OUT/diffdti-small.safetensors
# MINUTES  of training, in all
#
# Examples are in turn volumes of the scans that the network is not shown, simulated scans of their anatomies, and
# simulated scans of simulated subjects. Called again with the same OUT and more minutes, the training goes on where it
# stopped. The spread of samples is calibrated at its end.
set -eu
atlas=$1 scans=$2 out=$3 minutes=$4
train=$(awk -F '\t' '$2 == "train" { print $1 }' "$(dirname "$0")/roles.tsv")

mkdir -p "$out"
test -f "$out/scans.safetensors" || dmrigen prepare "$scans" "$out/scans.safetensors" --participant-label $train
test -f "$out/anatomies.safetensors" ||
    dmrigen prepare "$scans" "$out/anatomies.safetensors" --anatomies --participant-label $train

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # a process per core: one alone waits between short operations
torchrun --nproc-per-node 2 -m bids_dmrigen.cli.train diffdti --out "$out" --data "$out/scans.safetensors" \
    --anatomies "$out/anatomies.safetensors" --atlas "$atlas" --subjects 60 --batch 16 --minutes "$minutes" \
    --precision bf16 --device cpu --keep-every 500
dmrigen weights verify "$out/diffdti-small.safetensors"
