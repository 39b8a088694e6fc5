"""Who owns the loop over ask and tell: this machine, or a cluster."""
