"""Parts of methods.py: its records as tables and figures. Nothing is measured here."""
