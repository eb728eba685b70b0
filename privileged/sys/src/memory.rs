//! How much memory the C library keeps for later.

/// Until a block of this many bytes, what is given back is kept.
const LONGEST_KEPT: i32 = 64 << 10;

/// Has glibc give back what is large as soon as it is free, and keep one heap for all threads: a heap
/// for each would hold the most that each had at once. For the beginning of a process (mallopt(3)).
pub fn keep_little_memory() {
    for (what, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LONGEST_KEPT)] {
        // SAFETY: it takes two numbers and no pointer, and locks what it changes. What it does not
        // take, it leaves as it is.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Has glibc give back what is free between what is not: of many small blocks it keeps the pages, also
/// those above which one is still held (malloc_trim(3)).
pub fn give_memory_back() {
    // SAFETY: it takes a number and no pointer, locks the heap, and leaves what is in use alone.
    unsafe { libc::malloc_trim(0) };
}
