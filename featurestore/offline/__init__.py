"""The offline store: DuckDB reads sources and writes sorted Parquet, Delta tables hold it, Arrow and numpy answer from it."""
