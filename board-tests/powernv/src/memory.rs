//! The memory functions that the precompiled `core` expects of its environment.
//!
//! Written with volatile accesses, or the compiler would turn each into a call of itself.

/// C's `memcpy`.
///
/// # Safety
/// As in C: both ranges are valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    for offset in 0..bytes {
        // SAFETY: the caller vouched for `bytes` bytes of both.
        unsafe { to.add(offset).write_volatile(from.add(offset).read_volatile()) }
    }
    to
}

/// C's `memmove`.
///
/// # Safety
/// As in C: both ranges are valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= bytes {
        // SAFETY: as for this function; copying upwards reads each byte before it is overwritten.
        return unsafe { memcpy(to, from, bytes) };
    }
    for offset in (0..bytes).rev() {
        // SAFETY: the caller vouched for `bytes` bytes of both.
        unsafe { to.add(offset).write_volatile(from.add(offset).read_volatile()) }
    }
    to
}

/// C's `memset`.
///
/// # Safety
/// As in C: the range is valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8 {
    for offset in 0..bytes {
        // SAFETY: the caller vouched for `bytes` bytes.
        unsafe { to.add(offset).write_volatile(byte as u8) }
    }
    to
}

/// C's `memcmp`.
///
/// # Safety
/// As in C: both ranges are valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    for offset in 0..bytes {
        // SAFETY: the caller vouched for `bytes` bytes of both.
        let (a, b) = unsafe { (left.add(offset).read_volatile(), right.add(offset).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// C's `bcmp`.
///
/// # Safety
/// As in C: both ranges are valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: as for this function.
    unsafe { memcmp(left, right, bytes) }
}

/// C's `strlen`.
///
/// # Safety
/// As in C: a NUL ends the string.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller vouched for a string up to its NUL.
    while unsafe { string.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
