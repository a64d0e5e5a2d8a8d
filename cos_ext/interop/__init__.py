"""cos_ext beside other libraries of spiking networks: a module for each. None is imported here, and
no other part of cos_ext imports them.
"""
