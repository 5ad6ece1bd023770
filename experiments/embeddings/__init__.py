"""Embeddings: words as vectors that are learned from the words around them."""
