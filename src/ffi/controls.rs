//! Options of the C interface that control the tokens of a session: bias, penalties, bans and constraints.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::{Constraint, Constraints};
use crate::error::{Error, Result};

/// No constraint, or one by a function.
pub const COS_CONSTRAINT_NONE: i32 = 0;
/// The text is a JSON value that a JSON schema allows. llguidance says which
/// keywords of the standard it lacks; these are an error. Keywords that the standard lacks too are ignored.
pub const COS_CONSTRAINT_JSON_SCHEMA: i32 = 1;
/// The whole text matches a regular expression, in the syntax of Rust's crate regex, without look-around.
pub const COS_CONSTRAINT_REGEX: i32 = 2;
/// The text follows a grammar in the dialect of Lark that llguidance has. Its first rule is "start". max_tokens= and
/// stop= are refused, because they do not go with drafts that are taken back.
pub const COS_CONSTRAINT_LARK: i32 = 3;
/// The text is one of the strings of a JSON array.
pub const COS_CONSTRAINT_CHOICES: i32 = 4;

/// A function of the caller that says which tokens may come next in a text. The text begins behind the last prompt.
///
/// What it says must depend on the tokens of the text only: cos_step calls it on its own thread for each position that
/// is drafted or decided, also for positions whose tokens are dropped later. So texts go back. `kept` makes that cheap:
/// a function that keeps a state takes tokens back until it has `kept`, and then adds those behind them.
///
/// The function must return: an exception ends the process, and longjmp is undefined behaviour. It must not keep the
/// pointers. It may call cos_cancel and cos_session_stats with the session. Other calls with the session return BUSY,
/// and cos_free would wait for ever.
///
/// @param tokens        the text so far, pending tokens included; NULL if it is empty
/// @param tokens_count  length of `tokens`
/// @param kept          so many tokens from the front are those of the last call with the same `text`
/// @param mask          in/out: a bit for each token, token t in bit t % 32 of word t / 32. All bits are set. Clear
///                      those of the tokens that may not come next. Stop tokens are tokens like others here. If no bit
///                      is left, the text is complete and ends.
/// @param mask_words    length of `mask`
/// @param text          a number of the session, which no other session of the process has, forks included
/// @param user_data     constrain_data of cos_session_options
/// @return 0, or any other number to make cos_step return CALLBACK with a message that names the number. A step that
///         has committed a token before returns success, and the next step calls the function again.
/// Since 0.1.
pub type cos_constraint_fn = Option<
    unsafe extern "C-unwind" fn(
        tokens: *const i32,
        tokens_count: usize,
        kept: usize,
        mask: *mut u32,
        mask_words: usize,
        text: u64,
        user_data: *mut c_void,
    ) -> i32,
>;

pub(super) type ConstraintFunction =
    unsafe extern "C-unwind" fn(*const i32, usize, usize, *mut u32, usize, u64, *mut c_void) -> i32;

/// A constraint by a function of a caller, for one text.
struct Caller {
    function: ConstraintFunction,
    data: *mut c_void,
    number: u64,
    text: Vec<i32>,
    kept: usize,
}

// SAFETY: one thread at a time uses a session, and only the session calls the function. The caller promises that the
// data may move between threads with the session.
unsafe impl Send for Caller {}

impl Constraint for Caller {
    fn reset(&mut self) -> Result<()> {
        self.text.clear();
        self.kept = 0;
        Ok(())
    }

    fn push(&mut self, token: i32) -> Result<()> {
        self.text.push(token);
        Ok(())
    }

    fn pop(&mut self, tokens: usize) -> Result<()> {
        self.text.truncate(self.text.len() - tokens);
        self.kept = self.kept.min(self.text.len());
        Ok(())
    }

    fn mask(&mut self, mask: &mut [u32]) -> Result<()> {
        mask.fill(u32::MAX);
        let kept = std::mem::replace(&mut self.kept, self.text.len());
        let tokens = if self.text.is_empty() { std::ptr::null() } else { self.text.as_ptr() };
        // SAFETY: the arrays have their lengths; the rest is promised by the caller.
        let status = unsafe {
            (self.function)(tokens, self.text.len(), kept, mask.as_mut_ptr(), mask.len(), self.number, self.data)
        };
        match status {
            0 => Ok(()),
            other => Err(Error::Callback(format!("the constraint function of the session returned {other}, not 0"))),
        }
    }

    fn may_end(&self) -> bool {
        true
    }

    fn is_complete(&self) -> bool {
        false
    }
}

/// The constraint function of a caller as [`Constraints`].
///
/// # Safety
/// `function` keeps to [`cos_constraint_fn`], and `data` is the data that it expects, for as long as the result lives.
pub(super) unsafe fn constrain(function: ConstraintFunction, data: *mut c_void) -> Constraints {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    struct Data(*mut c_void);
    // SAFETY: it is only copied; see [`Caller`].
    unsafe impl Send for Data {}
    // SAFETY: as above.
    unsafe impl Sync for Data {}
    let data = Data(data);
    Constraints::new(move || {
        let Data(data) = &data;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Box::new(Caller { function, data: *data, number, text: Vec::new(), kept: 0 })
    })
}
