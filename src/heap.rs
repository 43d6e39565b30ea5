//! Memory that is free inside the process, given back to the system.
//!
//! glibc keeps what was freed between what is still in use, for as long as the process runs: an agent that
//! received 100,000 files and is at rest held twice the memory it needs.

/// Gives back what is free. It stops all threads that allocate meanwhile, for some milliseconds: to be called
/// at rest.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "no library wraps this call, and nothing else gives the memory back"
)]
pub(crate) fn give_back() {
    // SAFETY: it takes a number, may be called by any thread at any time, and touches free memory only.
    let is_less = unsafe { libc::malloc_trim(0) } == 1;
    tracing::trace!(is_less, "free memory was given back");
}

/// Other C libraries give it back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}
