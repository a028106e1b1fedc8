//! Blank, cache-line aligned, lazily committed arrays.
//!
//! Large arrays come from the allocator's zeroed path, which on every mainstream system hands out
//! untouched pages: a reserve that is never used costs address space, not memory. The request keeps an
//! alignment of 16, because a larger one makes std write the zeros itself and so commit every page; the
//! line alignment is made by hand from 64 spare bytes.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ptr::NonNull;

const LINE: usize = 64;

/// A type with a value that every element of a new array starts with.
///
/// # Safety
/// If `IS_ZEROS`, all-zero bytes must be a valid value.
pub unsafe trait Blank: Sized {
    /// All-zero bytes are the blank value, so that fresh pages need no writing. loom's atomics are not
    /// plain bytes: there every element is written.
    const IS_ZEROS: bool = !cfg!(alru_loom);
    /// Distance of elements in an array: holds one, and keeps it aligned.
    const STRIDE: usize = size_of::<Self>();
    /// The value of an untouched element.
    fn blank() -> Self;
}

/// The allocator could not provide the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

/// A fixed array of `T`, `T::STRIDE` bytes apart, the first element at a multiple of 64.
pub struct ZeroedArray<T: Blank> {
    base: NonNull<u8>,
    allocation: NonNull<u8>,
    layout: Layout,
    len: usize,
    _marker: PhantomData<T>,
}

// SAFETY: the array owns its elements and hands out shared references only, as a `Box<[T]>` does.
unsafe impl<T: Blank + Send> Send for ZeroedArray<T> {}
// SAFETY: as above; `&ZeroedArray<T>` gives `&T` and nothing else.
unsafe impl<T: Blank + Sync> Sync for ZeroedArray<T> {}

impl<T: Blank> ZeroedArray<T> {
    /// `len` blank elements.
    pub fn new(len: usize) -> Result<Self, OutOfMemory> {
        const { assert!(T::STRIDE >= size_of::<T>() && T::STRIDE % align_of::<T>() == 0) };
        // Types that want more than a line are aligned by hand like the rest, from a larger slack.
        let align = LINE.max(align_of::<T>());
        let bytes = len.checked_mul(T::STRIDE).ok_or(OutOfMemory)?;
        let size = bytes.checked_add(align).ok_or(OutOfMemory)?;
        let layout = Layout::from_size_align(size, 16).map_err(|_| OutOfMemory)?;
        // SAFETY: `size` is not zero, `align` is at least 64.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(OutOfMemory)?;
        let slack = allocation.as_ptr().align_offset(align);
        // SAFETY: `slack < align`, and `align` bytes more than the elements need were requested.
        let base = unsafe { allocation.add(slack) };
        let array = Self { base, allocation, layout, len, _marker: PhantomData };
        if !T::IS_ZEROS {
            for i in 0..len {
                // SAFETY: `i < len`, so the element lies inside the allocation; nobody shares it yet.
                unsafe { array.base.as_ptr().add(i * T::STRIDE).cast::<T>().write(T::blank()) };
            }
        }
        Ok(array)
    }
}

impl<T: Blank> ZeroedArray<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the first element lies.
    pub fn base(&self) -> *mut T {
        self.base.as_ptr().cast()
    }

    /// # Safety
    /// `index < self.len()`.
    #[inline(always)]
    pub unsafe fn get_unchecked(&self, index: usize) -> &T {
        debug_assert!(index < self.len);
        // SAFETY: in range by the caller's promise, aligned by construction; every element is
        // initialised: zero bytes are valid if `IS_ZEROS`, else each one was written.
        unsafe { &*self.base.as_ptr().add(index * T::STRIDE).cast::<T>() }
    }

    /// # Panics
    /// If `index >= self.len()`.
    #[inline]
    pub fn get(&self, index: usize) -> &T {
        assert!(index < self.len);
        // SAFETY: checked above.
        unsafe { self.get_unchecked(index) }
    }
}

impl<T: Blank> Drop for ZeroedArray<T> {
    fn drop(&mut self) {
        if std::mem::needs_drop::<T>() {
            for i in 0..self.len {
                // SAFETY: in range and initialised; `&mut self` says nobody else looks.
                unsafe { self.base.as_ptr().add(i * T::STRIDE).cast::<T>().drop_in_place() };
            }
        }
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

/// Asks the processor to bring a line near. A hint: any address will do.
#[inline(always)]
pub fn prefetch<T>(target: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch never faults and changes nothing that a program can see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(target.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = target;
}

#[cfg(test)]
mod tests {
    use super::*;

    // SAFETY: zero is a valid u64.
    unsafe impl Blank for u64 {
        fn blank() -> Self {
            0
        }
    }

    #[test]
    fn elements_start_at_a_line_and_read_zero() {
        for len in [1, 7, 64, 1000] {
            let a = ZeroedArray::<u64>::new(len).unwrap();
            assert_eq!(std::ptr::from_ref(a.get(0)).addr() % LINE, 0);
            assert!((0..len).all(|i| *a.get(i) == 0));
        }
    }

    #[test]
    fn an_absurd_length_is_an_error_not_an_abort() {
        assert!(ZeroedArray::<u64>::new(usize::MAX / 4).is_err());
    }
}
