-- Per VM, incarnation and hour, and per day (UTC): the greatest value of each counter.
--
-- Made from the minutes as those come in, in a chain: `samples` -> minutes -> hours -> days. Every
-- column merges with `max` or bitwise `or`, so whatever is applied twice changes nothing. Which
-- ticks there were is known per minute only: a day would hold 864,000 bits.
-- `collected_in` is the first day of the month on the collector's clock; partitions and expiry
-- follow it.
CREATE TABLE IF NOT EXISTS usage_hour
(
    customer_id LowCardinality(String),
    vm_id UUID,
    incarnation UInt32,
    hour_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
    collected_in Date CODEC(Delta, ZSTD(1)),
    uptime_ms SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    cpu_ns SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    mem_kib_ms SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    disk_read_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    disk_write_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    net_rx_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    net_tx_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    flags SimpleAggregateFunction(groupBitOr, UInt8),
    last_tick_ms SimpleAggregateFunction(max, Int64) CODEC(DoubleDelta, ZSTD(1)),
    hour DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(hour_ms, 'UTC')
)
ENGINE = AggregatingMergeTree
PARTITION BY collected_in
ORDER BY (customer_id, vm_id, incarnation, hour_ms)
TTL toDateTime(collected_in, 'UTC') + toIntervalDay(761)
SETTINGS
    non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS usage_day
(
    customer_id LowCardinality(String),
    vm_id UUID,
    incarnation UInt32,
    day_ms Int64 CODEC(DoubleDelta, ZSTD(1)),
    collected_in Date CODEC(Delta, ZSTD(1)),
    uptime_ms SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    cpu_ns SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    mem_kib_ms SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    disk_read_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    disk_write_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    net_rx_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    net_tx_bytes SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    flags SimpleAggregateFunction(groupBitOr, UInt8),
    last_tick_ms SimpleAggregateFunction(max, Int64) CODEC(DoubleDelta, ZSTD(1)),
    day DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(day_ms, 'UTC')
)
ENGINE = AggregatingMergeTree
PARTITION BY collected_in
ORDER BY (customer_id, vm_id, incarnation, day_ms)
TTL toDateTime(collected_in, 'UTC') + toIntervalDay(2586)
SETTINGS
    non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_day_view TO usage_day AS
SELECT
    customer_id,
    vm_id,
    incarnation,
    hour_ms - hour_ms % 86400000 AS day_ms,
    collected_in,
    max(usage_hour.uptime_ms) AS uptime_ms,
    max(usage_hour.cpu_ns) AS cpu_ns,
    max(usage_hour.mem_kib_ms) AS mem_kib_ms,
    max(usage_hour.disk_read_bytes) AS disk_read_bytes,
    max(usage_hour.disk_write_bytes) AS disk_write_bytes,
    max(usage_hour.net_rx_bytes) AS net_rx_bytes,
    max(usage_hour.net_tx_bytes) AS net_tx_bytes,
    groupBitOr(usage_hour.flags) AS flags,
    max(usage_hour.last_tick_ms) AS last_tick_ms
FROM usage_hour
GROUP BY customer_id, vm_id, incarnation, day_ms, collected_in;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_hour_view TO usage_hour AS
SELECT
    customer_id,
    vm_id,
    incarnation,
    minute_ms - minute_ms % 3600000 AS hour_ms,
    toStartOfMonth(collected_on) AS collected_in,
    max(usage_minute.uptime_ms) AS uptime_ms,
    max(usage_minute.cpu_ns) AS cpu_ns,
    max(usage_minute.mem_kib_ms) AS mem_kib_ms,
    max(usage_minute.disk_read_bytes) AS disk_read_bytes,
    max(usage_minute.disk_write_bytes) AS disk_write_bytes,
    max(usage_minute.net_rx_bytes) AS net_rx_bytes,
    max(usage_minute.net_tx_bytes) AS net_tx_bytes,
    groupBitOr(usage_minute.flags) AS flags,
    max(usage_minute.last_tick_ms) AS last_tick_ms
FROM usage_minute
GROUP BY customer_id, vm_id, incarnation, hour_ms, collected_in;

-- What the store knew before: from its minutes, as far as they are kept. Where some had expired,
-- `store_marks` says since when that is whole: the first day that is left may be half expired, and
-- a counter at the begin of a day needs the day before.
CREATE TABLE IF NOT EXISTS store_marks
(
    name LowCardinality(String),
    day Date
)
ENGINE = MergeTree
ORDER BY name;

INSERT INTO store_marks (name, day)
SELECT 'usage_known_since', min(collected_on) + 2
FROM usage_minute
HAVING count() > 0 AND
(
    SELECT toDate(min(applied_at)) FROM schema_migrations
) < today() -
(
    SELECT toInt32(extract(engine_full, 'toIntervalDay\\((\\d+)\\)'))
    FROM system.tables
    WHERE database = currentDatabase() AND name = 'usage_minute'
);

INSERT INTO usage_hour
SELECT
    customer_id,
    vm_id,
    incarnation,
    minute_ms - minute_ms % 3600000 AS hour_ms,
    toStartOfMonth(collected_on) AS collected_in,
    max(usage_minute.uptime_ms) AS uptime_ms,
    max(usage_minute.cpu_ns) AS cpu_ns,
    max(usage_minute.mem_kib_ms) AS mem_kib_ms,
    max(usage_minute.disk_read_bytes) AS disk_read_bytes,
    max(usage_minute.disk_write_bytes) AS disk_write_bytes,
    max(usage_minute.net_rx_bytes) AS net_rx_bytes,
    max(usage_minute.net_tx_bytes) AS net_tx_bytes,
    groupBitOr(usage_minute.flags) AS flags,
    max(usage_minute.last_tick_ms) AS last_tick_ms
FROM usage_minute
GROUP BY customer_id, vm_id, incarnation, hour_ms, collected_in
SETTINGS optimize_aggregation_in_order = 1;
