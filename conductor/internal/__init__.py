"""The internal record, where a link is about to change it: absence, deletions, restorations."""
