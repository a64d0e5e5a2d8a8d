"""Parts of emission_orders.py. What other scripts need too is in _shared/."""
