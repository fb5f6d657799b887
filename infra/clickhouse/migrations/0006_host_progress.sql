-- Before which time every frame of a host is in `samples`, or was rejected: Unix ms, only growing.
CREATE TABLE IF NOT EXISTS host_progress
(
    host String,
    complete_ms SimpleAggregateFunction(max, Int64)
)
ENGINE = AggregatingMergeTree
ORDER BY host;
