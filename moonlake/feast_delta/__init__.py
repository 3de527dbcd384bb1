"""The Feast plug-in for Delta tables: sources, offline store, materialisation engine, and the home's state.

Feast finds the classes by the paths in `feature_repo/feature_store.yaml`; this package alone imports no Feast.
"""
