//! The scheduler on a simulated machine: up to 10,000 sessions at once, against what is possible there.

mod arrivals;
mod fairness;
mod jumps;
mod machine;
mod oracle;
mod rounds;
mod serving;
