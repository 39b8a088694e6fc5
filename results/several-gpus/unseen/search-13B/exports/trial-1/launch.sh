#!/bin/sh
# Trains on 2 x H200. train.py is yours: README.md has one to start from.
deepspeed --num_gpus 2 train.py --deepspeed ds_config.json "$@"
