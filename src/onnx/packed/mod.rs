//! Passes over many sequences at once: attention over paged caches, and everything else as the export has it.

pub mod check;
pub mod load;
pub mod operator;
pub mod passes;
pub mod pool;
pub mod sequence;
pub mod table;
