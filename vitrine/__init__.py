"""The front door: command line, reports. Imports the three packages; none of them imports it."""

__all__: list[str] = []
