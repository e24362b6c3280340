"""Sweeps: pretrain, fine-tune and compare the rows of a study, resumably, here or on a cluster."""
