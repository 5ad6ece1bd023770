"""The command line: the only place with absl flags and process set-up."""
