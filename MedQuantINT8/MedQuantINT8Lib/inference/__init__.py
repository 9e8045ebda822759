"""From a scan to a segmentation: windows, blending, postprocessing, within bounded memory."""
