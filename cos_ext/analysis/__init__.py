"""What is measured on a converted network: accuracy, statistics, offset spikes, energy. Nothing
here changes a network.
"""
