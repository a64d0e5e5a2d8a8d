"""Training ANNs with QCFS activations. Nothing spiking here."""
