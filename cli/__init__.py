"""The `moonlake` command, one file a command group."""
