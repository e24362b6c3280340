"""Studies: named changes of one base, each pretrained and fine-tuned alike, and compared."""
