-- Hours and days that come in inserts of their own.
--
-- What an insert of samples costs hours and days is a row per VM, several times a second. A batcher
-- makes the hours of some seconds of samples at once and inserts those itself: `hours_apart` says so,
-- and the view leaves such rows out. Rows without that word are rolled up in a chain as before: those
-- of an earlier batcher beside it, of a repair, of whoever puts samples there by hand.
ALTER TABLE samples
    ADD COLUMN IF NOT EXISTS hours_apart UInt8 DEFAULT 0;

ALTER TABLE usage_minute
    ADD COLUMN IF NOT EXISTS hours_apart SimpleAggregateFunction(min, UInt8) DEFAULT 0;

ALTER TABLE usage_hour_view
    MODIFY QUERY
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
WHERE hours_apart = 0
GROUP BY customer_id, vm_id, incarnation, hour_ms, collected_in;

ALTER TABLE usage_minute_view
    MODIFY QUERY
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
    groupBitOrIf(bitShiftLeft(toUInt64(1), intDiv(tick_ms % 6000, 100)), intDiv(tick_ms % 60000, 6000) = 9) AS ticks_9,
    min(samples.hours_apart) AS hours_apart
FROM samples
GROUP BY customer_id, vm_id, incarnation, minute_ms, collected_on;
