"""Training: the loops of worker and server, devices, models, data and optimizers."""
