"""The files of a run, and its interruption by signals and time limits."""
