//! Whole sessions on many threads.
