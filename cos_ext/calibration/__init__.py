"""What is fitted to data before or after conversion: thresholds, potentials, biases. Nothing here
measures accuracy.
"""
