"""Parts of gpu_layer.py. What other scripts need too is in _shared/."""
