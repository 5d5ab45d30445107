"""Files: checkpoints, models loaded from them, a disk cache, and downloads of published weights."""
