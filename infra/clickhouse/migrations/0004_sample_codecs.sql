-- Codecs chosen by measurement (`just bench codecs`); parts get them as they are written or merged.
--
-- CPU comes in whole microseconds where the kernel counts so, memory in whole pages: GCD takes the
-- common factor out, and CPU grows too unevenly for DoubleDelta. All VMs of a host share the two
-- times of a frame, whose nanoseconds nothing else compresses: blocks that hold several VMs, with
-- a window as long, find them again. Usage is answered without these two columns, so nobody waits
-- for large blocks to be unpacked.
ALTER TABLE samples
    MODIFY COLUMN incarnation CODEC(ZSTD(1)),
    MODIFY COLUMN sampled_at_ns CODEC(Delta, ZSTD(1, 24)),
    MODIFY COLUMN collected_at CODEC(Delta, ZSTD(1, 24)),
    MODIFY COLUMN mem_bytes CODEC(GCD, ZSTD(1)),
    MODIFY COLUMN cpu_ns CODEC(GCD, Delta, ZSTD(1)),
    MODIFY COLUMN vcpus CODEC(ZSTD(1)),
    MODIFY COLUMN memory_mib CODEC(ZSTD(1));

ALTER TABLE samples
    MODIFY COLUMN sampled_at_ns
        MODIFY SETTING min_compress_block_size = 16777216, max_compress_block_size = 16777216;

ALTER TABLE samples
    MODIFY COLUMN collected_at
        MODIFY SETTING min_compress_block_size = 16777216, max_compress_block_size = 16777216;
