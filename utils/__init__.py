"""Small modules that know nothing of pruning: data sets, loaders, augmentation, errors."""
