"""Delta tables read and written without a JVM."""
