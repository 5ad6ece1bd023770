"""Generative adversarial networks and the ways to keep a critic Lipschitz."""
