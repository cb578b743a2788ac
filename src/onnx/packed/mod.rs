//! Passes over many sequences at once: attention over paged caches, and everything else as the export has it.

mod admission;
mod attention;
pub mod batching;
mod block;
pub mod check;
mod custom;
pub mod gpu_attention;
pub mod gpu_runner;
pub mod gpu_store;
pub mod holding;
pub mod host;
pub mod host_runner;
mod kernel;
pub mod layout;
pub mod load;
mod operator;
#[cfg(test)]
mod oracle;
pub mod passes;
pub mod pool;
pub mod register;
pub mod rows;
pub mod sequence;
pub mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timing;
