"""Batches enriched frames into ClickHouse, and answers what was used from there."""
