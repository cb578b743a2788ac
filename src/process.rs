//! The process as a whole: children of `fork()`, keeping this library loaded, and variables of the environment.
//!
//! A child of `fork()` has the memory of its parent, but none of its threads. So objects that need threads or a GPU
//! work in the parent only.

use std::ffi::{CStr, CString, OsStr};
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use crate::error::{Error, Result};

/// Grows with each fork that leads to a process.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Give freed memory back to the system. glibc keeps memory that is freed below other memory, such as what the loading
/// of a model took.
pub fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time from any thread, and takes no pointer.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The local time in a format of C's `strftime`. `None`: it is not known, or its text is longer than 1,000 bytes.
pub fn local_time(format: &str) -> Option<String> {
    // An empty text cannot be told from a failure, so no text is empty.
    let format = CString::new(format!("{format}.")).ok()?;
    let mut bytes = [0u8; 1001];
    // SAFETY: all pointers are valid for their calls, and `tm` is valid for all bit patterns.
    let length = unsafe {
        let (now, mut parts) = (libc::time(std::ptr::null_mut()), std::mem::zeroed::<libc::tm>());
        if libc::localtime_r(&now, &mut parts).is_null() {
            return None;
        }
        libc::strftime(bytes.as_mut_ptr().cast(), bytes.len(), format.as_ptr(), &parts)
    };
    let text = bytes.get(..length.checked_sub(1)?)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    // SAFETY: it takes NULL.
    u64::try_from(unsafe { libc::time(std::ptr::null_mut()) }).unwrap_or(0)
}

/// A process, told from those it was forked from by [`FORKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    /// The current process.
    pub fn current() -> Self {
        // No `Once`: in the child of a fork amid its call, it would wait for a thread that only the parent has.
        static REGISTERED: AtomicBool = AtomicBool::new(false);
        if !REGISTERED.load(Ordering::Acquire) {
            extern "C" fn in_child() {
                FORKS.fetch_add(1, Ordering::Relaxed);
            }
            // SAFETY: the handler only counts, so two threads may both register it. The library stays loaded once it is
            // registered. If there is no memory to register it, a child is taken for its parent.
            _ = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            REGISTERED.store(true, Ordering::Release);
        }
        Process(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is the current process.
    pub fn is_current(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }

    /// A number for the process, never 0.
    pub fn number(self) -> u32 {
        self.0 + 1
    }

    /// An error unless this is the current process.
    pub fn check(self) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        Err(Error::Unsupported(
            "the engine was opened before fork(), so its threads are in the parent only; open an engine in the child, \
             after fork() or daemon()"
                .into(),
        ))
    }
}

/// A value for each process. A child of `fork()` gets a new value, because a thread that the child lacks may hold a
/// lock of the old one for ever.
pub struct PerProcess<T> {
    value: AtomicPtr<(Process, T)>,
    make: fn() -> T,
}

impl<T: Send + Sync> PerProcess<T> {
    /// `make` makes the value on first use in each process.
    pub const fn new(make: fn() -> T) -> Self {
        PerProcess { value: AtomicPtr::new(std::ptr::null_mut()), make }
    }

    /// The value of the current process. Values are never freed.
    pub fn get(&self) -> &T {
        let process = Process::current();
        let mut known = self.value.load(Ordering::Acquire);
        loop {
            // SAFETY: a stored pointer comes from a leaked box, so it stays valid.
            match unsafe { known.as_ref() } {
                Some((of, value)) if *of == process => return value,
                _ => {}
            }
            let made = Box::into_raw(Box::new((process, (self.make)())));
            match self.value.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => known = made,
                Err(other) => {
                    // SAFETY: the box was made above, and no other thread has the pointer.
                    drop(unsafe { Box::from_raw(made) });
                    known = other;
                }
            }
        }
    }
}

/// Keep this library loaded until the process ends, because ONNX Runtime keeps addresses of its code, such as a
/// logger's.
pub fn stay_loaded() {
    if let Some(file) = own_file() {
        // SAFETY: the object is loaded already, so the call only marks it, any number of times. It has no effect for a
        // program that links this crate, which stays loaded anyway.
        _ = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
    }
}

/// The number of processors that this process may use, by its affinity and its control group.
///
/// `num_cpus::get` takes a lock, which a child of `fork()` may find locked for ever. The standard library takes none.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Bytes of memory that the process could take without swapping: what the system has available, within the limit of
/// the control group. A large number if the system does not tell.
pub fn free_memory() -> usize {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<usize>().ok();
    let groups = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ];
    let left = groups.iter().filter_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)));
    let available = read("/proc/meminfo").and_then(|text| available_memory(&text));
    left.chain(available).min().unwrap_or(1 << 40)
}

/// The bytes that are available by `/proc/meminfo`.
fn available_memory(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}

/// A mapping of this process's memory, as `/proc/self/maps` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses.
    pub addresses: Range<usize>,
    /// Its permissions, such as `rw-p`.
    pub permissions: String,
    /// The inode of its file, 0 without a file.
    pub inode: u64,
    /// The path of its file, or a name such as `[heap]`; empty without either. A deleted file has a suffix `
    /// (deleted)`.
    pub path: PathBuf,
}

impl Mapping {
    /// Parse a line: `start-end permissions offset device inode path`.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut rest = line;
        let mut word = || {
            let (word, tail) = rest.split_at(rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len()));
            rest = tail.trim_ascii_start();
            str::from_utf8(word).ok()
        };
        let (start, end) = word()?.split_once('-')?;
        let permissions = word()?.to_owned();
        word()?; // offset
        word()?; // device
        let inode = word()?.parse().ok()?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let path = OsStr::from_bytes(rest).into();
        Some(Mapping { addresses: address(start)?..address(end)?, permissions, inode, path })
    }
}

/// The mappings of this process. Empty if the system does not list them.
pub fn mappings() -> Vec<Mapping> {
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    maps.split(|&byte| byte == b'\n').filter_map(Mapping::parse).collect()
}

/// The file that this code was loaded from: `libcos.so`, or a program that links the crate.
///
/// The loader may know the file by a path relative to an earlier working directory, so the system is asked.
pub fn own_path() -> Option<PathBuf> {
    let code = own_path as *const () as usize;
    let own = mappings().into_iter().find(|mapping| mapping.addresses.contains(&code))?;
    let path = own.path.as_os_str().as_bytes();
    // Another file may have taken its place since, as an update does.
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    path.starts_with(b"/").then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// The same file, by the path that the loader uses for it.
fn own_file() -> Option<&'static CStr> {
    // SAFETY: dladdr only reads the address and fills `info`, and its strings live as long as this code.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let found = libc::dladdr(own_file as *const libc::c_void, &mut info) != 0 && !info.dli_fname.is_null();
        found.then(|| CStr::from_ptr(info.dli_fname))
    }
}

/// Set a variable of the environment unless it is set. Other threads may read the environment meanwhile, which would be
/// unsafe with `setenv`: it may free the array that they read.
pub fn set_default(name: &CStr, assignment: &'static CStr) {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // A later `setenv` of the host puts yet another array in place. Then this address keeps ours from being taken for a
    // leak.
    #[used]
    static ARRAY: AtomicPtr<*mut libc::c_char> = AtomicPtr::new(std::ptr::null_mut());
    // SAFETY: POSIX allows a program to replace the array. The old array is not freed, so threads may still read it.
    unsafe {
        if !libc::getenv(name.as_ptr()).is_null() {
            return;
        }
        let old = (&raw const environ).read_volatile();
        let count = if old.is_null() { 0 } else { (0..).take_while(|&index| !(*old.add(index)).is_null()).count() };
        let mut entries: Vec<*mut libc::c_char> = Vec::with_capacity(count + 2);
        entries.extend((0..count).map(|index| *old.add(index)));
        entries.extend([assignment.as_ptr().cast_mut(), std::ptr::null_mut()]);
        let array = entries.leak().as_mut_ptr();
        ARRAY.store(array, Ordering::Relaxed);
        (&raw mut environ).write_volatile(array);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_belongs_to_one_process() {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static VALUE: PerProcess<u32> = PerProcess::new(|| COUNT.fetch_add(1, Ordering::Relaxed));
        let value = VALUE.get();
        assert_eq!((*value, VALUE.get()), (0, value), "it is made once");
        let here = Process::current();
        here.check().unwrap();
        assert_eq!(Process(here.0 + 1).check().unwrap_err().code(), 8);
    }

    #[test]
    fn the_own_file_is_found_from_anywhere() {
        assert_eq!(own_path(), std::env::current_exe().ok());
    }

    #[test]
    fn the_free_memory_is_known() {
        let text = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\n";
        assert_eq!(available_memory(text), Some(8_000_000 * 1024));
        assert_eq!(available_memory(""), None);
        assert!((1 << 20..1 << 40).contains(&free_memory()), "{}", free_memory());
    }

    #[test]
    fn lines_of_mappings_are_parsed() {
        let line = b"7f00-8f00 r-xp 00001000 fe:01 42      /usr/lib/with space.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.addresses, mapping.permissions.as_str(), mapping.inode), (0x7f00..0x8f00, "r-xp", 42));
        assert_eq!(mapping.path, PathBuf::from("/usr/lib/with space.so (deleted)"));
        assert_eq!(Mapping::parse(b"7f00-8f00 rw-p 00000000 00:00 0 ").unwrap().path, PathBuf::new());
        assert_eq!(Mapping::parse(b""), None);
    }

    #[test]
    fn a_variable_that_is_set_stays() {
        let value = |name: &CStr| std::env::var(name.to_str().unwrap()).ok();
        assert_eq!(value(c"COS_TEST_DEFAULT"), None);
        set_default(c"COS_TEST_DEFAULT", c"COS_TEST_DEFAULT=1");
        assert_eq!(value(c"COS_TEST_DEFAULT").as_deref(), Some("1"));
        set_default(c"COS_TEST_DEFAULT", c"COS_TEST_DEFAULT=2");
        assert_eq!(value(c"COS_TEST_DEFAULT").as_deref(), Some("1"));
    }
}
