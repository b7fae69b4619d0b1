"""The command line: `holdfast serve` and the tools, their options, output and exit codes."""
