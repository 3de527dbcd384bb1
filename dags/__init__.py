"""Airflow DAGs, one file a DAG: commands, dates, assets, gates."""
