"""Workflows: everything that users do, for commands, DAGs and notebooks alike."""
