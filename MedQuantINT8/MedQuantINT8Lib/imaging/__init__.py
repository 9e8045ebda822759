"""Scans and label maps: files, grids, resampling and normalization, from a scan to network space and back."""
