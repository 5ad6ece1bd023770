"""Memory: networks that read and write a memory outside themselves."""
