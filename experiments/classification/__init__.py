"""Classification networks: normalisation, depth, augmentation, batch size."""
