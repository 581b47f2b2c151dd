#!/bin/sh
# Make the packaged ADC atlas: sh training/adc_atlas.sh ATLAS OUT
#
# ATLAS  folder with T1w, brain_mask, tissue_wm_gm_csf_percent, peaks_world_ras and qa (HCP-1065 directions)
# OUT    folder for OUT/adc_atlas.nii.gz and its sidecar, for the packaged ones bids_dmrigen/interfaces/data
set -eu
atlas=$1 out=$2

dmrigen prepare --adc-atlas "$atlas" "$out/adc_atlas.nii.gz" --people 20 --bvalues 1000 2000 3000 --voxel-mm 3
