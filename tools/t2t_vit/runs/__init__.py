"""What a run keeps on disk, and when it is interrupted."""
