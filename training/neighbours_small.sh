#!/bin/sh
# Train the default weights of neighbour attention: sh training/neighbours_small.sh BIDS_DIR ATLAS OUT MINUTES
#
# BIDS_DIR  scans of role train (roles.tsv)
# ATLAS     folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# OUT       folder for the scans as the app preprocesses them, not denoised, and for OUT/neighbours-small.safetensors
# MINUTES   of training in all; it goes on where it stopped when this is called again
#
# The first subject in the order of the alphabet is held out.
set -eu
data=$1 atlas=$2 out=$3 minutes=$4

subjects="elition ge15t philips15 prisma sagittal slab thick uih"
if [ ! -e "$out/scans.safetensors" ]; then
    bids_dmrigen "$data" "$out/preprocessed" participant --participant-label $subjects --methods sh --denoise none --output-spaces dwi
    dmrigen prepare "$out/preprocessed" "$out/scans.safetensors"
fi

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE # a process per core: one alone waits between short operations
torchrun --nproc-per-node 2 -m bids_dmrigen.cli.train neighbours --out "$out" --data "$out/scans.safetensors" \
    --atlas "$atlas" --subjects 12 --minutes "$minutes" --precision fp32 --device cpu
dmrigen weights verify "$out/neighbours-small.safetensors"
