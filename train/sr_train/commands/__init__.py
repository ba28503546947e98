"""The subcommands of `sr-edge train`: each parses, calls a stage and prints."""
