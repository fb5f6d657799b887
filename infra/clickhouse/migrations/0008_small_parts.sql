-- What one flush writes goes into one file, not into two for each column: that took a fifth of an
-- insert (`just bench batcher`). Columns of their own, and their codecs' large blocks, are for what
-- merges make of a few dozens of them.
ALTER TABLE samples
    MODIFY SETTING min_bytes_for_wide_part = 67108864;
