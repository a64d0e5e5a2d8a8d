"""Parts of end_to_end.py. What other scripts need too is in _shared/."""
