"""Learning and measuring: no Spark, no Airflow, no Feast."""
