"""What every room uses: errors, files, logging, threads and memory."""
