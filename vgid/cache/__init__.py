"""The target cache: what stage one hands to stage two, on disk, as Parquet and a manifest."""
