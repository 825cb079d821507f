"""Several processes and threads as one: ranks, collective operations, parts of a batch, and a monitor of failures."""
