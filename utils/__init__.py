"""Modules that are independent of pruning: data sets, loaders, augmentation, layers, files, errors."""
