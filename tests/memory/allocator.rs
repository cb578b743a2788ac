//! The allocator of this program: it counts allocations and bytes, and refuses blocks that are too large.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};

use crate::common::one_thread;

struct Counting;

/// Bytes that Rust holds in the whole process.
pub static HELD: AtomicUsize = AtomicUsize::new(0);

/// The size of the largest block that is not refused.
pub static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// How many blocks were refused.
pub static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// Whether a block of this size is refused.
fn refuses(size: usize) -> bool {
    let refuses = size > LARGEST.load(Relaxed);
    REFUSED.fetch_add(usize::from(refuses), Relaxed);
    refuses
}

thread_local! {
    /// Allocations of this thread. The test harness allocates in other threads.
    pub static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator, or refused.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return null_mut();
        }
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        HELD.fetch_add(layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return null_mut();
        }
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        HELD.fetch_add(layout.size(), Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && refuses(size) {
            return null_mut();
        }
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        HELD.fetch_add(size, Relaxed);
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Lets one test run at a time, because bytes are counted for the whole process. Their models share a pool of one
/// thread.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock();
    one_thread();
    turn
}
