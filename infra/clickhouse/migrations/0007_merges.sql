-- Fewer and wider merges: they took half of a batcher's CPU (`just bench batcher`).
--
-- Every flush has a few ticks of every VM, so parts overlap wholly and a merge compares row by row.
-- Merging two dozen parts at once, instead of a handful again and again, does that once or twice
-- per row; and one pass over all columns does without the list of which row came from where, which
-- costs more than it saves with columns of a few bytes. Some dozens of small parts wait meanwhile.
ALTER TABLE samples
    MODIFY SETTING
        min_parts_to_merge_at_once = 24,
        merge_selector_base = 24,
        enable_vertical_merge_algorithm = 0;

ALTER TABLE usage_minute
    MODIFY SETTING
        min_parts_to_merge_at_once = 24,
        merge_selector_base = 24,
        enable_vertical_merge_algorithm = 0;

ALTER TABLE usage_hour
    MODIFY SETTING
        min_parts_to_merge_at_once = 24,
        merge_selector_base = 24,
        enable_vertical_merge_algorithm = 0;

ALTER TABLE usage_day
    MODIFY SETTING
        min_parts_to_merge_at_once = 24,
        merge_selector_base = 24,
        enable_vertical_merge_algorithm = 0;
