"""One Transformer, described by `config.TransformerConfig`; weights in, logits out."""
