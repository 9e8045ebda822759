"""Results as JSON and as pages that need nothing else."""
