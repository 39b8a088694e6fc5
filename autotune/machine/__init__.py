"""The machine: devices and host, their measured rates, the software that is installed."""
