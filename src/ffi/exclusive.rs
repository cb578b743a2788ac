//! Objects of C that one thread at a time uses: sessions and requests.

use std::borrow::{Borrow, BorrowMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{ArcMutexGuard, Mutex, RawMutex};

use super::{catch, hold, release};
use crate::error::{Error, Result};
use crate::process::Process;

/// What C has of such an object.
pub(super) trait Handle<T>: Sized {
    /// What messages call it.
    const NAME: &'static str;

    /// What one thread at a time uses.
    fn exclusive(&self) -> &Exclusive<Self, T>;

    /// Let what runs end early. From any thread.
    fn cancel(&self);
}

/// An object behind its handle.
pub(super) struct Exclusive<H, T> {
    /// `None` once it is freed, for calls that still hold the handle.
    inner: Arc<Mutex<Option<T>>>,
    /// Whether a panic has left it in an unknown state.
    poisoned: AtomicBool,
    /// The process whose threads run the models.
    process: Process,
    /// Empty, kept for the next call with many objects whose first one this is.
    held: Mutex<Vec<Taken<H, T>>>,
}

impl<H, T> Exclusive<H, T> {
    pub(super) fn new(object: T, process: Process) -> Self {
        let inner = Arc::new(Mutex::new(Some(object)));
        Exclusive { inner, poisoned: AtomicBool::new(false), process, held: Mutex::default() }
    }

    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }
}

/// An object that a call has for itself.
pub(super) struct Taken<H, T> {
    /// Its place in the arrays of the call.
    pub(super) index: usize,
    pub(super) handle: Arc<H>,
    /// Holds an object, not `None`.
    guard: ArcMutexGuard<RawMutex, Option<T>>,
}

/// The handle, unless the object is poisoned or of another process.
///
/// # Safety
/// `handle` is NULL or was not freed.
pub(super) unsafe fn usable<H: Handle<T>, T>(handle: *const H) -> Result<Arc<H>> {
    // SAFETY: promised by the caller.
    let handle = unsafe { hold(handle, H::NAME) }?;
    handle.exclusive().process.check()?;
    if handle.exclusive().is_poisoned() { Err(Error::Poisoned) } else { Ok(handle) }
}

impl<H: Handle<T>, T> Taken<H, T> {
    /// # Safety
    /// `handle` is NULL or was not freed.
    pub(super) unsafe fn new(handle: *const H) -> Result<Self> {
        // SAFETY: promised by the caller.
        Taken::of(unsafe { usable(handle) }?, 0)
    }

    fn of(handle: Arc<H>, index: usize) -> Result<Self> {
        let guard = handle.exclusive().inner.try_lock_arc().ok_or(Error::Busy)?;
        // A call on another thread may have poisoned the object before this one got the lock.
        if handle.exclusive().is_poisoned() {
            return Err(Error::Poisoned);
        }
        if guard.is_none() {
            return Err(Error::InvalidArgument(format!("another thread freed the {} when this call began", H::NAME)));
        }
        Ok(Taken { index, handle, guard })
    }

    /// Take those of an array. `failed` is told of each one that cannot be taken.
    ///
    /// # Safety
    /// Each handle is NULL or was not freed.
    pub(super) unsafe fn all(handles: &[*mut H], mut failed: impl FnMut(usize, Error)) -> Vec<Self> {
        let mut held: Vec<Self> = Vec::new();
        for (index, &handle) in handles.iter().enumerate() {
            // SAFETY: promised by the caller.
            let taken = unsafe { usable(handle) }.and_then(|handle| Taken::of(handle, index));
            match taken {
                Ok(taken) => {
                    if held.is_empty() {
                        held = std::mem::take(&mut *taken.handle.exclusive().held.lock());
                    }
                    held.push(taken);
                }
                Err(_) if handle.is_null() => {
                    failed(index, Error::InvalidArgument(format!("{}s[{index}] is NULL", H::NAME)));
                }
                Err(error) => {
                    let twice = held.iter().find(|other| std::ptr::eq(&*other.handle, handle));
                    failed(
                        index,
                        twice.map_or(error, |first| {
                            let (name, first) = (H::NAME, first.index);
                            Error::InvalidArgument(format!("{name}s[{index}] is the same as {name}s[{first}]"))
                        }),
                    );
                }
            }
        }
        held
    }

    /// Give back those of [`Taken::all`], once `each` was done with them.
    pub(super) fn give_back(mut all: Vec<Self>, each: impl FnMut(Self)) {
        let first = all.first().map(|first| first.handle.clone());
        all.drain(..).for_each(each);
        if let Some(first) = first {
            *first.exclusive().held.lock() = all;
        }
    }

    /// Run a part of a call. A panic poisons the object.
    pub(super) fn run<R>(&mut self, body: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let result = catch(|| body(self.borrow_mut()));
        if let Err(Error::Internal(_)) = result {
            self.poison();
        }
        result
    }

    pub(super) fn poison(&self) {
        self.handle.exclusive().poisoned.store(true, Ordering::Release);
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.handle.exclusive().is_poisoned()
    }
}

impl<H, T> Borrow<T> for Taken<H, T> {
    fn borrow(&self) -> &T {
        self.guard.as_ref().expect("checked when it was taken")
    }
}

impl<H, T> BorrowMut<T> for Taken<H, T> {
    fn borrow_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("checked when it was taken")
    }
}

/// Free an object, once calls on other threads have ended.
///
/// # Safety
/// `handle` is NULL or was not freed, and no call begins with it from now on.
pub(super) unsafe fn free<H: Handle<T>, T>(handle: *mut H) {
    // SAFETY: promised by the caller. An error, such as for NULL, has no receiver.
    let _ = catch(|| unsafe {
        let held = hold(handle, H::NAME)?;
        let exclusive = held.exclusive();
        exclusive.process.check()?; // the threads of a parent's object are in the parent, so it is not freed
        held.cancel();
        let inner = exclusive.inner.lock().take();
        drop(inner);
        release(handle);
        Ok(())
    });
}
