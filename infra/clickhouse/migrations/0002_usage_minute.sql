-- Per VM, incarnation and minute: the greatest value of each counter, and which ticks there were.
--
-- Every column merges with `max`, `min` or bitwise `or`: applying the same rows twice changes
-- nothing, so lost, repeated, reordered and replayed inserts leave the same answer. A count of
-- rows would not: `ticks_0` to `ticks_9` are 600 bits instead, one per decisecond of the minute.
-- `collected_on` is the day on the collector's clock; partitions and expiry follow it.
CREATE TABLE IF NOT EXISTS usage_minute
(
    customer_id LowCardinality(String),
    vm_id UUID,
    incarnation UInt32,
    minute_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
    collected_on Date CODEC(Delta, ZSTD(1)),
    uptime_ms SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    cpu_ns SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    mem_kib_ms SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    disk_read_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    disk_write_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    net_rx_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    net_tx_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    flags SimpleAggregateFunction(groupBitOr, UInt8),
    last_tick_ms SimpleAggregateFunction(max, Int64) CODEC(DoubleDelta, ZSTD(1)),
    ticks_0 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_1 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_2 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_3 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_4 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_5 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_6 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_7 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_8 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    ticks_9 SimpleAggregateFunction(groupBitOr, UInt64) CODEC(ZSTD(1)),
    minute DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(minute_ms, 'UTC')
)
ENGINE = AggregatingMergeTree
PARTITION BY collected_on
ORDER BY (customer_id, vm_id, incarnation, minute_ms)
TTL toDateTime(collected_on, 'UTC') + toIntervalDay(91)
SETTINGS
    non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_minute_view TO usage_minute AS
SELECT
    customer_id,
    vm_id,
    incarnation,
    tick_ms - tick_ms % 60000 AS minute_ms,
    toDate(collected_at) AS collected_on,
    max(samples.uptime_ms) AS uptime_ms,
    max(samples.cpu_ns) AS cpu_ns,
    max(samples.mem_kib_ms) AS mem_kib_ms,
    max(samples.disk_read_bytes) AS disk_read_bytes,
    max(samples.disk_write_bytes) AS disk_write_bytes,
    max(samples.net_rx_bytes) AS net_rx_bytes,
    max(samples.net_tx_bytes) AS net_tx_bytes,
    groupBitOr(samples.flags) AS flags,
    max(samples.tick_ms) AS last_tick_ms,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 0) AS ticks_0,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 1) AS ticks_1,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 2) AS ticks_2,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 3) AS ticks_3,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 4) AS ticks_4,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 5) AS ticks_5,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 6) AS ticks_6,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 7) AS ticks_7,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 8) AS ticks_8,
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 9) AS ticks_9
FROM samples
GROUP BY customer_id, vm_id, incarnation, minute_ms, collected_on;
