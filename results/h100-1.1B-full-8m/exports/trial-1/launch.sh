#!/bin/sh
# Trains on 1 x H100-80GB. train.py is yours: README.md has one to start from.
deepspeed --num_gpus 1 train.py --deepspeed ds_config.json "$@"
