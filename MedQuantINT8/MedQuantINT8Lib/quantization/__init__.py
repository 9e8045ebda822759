"""From an FP32 network to an INT8 network: calibration, Q/DQ placement, bias correction, the accuracy guard."""
