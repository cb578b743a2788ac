//! Turns panics of the tokenizers library into errors, without a message on standard error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is running [`quietly`].
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Run code that may panic on the content of a file or on an argument. A panic becomes an error and prints nothing.
///
/// The panic hook prints a message before a panic can be caught. So this installs a hook that skips panics within this
/// function, and passes all others to the previous hook. `libcos.so` has its own copy of the standard library, so the
/// hook of a host that is written in Rust is not changed.
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
        Err(panic) => Err(format!("the tokenizers library fails on it: {}", panic_message(&*panic))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
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
