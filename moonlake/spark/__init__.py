"""Everything that needs a JVM."""
