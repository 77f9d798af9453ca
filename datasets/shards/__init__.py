"""Data sets as shards: plain WebDataset tars with an index, built from folders of scans and checked."""
