"""Where the trials of a search run: this machine or a cluster, a file for each kind of place."""

from autotune.sites.site import Site, SiteOptions, open_site

__all__ = ["Site", "SiteOptions", "open_site"]
