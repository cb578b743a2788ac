//! Passes over many sequences at once: attention over paged caches, and everything else as the export has it.

mod attention;
mod kernel;
pub mod operator;
#[cfg(test)]
mod oracle;
pub mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timing;
