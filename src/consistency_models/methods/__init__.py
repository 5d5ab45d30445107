"""Training methods: one LightningModule a file, named as the option `model=` that selects it."""
