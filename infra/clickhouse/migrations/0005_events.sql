-- What happened to VMs and to metering, and who did what: a row per event, out of their streams.
--
-- The sorting key ends in the event's id and all of it comes from the event itself, so that
-- ReplacingMergeTree collapses whatever is delivered or sent again. There are no partitions: a
-- repetition in another one would stay. `recorded_at` is the stream's own clock; expiry follows it.
-- `body` is the message as it came.
CREATE TABLE IF NOT EXISTS vm_events
(
    customer_id LowCardinality(String),
    vm_id UUID,
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id UUID,
    type LowCardinality(String),
    host LowCardinality(String),
    incarnation UInt32,
    command_id Nullable(UUID),
    reason LowCardinality(String),
    body String CODEC(ZSTD(3)),
    recorded_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (customer_id, vm_id, at, event_id)
TTL toDateTime(recorded_at) + toIntervalDay(730)
SETTINGS non_replicated_deduplication_window = 100;

CREATE TABLE IF NOT EXISTS metering_gaps
(
    host LowCardinality(String),
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id UUID,
    type LowCardinality(String),
    run_id Nullable(UUID),
    seq_first Nullable(Int64),
    seq_last Nullable(Int64),
    silent_ms Nullable(Int64),
    body String CODEC(ZSTD(3)),
    recorded_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (host, at, event_id)
TTL toDateTime(recorded_at) + toIntervalDay(730)
SETTINGS non_replicated_deduplication_window = 100;

CREATE TABLE IF NOT EXISTS audit_log
(
    customer_id LowCardinality(String),
    at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id UUID,
    actor LowCardinality(String),
    action LowCardinality(String),
    target String CODEC(ZSTD(1)),
    reason String CODEC(ZSTD(1)),
    outcome LowCardinality(String),
    details Map(LowCardinality(String), String),
    recorded_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (customer_id, at, event_id)
TTL toDateTime(recorded_at) + toIntervalDay(2555)
SETTINGS non_replicated_deduplication_window = 100;
