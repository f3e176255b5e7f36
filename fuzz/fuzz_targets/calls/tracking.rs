//! Calls on the tracker: a token ends once, and nothing but the token that was given does.
use blkmirror::*;
use blkmirror_fuzz::check;

use crate::run::{DISK, Run};

// SAFETY of all calls below: they pass on handles and variables of the run, as its contract says.
impl Run {
    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn begin(&mut self, at: u64, len: u64, kind: u8) {
        let mut token = blkm_token { device_number: 0, opaque: [0; 7] };
        let (at, len) = if kind & 64 == 0 { (at % DISK, len % 65536) } else { (at, len) };
        // SAFETY: see above.
        let begun = unsafe { blkm_tracker_begin(self.tracker, at, len, u32::from(kind & 7), &raw mut token) };
        match check(begun) {
            0 => self.tokens.push(token),
            // SAFETY: see above.
            BLKM_HELD => drop(check(unsafe { blkm_tracker_wait(self.tracker, 100_000) })),
            _ => {}
        }
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn end(&mut self, result: i8, twice: bool) {
        let Some(token) = self.tokens.pop() else { return };
        // SAFETY: see above.
        assert_eq!(check(unsafe { blkm_tracker_end(self.tracker, &raw const token, result.into()) }), 0);
        if twice {
            // SAFETY: see above; a token that has ended is refused.
            assert!(check(unsafe { blkm_tracker_end(self.tracker, &raw const token, 0) }) < 0);
        }
    }

    /// Ends a token that nobody was given. Only its pass is spoilt: a spoilt range is a host's lie that cannot be seen.
    ///
    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn spoil(&mut self, word: u8, bits: u64) {
        let Some(token) = self.tokens.last() else { return };
        let mut words = *token;
        words.opaque[0] ^= bits.max(1) << (word % 64);
        if words.opaque[0] != token.opaque[0] {
            // SAFETY: see above.
            check(unsafe { blkm_tracker_end(self.tracker, &raw const words, 0) });
        }
    }

    /// # Safety
    /// All that the run holds was made by it and is not closed.
    pub unsafe fn end_all(&mut self) {
        for token in self.tokens.drain(..) {
            // SAFETY: see above.
            unsafe { blkm_tracker_end(self.tracker, &raw const token, 0) };
        }
    }
}
