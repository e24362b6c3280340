"""From token stores to batches: shuffling, noise, packing, feature conversion, prefetching."""
