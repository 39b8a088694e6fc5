"""The loops over ask and tell: on this machine, or on a cluster."""
