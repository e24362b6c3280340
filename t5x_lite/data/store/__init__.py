"""Token stores: tokenized tasks on disk or in a bucket, addressed by example index."""
