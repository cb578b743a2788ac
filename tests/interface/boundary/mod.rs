//! The `extern "C"` functions with scripted models, which can do on demand what a real model cannot: panic, fail, or
//! stop in the middle of a pass.

mod branches;
mod calls;
mod controls;
mod engines;
mod many;
mod options;
mod panics;
mod prepare;
mod requests;
