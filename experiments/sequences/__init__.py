"""Sequences: memory over long delays in convolutional and recurrent networks."""
