//! The boundary under scripted models: what a real model cannot be made to do on demand, such as to panic or to
//! stand still in the middle of a pass. Everything goes through the `extern "C"` functions.

mod calls;
mod engines;
mod options;
mod panics;
