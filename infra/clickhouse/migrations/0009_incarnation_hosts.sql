-- On which host each incarnation of a VM ran: usage of a host is that of its incarnations, since an
-- incarnation runs on one host from its start to its end.
--
-- Written by batchers, once a month for each incarnation that they have samples of, before those.
-- `collected_in` is the first day of the month on the collector's clock; partitions and expiry follow
-- it, as in `usage_day`.
CREATE TABLE IF NOT EXISTS incarnation_hosts
(
    host LowCardinality(String),
    vm_id UUID,
    incarnation UInt32,
    collected_in Date
)
ENGINE = ReplacingMergeTree
PARTITION BY collected_in
ORDER BY (host, vm_id, incarnation)
TTL toDateTime(collected_in, 'UTC') + toIntervalDay(2586)
SETTINGS
    non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1;

-- What the store knew before: from its ticks, as far as they are kept. `store_marks` says since when
-- that is whole, where some had expired.
INSERT INTO store_marks (name, day)
SELECT 'hosts_known_since', if(count() > 0, toDate(min(collected_at)) + 2, today() + 1)
FROM samples
HAVING
(
    SELECT toDate(min(applied_at)) FROM schema_migrations
) < today() -
(
    SELECT toInt32(extract(engine_full, 'toIntervalDay\\((\\d+)\\)'))
    FROM system.tables
    WHERE database = currentDatabase() AND name = 'samples'
);

INSERT INTO incarnation_hosts
SELECT
    host,
    vm_id,
    incarnation,
    toStartOfMonth(collected_at) AS collected_in
FROM samples
GROUP BY host, vm_id, incarnation, collected_in;
