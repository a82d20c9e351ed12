#!/bin/bash
# A run on a TPU pod slice: `NAME=my-slice ZONE=us-west4-a bash train.tpu.sh`, from anywhere with
# gcloud. A process a host; the hosts find each other.
#
# /shared is a disk that all hosts mount for reading and writing (Filestore): it holds the base, the
# dataset and the runs. The same command again continues the run.
set -euo pipefail

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

on_all_hosts 'python3 -m venv ~/fusionjax && ~/fusionjax/bin/pip install -q fusionjax "jax[tpu]"'
on_all_hosts "~/fusionjax/bin/python -m train sd15_tpu_v5e --base /shared/stable-diffusion-v1-5 \
    --data.folder /shared/data/laion_face --output /shared/runs/${RUN:-laion} \
    --distributed.enabled True $*"
