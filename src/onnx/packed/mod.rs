//! Passes over many sequences at once: attention over paged caches, and everything else as the export has it.

pub mod table;
