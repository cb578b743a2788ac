//! Passes over many sequences at once: attention over paged caches, and everything else as the export has it.

mod attention;
mod kernel;
pub mod operator;
pub mod table;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
