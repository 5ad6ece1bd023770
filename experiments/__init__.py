"""The experiments: one folder a topic, one module an experiment."""
