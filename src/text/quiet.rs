//! Panics of a dependency as errors, without a word on standard error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is within [`quietly`].
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The result of code that may panic on what a file or a caller gave it; a panic is an error, and prints nothing.
///
/// A panic is printed by the hook before it can be caught, so a hook of ours is put before the one that is there. It
/// leaves out only panics within this function, and passes all others on. `libcos.so` has a standard library of its
/// own, hence the hook of a host in Rust is not even touched.
pub fn quietly<T>(body: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // A thread that is panicking must not change the hook.
    if !std::thread::panicking() {
        HOOK.call_once(|| {
            let before = take_hook();
            set_hook(Box::new(move |panic| {
                if !QUIET.get() {
                    before(panic);
                }
            }));
        });
    }
    let outer = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    QUIET.set(outer);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("the tokenizers library fails on it: {}", reason(&*panic))),
    }
}

fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_reason() {
        assert_eq!(quietly(|| Ok(1)), Ok(1));
        assert_eq!(quietly::<()>(|| Err("no".into())), Err("no".into()));
        let failed = quietly::<()>(|| panic!("index {}", 7));
        assert_eq!(failed, Err("the tokenizers library fails on it: index 7".into()));
        assert!(!QUIET.get());
    }
}
