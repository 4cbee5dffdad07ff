"""What it learns from: readers, converters, loaders. A regular package: found first."""
