"""What a trial takes of a cluster, and its ranks on a node of it, whatever schedules them.

Arithmetic, software, orders, reports and ranks. Imports no Ray: `drivers/ray_tune` does.
"""
