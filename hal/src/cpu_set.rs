//! A set of CPU numbers that CPUs change and read at the same time.

use const_fn::const_fn;

use crate::{
    array_of,
    sync::{AtomicU64, Ordering, fence},
};

const WORD_BITS: usize = u64::BITS as usize;

/// A CPU number that a set has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NoSuchCpu {
    /// The number.
    pub cpu: usize,
}

/// CPU numbers below `64 * WORDS`, as those of the CPUs that a guest ran on.
///
/// A CPU [inserts](Self::insert) itself, with interrupts off, before each entry into the guest. Whoever
/// takes something from the guest does so first, and [lists](Self::iter) the CPUs afterwards. Then either
/// the list has the CPU, which has to be interrupted, or the CPU finds what was done and runs the guest
/// without the thing: each of the two calls is a full barrier for the caller.
///
/// [Clear](Self::clear) it only while no CPU is inside the guest and none enters: one that inserted itself
/// after the listing would be lost.
///
/// ```
/// use portcullis_hal::cpu_set::CpuSet;
///
/// static RAN_ON: CpuSet<1> = CpuSet::new();
/// RAN_ON.insert(3)?;
/// assert!(RAN_ON.iter().eq([3]));
/// # Ok::<(), portcullis_hal::cpu_set::NoSuchCpu>(())
/// ```
#[derive(Debug)]
pub struct CpuSet<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> CpuSet<WORDS> {
    /// CPU numbers from here on have no room.
    pub const CAPACITY: usize = WORDS * WORD_BITS;

    /// An empty set.
    #[const_fn(cfg(not(loom)))]
    #[must_use]
    pub const fn new() -> Self {
        Self(array_of!(AtomicU64::new(0); WORDS))
    }

    /// Adds `cpu`, if it is not there, before all later accesses of this CPU and after all earlier ones.
    ///
    /// # Errors
    /// [`NoSuchCpu`] when there is no room for such a number.
    pub fn insert(&self, cpu: usize) -> Result<(), NoSuchCpu> {
        let word = self.0.get(cpu / WORD_BITS).ok_or(NoSuchCpu { cpu })?;
        word.fetch_or(bit(cpu), Ordering::AcqRel);
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Whether `cpu` is there, as seen after all earlier accesses of this CPU.
    #[must_use]
    pub fn contains(&self, cpu: usize) -> bool {
        fence(Ordering::SeqCst);
        self.0.get(cpu / WORD_BITS).is_some_and(|word| word.load(Ordering::Acquire) & bit(cpu) != 0)
    }

    /// The CPUs in rising order, as seen after all accesses of this CPU that came before the call.
    ///
    /// Each word is read once, when its turn comes: a CPU that is inserted meanwhile may be missed.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        fence(Ordering::SeqCst);
        self.0.iter().enumerate().flat_map(|(index, word)| {
            members(word.load(Ordering::Acquire)).map(move |bit| index * WORD_BITS + bit)
        })
    }

    /// Empties the set, word by word, before all later accesses of this CPU and after all earlier ones.
    pub fn clear(&self) {
        for word in &self.0 {
            word.swap(0, Ordering::AcqRel);
        }
        fence(Ordering::SeqCst);
    }
}

impl<const WORDS: usize> Default for CpuSet<WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

const fn bit(cpu: usize) -> u64 {
    1 << (cpu % WORD_BITS)
}

/// Numbers of the bits that are set.
fn members(mut word: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let lowest = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (lowest < u64::BITS).then_some(lowest as usize)
    })
}
