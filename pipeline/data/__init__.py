"""From (dataset, iteration) to normalised images: order, augmentation, DALI graphs, loader."""
