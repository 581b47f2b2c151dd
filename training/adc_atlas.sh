#!/bin/sh
# Make the packaged ADC atlas from the embedded anatomy: sh training/adc_atlas.sh OUT
#
# OUT  folder for OUT/adc_atlas.nii.gz and its sidecar, for the packaged ones bids_dmrigen/spatial/data
set -eu
out=$1

dmrigen prepare --adc-atlas embedded "$out/adc_atlas.nii.gz" --subjects 20 --bvalues 1000 2000 3000 --voxel-mm 3
