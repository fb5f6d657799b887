-- One row per VM and tick, as the collector passed it on.
--
-- The primary key finds a VM's ticks; the sorting key adds which frame a row came from, so that
-- ReplacingMergeTree collapses only copies of the same reading and never chooses between two.
-- Partitions and expiry follow `collected_at`, the collector's clock: a host whose clock is wrong
-- can neither make partitions that never expire nor have its rows expire early.
-- Counters are signed, so that a subtraction that goes wrong shows as a negative number.
CREATE TABLE IF NOT EXISTS samples ON CLUSTER 'main'
(
    customer_id LowCardinality(String),
    vm_id UUID,
    incarnation UInt32,
    tick_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
    run_id UUID,
    seq Int64 CODEC(DoubleDelta, ZSTD(1)),
    host LowCardinality(String),
    sampled_at_ns Int64 CODEC(Delta, ZSTD(1)),
    collected_at DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    state UInt8,
    flags UInt8,
    mem_bytes Int64 CODEC(Delta, ZSTD(1)),
    uptime_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
    cpu_ns Int64 CODEC(DoubleDelta, ZSTD(1)),
    mem_kib_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
    disk_read_bytes Int64 CODEC(Delta, ZSTD(1)),
    disk_write_bytes Int64 CODEC(Delta, ZSTD(1)),
    net_rx_bytes Int64 CODEC(Delta, ZSTD(1)),
    net_tx_bytes Int64 CODEC(Delta, ZSTD(1)),
    pool LowCardinality(String),
    region LowCardinality(String),
    price_plan LowCardinality(String),
    vcpus UInt16 CODEC(T64, ZSTD(1)),
    memory_mib UInt32 CODEC(T64, ZSTD(1)),
    tick DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(tick_ms, 'UTC')
)
ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')
PARTITION BY toDate(collected_at)
PRIMARY KEY (customer_id, vm_id, incarnation, tick_ms)
ORDER BY (customer_id, vm_id, incarnation, tick_ms, run_id, seq)
TTL toDateTime(collected_at) + toIntervalDay(7)
SETTINGS
    -- Without a window `insert_deduplication_token` is ignored.
    replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1;
