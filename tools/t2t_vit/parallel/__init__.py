"""Work in several processes and threads: the device, collective operations, parts of a batch, failures."""
