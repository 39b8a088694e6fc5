#!/bin/sh
# Trains on 2 x H100-80GB. train.py is yours: README.md has one to start from.
deepspeed --num_gpus 2 train.py --deepspeed ds_config.json "$@"
