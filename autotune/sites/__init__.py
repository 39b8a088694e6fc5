"""Where the trials of a search run: this machine or a cluster, a file for each kind of place."""

from autotune.sites.site import Site, SiteOptions

__all__ = ["Site", "SiteOptions", "open_site"]


def open_site(options: SiteOptions) -> Site:
    """The site that the options name. Ray is imported only where one names it.

    Raises:
        ConfigError: options that contradict each other, or what is there.
        LaunchError: nothing there can be used.
    """
    if options.ray is None:
        from autotune.sites.this_machine import ThisMachine

        return ThisMachine(options)
    from autotune.sites.ray_cluster import RayClusterSite

    return RayClusterSite(options, options.ray)
