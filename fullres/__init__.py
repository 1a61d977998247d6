"""Labels every pixel of very large images at full resolution, on as many GPUs as a cluster has."""
