"""Used by the whole package: errors, files, logging, threads and memory."""
