"""Token stores: tokenized tasks on disk or in a bucket, addressed by the index of the example."""
