"""The driver for a Ray cluster; imported only where one is asked for."""

from autotune.drivers.ray_tune.cluster import RayCluster
from autotune.drivers.ray_tune.driver import RayTuneDriver

__all__ = ["RayCluster", "RayTuneDriver"]
