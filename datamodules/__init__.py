"""LightningDataModules and the typed batches they hand to methods. Nothing here imports ``zoo``."""
